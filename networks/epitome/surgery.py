"""Put epitomes in place of a network's convolutions and linear layers."""

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn

from networks import surgery
from networks.epitome.base import EpitomeLayer
from networks.epitome.conv1d import EpitomeConv1d
from networks.epitome.layers import EpitomeConv2d, EpitomeLinear, Share
from networks.errors import InputError

CHANNEL_TYPES = (nn.Conv2d, nn.Linear, timm.layers.Linear)  # exactly these: other subclasses compute something else
WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Linear)
LAYERS = (EpitomeConv1d, EpitomeConv2d, EpitomeLinear)


@dataclass(frozen=True)
class Rule:
    """Which 2-D convolutions and linear layers get epitomes, and which.

    Depthwise and other grouped convolutions are passed over, as in the paper.

    Attributes:
        pattern: regular expression, searched in the dotted names of layers.
        share: the axis along which the epitome repeats, "out" (filters) or "in" (input channels).
        multiplier: channels of the epitome over those of the weight along that axis, in (0, 1]; one number, or one for
            each layer that the pattern finds, in the network's order.
    """

    pattern: str
    share: Share = "in"
    multiplier: float | tuple[float, ...] = 0.5


@dataclass(frozen=True)
class WindowRule:
    """Which 1-D convolutions get condensed filters, and which.

    Attributes:
        pattern: regular expression, searched in the dotted names of layers.
        sampling_stride: S, entries between the windows of consecutive filters; one number, or one for each layer.
        repeats: C, of the condensed filter along input channels; likewise.
        shrink: rho, by which condensed filters are shorter than that.
    """

    pattern: str
    sampling_stride: int | tuple[int, ...] = 1
    repeats: int | tuple[int, ...] = 1
    shrink: float = 1.0


AnyRule = Rule | WindowRule


def as_rule(given: AnyRule | Mapping[str, Any]) -> AnyRule:
    """A rule, also from its fields as plain types."""
    if isinstance(given, Rule | WindowRule):
        return given
    fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    return (WindowRule if fields.keys() & {"sampling_stride", "repeats", "shrink"} else Rule)(**fields)


def apply(network: nn.Module, rules: Sequence[AnyRule] | float = 0.5, **options: Any) -> list[str]:
    """Replace layers of any network by epitome layers, in place.

    An epitome begins with values of the weight that it replaces, so with that layer's own initialisation.

    Args:
        network: any network; layers of exactly nn.Conv1d, nn.Conv2d, nn.Linear and timm's Linear are replaced, without
            groups and with zero padding.
        rules: of each layer the first rule whose pattern its name has. A number stands for `Rule("", "in", number)` on
            all 2-D convolutions and linear layers but the first and the last layer with weights and those of squeeze
            and excitation, which the authors leave as they are too; special convolutions are named in a warning.
        options: of the layers: positions, map_momentum, depthwise_learner, quantize_bits, execution; init of 2-D and
            linear layers.

    Returns:
        Dotted names of the replaced layers.

    Raises:
        InputError: a rule that finds no layer, or not as many as it has multipliers; one that would tie the scores of
            classes; an epitome that is larger than its weight, and what the layers refuse. The network is as it was.
    """
    weighted = [name for name, layer in network.named_modules() if isinstance(layer, WEIGHTED)]
    if isinstance(rules, float | int):
        attention = surgery.inside_attention(network)
        layers = {name: network.get_submodule(name) for name in weighted[1:-1]}
        inner = [name for name, layer in layers.items() if layer not in attention and type(layer) in CHANNEL_TYPES]
        left = attention | (set(network.modules()) - {layer for layer in layers.values() if _ordinary(layer)})
        special = surgery.special(network, CHANNEL_TYPES, CHANNEL_TYPES, left)
        if not inner:
            has = "has its epitomes already" if epitome_layers(network) else "has no other"
            passed_over = f" but special ones, {special}" if special else ""
            raise InputError(
                f"rules={rules} leave out the first and the last layer with weights, squeeze and excitation, and the "
                f'network {has}{passed_over}: give a list, such as [{{pattern: ".*"}}]'
            )
        if special:
            warnings.warn(f"epitome left special layers as they are: {special}", stacklevel=2)
        rules = [Rule(f"^({'|'.join(map(re.escape, inner))})$", "in", float(rules))]
    planned = _plan(network, rules)
    last = {weighted[-1], *_classifiers(network)} if weighted else set()
    for name, (rule, arguments) in planned.items():
        if name in last and arguments.get("share") == "out" and arguments["multiplier"] < 1:
            raise InputError(
                f"{rule} repeats the outputs of {name}, a last layer of the network, so that classes would have the "
                "same scores: share its inputs, or leave it out"
            )
    made = {name: _epitome(network.get_submodule(name), arguments, options) for name, (_, arguments) in planned.items()}
    new_ones = {network.get_submodule(name): new for name, new in made.items()}
    everywhere = network.named_modules(remove_duplicate=False)  # a layer may stand in several places
    pattern = f"^({'|'.join(re.escape(name) for name, layer in everywhere if layer in new_ones)})$"
    _warn_of_ties(weighted, planned)
    return surgery.replace(network, new_ones.__getitem__, (nn.Conv1d, *CHANNEL_TYPES), pattern)


