"""biprop: multi-prize lottery tickets, found by pruning and binarising a random network."""

import warnings
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from networks import surgery
from networks.biprop import models
from networks.biprop.layers import Binarize, GainCount, Init, Scale, SubnetConv2d, SubnetLinear

__all__ = ["SubnetConv2d", "SubnetLinear", "apply", "models"]


def apply(
    network: nn.Module,
    keep_fraction: float = 0.5,
    *,
    init: Init = "kaiming_normal",
    scale: Scale | None = None,
    binarize: Binarize = "sign_gain",
    gain_count: GainCount = "kept",
    train_bn: bool = False,
) -> list[str]:
    """Make a network a ticket, in place: convolutions and linear layers become masked layers without bias, drawn anew.

    Afterwards only scores are trained. Batch normalisation loses its scale and shift (they would be 1 and 0), or with
    `train_bn` trains them along, the paper's +BN. Every other parameter is frozen as it stands. Warns when no layer
    was replaced, and then leaves the network as it was; names subclasses of the two layer types, which it passes over.

    Args:
        network: any network; layers of exactly nn.Conv2d and nn.Linear are replaced, first and last included.
        keep_fraction: fraction of each layer's weights that is kept, 0 < k <= 1.
        init, scale, binarize, gain_count: as in SubnetConv2d. `scale` None means "kept" in a network without batch
            normalisation, where the released divisor stalls learning at small keep fractions, and "none" elsewhere.
        train_bn: train scale and shift of batch normalisation along with the scores.

    Returns:
        Dotted names of the replaced layers.

    Raises:
        InputError: keep_fraction outside (0, 1], or an option that is not in its list; the network is as it was.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    if scale is None:
        scale = "none" if norms else "kept"

    def masked(layer: nn.Module) -> SubnetConv2d | SubnetLinear:
        options: dict[str, Any] = dict(
            keep_fraction=keep_fraction, init=init, scale=scale, binarize=binarize, gain_count=gain_count
        )
        if isinstance(layer, nn.Linear):
            return SubnetLinear(layer.in_features, layer.out_features, **options)
        assert isinstance(layer, nn.Conv2d)
        shape = (
            "in_channels",
            "out_channels",
            "kernel_size",
            "stride",
            "padding",
            "dilation",
            "groups",
            "padding_mode",
        )
        arguments = {name: getattr(layer, name) for name in shape}
        return SubnetConv2d(**arguments, **options)

    masked(nn.Linear(1, 1))  # wrong options are refused before anything is touched
    names = surgery.replace(network, masked, (nn.Conv2d, nn.Linear))
    _warn(network, names)
    if not names:
        return names
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    for module in network.modules():
        if isinstance(module, SubnetConv2d | SubnetLinear):
            module.scores.requires_grad_(True)
    for norm in norms:
        if train_bn:
            norm.reset_parameters()  # scale 1, shift 0, also where a library starts a block's last scale at 0
            norm.requires_grad_(True)
        else:
            norm.affine = False
            norm.register_parameter("weight", None)
            norm.register_parameter("bias", None)
    return names


def _warn(network: nn.Module, replaced: list[str]) -> None:
    passed_over = [
        f"{name} ({type(layer).__name__})"
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
        and not isinstance(layer, SubnetConv2d | SubnetLinear)
        and type(layer) not in (nn.Conv2d, nn.Linear)
    ]
    if not replaced:
        warnings.warn("biprop replaced no layer: the network has no nn.Conv2d or nn.Linear to mask", stacklevel=3)
    if passed_over:
        warnings.warn(f"biprop left special layers dense and frozen: {', '.join(passed_over)}", stacklevel=3)
