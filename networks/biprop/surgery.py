"""Make a network a ticket."""

import re
import warnings
from collections.abc import Iterable
from typing import Any, Literal

import timm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from networks import surgery
from networks.biprop.layers import Binarize, GainCount, Init, Scale, ScoreGradient, SubnetConv2d, SubnetLinear
from networks.biprop.selection import GlobalSelection
from networks.errors import InputError, check_choice

Selection = Literal["layer", "global"]

MASKABLE = (nn.Conv2d, nn.Linear, timm.layers.Linear)  # exactly these: other subclasses compute something else
SCALES = r"gamma|scale|gain|^ls\d"  # names of parameters by which timm's networks scale the branch of a block
SMALL = 1e-3  # a frozen scale that is no larger leaves nothing to learn in its branch
GEOMETRY = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")


def apply(
    network: nn.Module,
    keep_fraction: float = 0.5,
    *,
    init: Init = "kaiming_normal",
    scale: Scale | None = None,
    binarize: Binarize = "sign_gain",
    gain_count: GainCount = "kept",
    score_gradient: ScoreGradient = "weight",
    selection: Selection = "layer",
    train_bn: bool = False,
    dense_first: bool = False,
    dense_last: bool = False,
) -> list[str]:
    """Make a network a ticket, in place: convolutions and linear layers become masked layers without bias, drawn anew.

    Afterwards only scores are trained. Batch normalisation loses its scale and shift (they would be 1 and 0), or with
    `train_bn` trains them along, the paper's +BN. Every other parameter is frozen as it stands. Warnings name layers
    that keep no weight, and subclasses of the layer types, which it passes over.

    Args:
        network: any network; layers of exactly nn.Conv2d, nn.Linear and timm's Linear are replaced, first and last
            included.
        keep_fraction: fraction of each layer's weights that is kept, 0 < k <= 1.
        init, scale, binarize, gain_count, score_gradient: as in SubnetConv2d. `scale` None means "kept" in a network
            without batch normalisation, where the released divisor stalls learning at small keep fractions, and "none"
            elsewhere.
        selection: "layer", the paper's, or "global": one threshold for all layers, see GlobalSelection.
        train_bn: train scale and shift of batch normalisation along with the scores.
        dense_first, dense_last: leave the first or last convolution or linear layer, in the order of the network's
            modules, an ordinary one whose weights are trained. The paper masks both.

    Returns:
        Dotted names of the replaced layers.

    Raises:
        InputError: keep_fraction outside (0, 1], or an option that is not in its list; a network without a layer that
            can be masked, or with most of its weights elsewhere, or whose branches have scales near zero, which would
            be frozen. The network is as it was.
    """
    check_choice("selection", selection, Selection)
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    if scale is None:
        scale = "none" if norms else "kept"
    options: dict[str, Any] = dict(
        keep_fraction=keep_fraction,
        init=init,
        scale=scale,
        binarize=binarize,
        gain_count=gain_count,
        score_gradient=score_gradient,
    )
    _subnet(nn.Linear(1, 1), **options)  # wrong options are refused before anything is touched
    weighted = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    dense = {*weighted[: int(dense_first)], *weighted[len(weighted) - int(dense_last) :]}
    candidates = network.named_modules(remove_duplicate=False)
    chosen = {name: layer for name, layer in candidates if type(layer) in MASKABLE and layer not in dense}
    special = surgery.special(network, MASKABLE, (*MASKABLE, SubnetConv2d, SubnetLinear), dense)
    if not chosen:
        passed_over = f" but special ones, {special}" if special else ""
        raise InputError(f"the network has no layer to mask{passed_over}: Classifier trains it as it is")
    _refuse(network, set(chosen.values()), {*norms, *dense, *subnet_layers(network).values()})
    names = replace_by_name(network, chosen, **options)
    _freeze(network, norms, train_bn, dense)
    layers = subnet_layers(network)
    if selection == "global":
        chosen_by = GlobalSelection(list(layers.values()))
        for layer in layers.values():
            layer.selection = chosen_by
        network.register_forward_pre_hook(chosen_by.update)
    if special:
        warnings.warn(f"biprop left special layers dense and frozen: {special}", stacklevel=2)
    empty = [name for name, layer in layers.items() if not layer.scores.is_meta and layer.kept == 0]
    if empty:
        warnings.warn(f"{', '.join(empty)} keep no weight and give zeros: take a larger keep fraction", stacklevel=2)
    if train_bn and not norms:
        warnings.warn("train_bn: the network has no batch normalisation to train", stacklevel=2)
    return names


