"""Checkpoints of the authors' release (github.com/1adrianb/expert-binary-networks, test/model.py) for our networks."""

import re
from collections.abc import Mapping

from torch import Tensor, nn

from networks.errors import InputError, mismatch

SHORTCUT = re.compile(r"(.*)\.downsample\.(\d)\.(.+)")
STEM = {
    "conv1.0": "first.0",
    "conv1.1": "first.1",
    "conv2_1.0": "branch.0",
    "conv2_1.1": "branch.1",
    "conv2_2.0": "branch.3",
    "conv2_2.1": "branch.4",
    "conv3.0": "last.0",
    "conv3.1": "last.1",
}
UNIT = {"bn": "norm", "conv": "conv", "activation": "act"}
LAYER = {"alpha2": "scale", "fc": "gate", "se_fc": "rescale"}


def is_release(state: Mapping[str, Tensor]) -> bool:
    """Whether tensors are named as in the released packed model."""
    return any(name.endswith(".alpha2") for name in state)


def from_release(state: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """State dict for one of our networks from that of the released packed one.

    Released shortcuts are expert layers whose first expert alone is used: its weight times its alpha is our plain
    convolution, and the gate and the other experts are dropped. A released network computes exactly alike with
    norm_eps=1e-4 (in blocks only; its other normalisation has 1e-5) wherever no sign is taken of an exact zero, which
    is 0 there and +1 here.

    Args:
        state: released `state_dict`, with or without the "module." of nn.DataParallel.
        network: expert_binary_resnet(norm_eps=1e-4, rescale=True) for the released file, which has the defaults else.

    Returns:
        Tensors of exactly the names and shapes of `network.state_dict()`.

    Raises:
        InputError: it is of another network, or of the authors' training code.
    """
    given = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    own = network.state_dict()
    result = {}
    for name, tensor in given.items():
        shortcut = SHORTCUT.fullmatch(name)
        if shortcut is None:
            result[_renamed(name)] = tensor.flatten() if name.endswith(".alpha2") else tensor
            continue
        block, index, part = shortcut.groups()
        if part.startswith("se_fc."):
            raise InputError(f"{name} rescales a shortcut as the authors' training code does: give their packed model")
        if part.startswith(("fc.", "alpha2")):
            continue
        alpha = given.get(name.removesuffix("weight") + "alpha2")
        if tensor.ndim == 5 and alpha is not None and alpha.shape == (1, tensor.shape[1], 1, 1):
            tensor = tensor[0] * alpha.view(-1, 1, 1, 1)
        # Where the stride is 1 theirs has a pooling of size 1 and ours has none.
        result[f"{block}.shortcut.{int(index) - (f'{block}.shortcut.0.weight' in own)}.{part}"] = tensor
    if wrong := mismatch(own, result):
        raise InputError(
            f"the released checkpoint is of another network: {wrong}; the packed model is expert_binary_resnet with "
            "norm_eps=1e-4 and rescale=True"
        )
    return result


def _renamed(name: str) -> str:
    """Our name of a released tensor outside shortcuts; one that is not known stays as it is."""
    layer, _, tensor = name.rpartition(".")
    if layer in STEM:
        return f"stem.{STEM[layer]}.{tensor}"
    unit = re.fullmatch(r"(layer\d\.\d+)\.(bn|conv|activation)(\d)\.(\w+)(.*)", name)
    if unit is None:
        return name
    block, kind, number, part, rest = unit.groups()
    return f"{block}.units.{int(number) - 1}.{UNIT[kind]}.{LAYER.get(part, part)}{rest}"