def epitome_layers(network: nn.Module) -> dict[str, EpitomeLayer]:
    """The epitome layers of a network by their dotted names."""
    return {name: layer for name, layer in network.named_modules() if isinstance(layer, EpitomeLayer)}


def freeze(network: nn.Module) -> None:
    """Make the positions of all epitome layers constants, and drop what learns them."""
    for layer in epitome_layers(network).values():
        layer.freeze()


def materialise(network: nn.Module) -> list[str]:
    """Put ordinary layers with the weights of evaluation in place of all epitome layers, for export.

    Returns:
        Dotted names of the layers.
    """
    return surgery.replace(network, lambda layer: layer.materialise(), LAYERS)  # type: ignore[operator]


def _plan(network: nn.Module, rules: Sequence[AnyRule]) -> dict[str, tuple[AnyRule, dict[str, Any]]]:
    """The rule of each layer that gets an epitome, and the arguments that it gives."""
    planned: dict[str, tuple[AnyRule, dict[str, Any]]] = {}
    for rule in rules:
        try:
            re.compile(rule.pattern)
        except re.error as error:
            raise InputError(f"{rule}: its pattern is no regular expression ({error})") from error
        types = CHANNEL_TYPES if isinstance(rule, Rule) else (nn.Conv1d,)
        names = [
            name
            for name, layer in network.named_modules()
            if type(layer) in types and re.search(rule.pattern, name) and _ordinary(layer) and name not in planned
        ]
        if not names:
            kinds = "2-D convolution or linear layer" if isinstance(rule, Rule) else "1-D convolution"
            left = [name for name, layer in network.named_modules() if type(layer) in types and name not in planned]
            named = f"; it has {', '.join(left[:3])}{', ...' if len(left) > 3 else ''}" if left else ""
            raise InputError(f"{rule}: the network has no such {kinds} left to replace{named}")
        if isinstance(rule, Rule):
            columns = {"multiplier": _each(rule, "multiplier", len(names)), "share": [rule.share] * len(names)}
        else:
            columns = {name: _each(rule, name, len(names)) for name in ("sampling_stride", "repeats")}
            columns["shrink"] = [rule.shrink] * len(names)
        for i, name in enumerate(names):
            planned[name] = rule, {key: values[i] for key, values in columns.items()}
    order = [name for name, _ in network.named_modules() if name in planned]
    return {name: planned[name] for name in order}


def _classifiers(network: nn.Module) -> list[str]:
    """Names of the layers that timm's networks say give the scores."""
    layers = network.get_classifier() if hasattr(network, "get_classifier") else ()  # type: ignore[operator]
    given = layers if isinstance(layers, tuple | list) else [layers]
    return [name for name, layer in network.named_modules() if any(layer is one for one in given)]


def _each(rule: AnyRule, name: str, count: int) -> list[Any]:
    value = getattr(rule, name)
    if not isinstance(value, Sequence):
        return [value] * count
    if len(value) != count:
        raise InputError(f"{rule} has {len(value)} values of {name} for {count} layers")
    return list(value)


def _ordinary(layer: nn.Module) -> bool:
    return getattr(layer, "groups", 1) == 1 and getattr(layer, "padding_mode", "zeros") == "zeros"


def _epitome(layer: nn.Module, arguments: dict[str, Any], options: dict[str, Any]) -> EpitomeLayer:
    """The epitome layer for an ordinary one, with values of its weight and with its bias."""
    given = {**arguments, **options}
    weight: Tensor = layer.weight  # type: ignore[assignment]
    new: EpitomeLayer
    if isinstance(layer, nn.Linear):
        new = EpitomeLinear(layer.in_features, layer.out_features, layer.bias is not None, **given)
    else:
        names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation")
        geometry = [getattr(layer, name) for name in names]
        kind: Any = EpitomeConv1d if isinstance(layer, nn.Conv1d) else EpitomeConv2d
        new = kind(*geometry, layer.bias is not None, **given)
    with torch.no_grad():
        values = weight.detach().flatten()[: new.epitome.numel()].clone()
        new.epitome = nn.Parameter(values.view(new.epitome.shape))
        if new.bias is not None:
            new.bias = nn.Parameter(layer.bias.detach().clone(), bool(layer.bias.requires_grad))  # type: ignore[operator]
    for parameter in new.parameters():
        if parameter is not new.bias:
            parameter.requires_grad_(weight.requires_grad)
    return new


def _warn_of_ties(weighted: list[str], planned: dict[str, tuple[AnyRule, dict[str, Any]]]) -> None:
    """Filters of a repeated weight give the same, until positions or a layer that tells them apart come between."""
    repeated = [name in planned and planned[name][1].get("share") == "out" for name in weighted]
    for name, next_name, one, two in zip(weighted, weighted[1:], repeated, repeated[1:], strict=False):
        if one and two:
            warnings.warn(
                f"{name} and then {next_name} repeat their outputs: with positions 0 and no other layer between them "
                'filters stay equal; share="in" in every other one',
                stacklevel=3,
            )
