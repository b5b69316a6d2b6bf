"""Replace layers of a finished network by others, by type and by name."""

import re
from collections.abc import Callable, Iterable

from torch import nn

from networks.errors import InputError


def replace(
    network: nn.Module,
    make: Callable[[nn.Module], nn.Module],
    types: tuple[type[nn.Module], ...],
    pattern: str = "",
) -> list[str]:
    """Replace in place every layer of one of `types` whose name matches `pattern` by `make(layer)`.

    A layer that stands in several places stays one layer. The new layer takes over device, dtype, train or eval mode
    and `activation_bits`, which says what reaches the layer and not what the layer is.

    Args:
        network: changed in place.
        make: builds the new layer from the old one.
        types: exact types. A subclass computes something else, and a replacement would drop it silently.
        pattern: regular expression, searched in the dotted name; the empty one matches every name.

    Returns:
        Dotted names of the replaced layers, in the network's order.

    Raises:
        InputError: the network is itself such a layer, so that there is no place to put another.
    """
    made: dict[nn.Module, nn.Module] = {}
    names = []
    for name, layer in list(network.named_modules(remove_duplicate=False)):
        if type(layer) not in types or not re.search(pattern, name):
            continue
        if not name:
            raise InputError(f"the network is a single {type(layer).__name__}: put it into an nn.Sequential first")
        if layer not in made:
            made[layer] = _fit_in(make(layer), layer)
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, made[layer])
        names.append(name)
    return names


# Class names in timm, torchvision and ours; their layers see one average of a channel and no map.
SQUEEZE_AND_EXCITATION = r"SqueezeExcit|SEModule|SelectiveKernelAttn"


def inside_attention(network: nn.Module) -> set[nn.Module]:
    """All modules inside squeeze and excitation, which scales channels by a small network of their averages."""
    gates = [module for module in network.modules() if re.search(SQUEEZE_AND_EXCITATION, type(module).__name__)]
    return {inner for gate in gates for inner in gate.modules()}


def special(
    network: nn.Module,
    bases: tuple[type[nn.Module], ...],
    ordinary: tuple[type[nn.Module], ...],
    but: Iterable[nn.Module] = (),
) -> str:
    """Names and types of layers that are subclasses of `bases`, and so compute something else, in a phrase.

    Args:
        ordinary: exact types that are not special.
        but: layers that are left out.
    """
    left_out = set(but)
    found = [
        f"{name} ({type(layer).__name__})"
        for name, layer in network.named_modules()
        if isinstance(layer, bases) and type(layer) not in ordinary and layer not in left_out
    ]
    return ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


def _fit_in(new: nn.Module, old: nn.Module) -> nn.Module:
    weight = next(old.parameters(), None)
    if weight is not None:
        new.to(weight.device, weight.dtype)
    if hasattr(old, "activation_bits"):
        new.activation_bits = old.activation_bits
    return new.train(old.training)