def replace_by_name(network: nn.Module, names: Iterable[str], **options: Any) -> list[str]:
    """Put masked layers in place of the named convolutions and linear layers; options are those of SubnetConv2d."""
    pattern = "|".join(re.escape(name) for name in names)
    return surgery.replace(network, lambda layer: _subnet(layer, **options), MASKABLE, f"^({pattern})$")


def _subnet(layer: nn.Module, **options: Any) -> SubnetConv2d | SubnetLinear:
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    options["device"] = layer.weight.device
    if isinstance(layer, nn.Linear):
        return SubnetLinear(layer.in_features, layer.out_features, **options)
    return SubnetConv2d(**{name: getattr(layer, name) for name in GEOMETRY}, **options)


def drop_affine(modules: Iterable[nn.Module]) -> None:
    """Take scale and shift from batch normalisation, which computes as with 1 and 0."""
    for norm in modules:
        if isinstance(norm, _BatchNorm):
            norm.affine = False
            norm.register_parameter("weight", None)
            norm.register_parameter("bias", None)


def subnet_layers(network: nn.Module, remove_duplicate: bool = True) -> dict[str, SubnetConv2d | SubnetLinear]:
    """The masked layers of a network by their dotted names: the first one, or all, where a layer stands in several."""
    modules = network.named_modules(remove_duplicate=remove_duplicate)
    return {name: layer for name, layer in modules if isinstance(layer, SubnetConv2d | SubnetLinear)}


def set_keep_fraction(network: nn.Module, keep_fraction: float) -> None:
    """Keep another fraction from now on, in all masked layers; weights are not drawn anew.

    Raises:
        InputError: keep_fraction outside (0, 1].
    """
    for layer in subnet_layers(network).values():
        layer.keep_fraction = keep_fraction


def _refuse(network: nn.Module, masked: set[nn.Module], others: set[nn.Module]) -> None:
    """Refuse a network in which what is frozen as it stands would decide, and not the scores (InputError).

    Args:
        others: modules that are no masked layers, and whose parameters are trained or dropped.
    """
    ours = {id(parameter) for module in masked | others for parameter in module.parameters()}
    frozen = {name: parameter for name, parameter in network.named_parameters() if id(parameter) not in ours}
    weights = {name: parameter.numel() for name, parameter in frozen.items() if parameter.ndim > 1}
    maskable = sum(layer.weight.numel() for layer in masked)  # type: ignore[operator,misc]
    left = sum(weights.values())
    if left > maskable:
        name = max(weights, key=weights.__getitem__)
        raise InputError(
            f"biprop masks exact nn.Conv2d and nn.Linear: {maskable:,} weights here, while {left:,} others stay frozen "
            f"as they are, such as {name} ({type(_owner(network, name)).__name__}): take another network"
        )
    small = [
        name
        for name, parameter in frozen.items()
        if (re.search(SCALES, name.rpartition(".")[2]) or _is_norm_weight(network, name))
        and not parameter.is_meta
        and parameter.abs().max() <= SMALL
    ]
    if small:
        raise InputError(
            f"{small[0]} scales its branch by {frozen[small[0]].abs().max():.3g} and would be frozen, so that nothing "
            "could be learned there: build the network with 1 instead (of timm's, network_args {ls_init_value: 1}, "
            "{init_values: 1} or {zero_init_last: false})"
        )


def _owner(network: nn.Module, parameter: str) -> nn.Module:
    return network.get_submodule(parameter.rpartition(".")[0])


def _is_norm_weight(network: nn.Module, name: str) -> bool:
    return name.endswith("weight") and isinstance(_owner(network, name), nn.LayerNorm | nn.GroupNorm)


def _freeze(network: nn.Module, norms: list[_BatchNorm], train_bn: bool, dense: Iterable[nn.Module]) -> None:
    """Train scores, what is left dense, and with `train_bn` scale and shift of batch normalisation."""
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    for layer in subnet_layers(network).values():
        layer.scores.requires_grad_(True)
    for module in dense:
        module.requires_grad_(True)
    if not train_bn:
        drop_affine(norms)
        return
    for norm in norms:
        norm.reset_parameters()  # scale 1, shift 0, also where a library starts a block's last scale at 0
        norm.requires_grad_(True)
