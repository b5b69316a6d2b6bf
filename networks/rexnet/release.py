"""Checkpoints of the authors' release (github.com/clovaai/rexnet, rexnetv1.py) for timm's network and ours."""

from collections.abc import Mapping

from torch import Tensor, nn

from networks.errors import InputError

CLASSIFIER = ("head.fc.weight", "head.fc.bias")


def is_release(state: Mapping[str, Tensor]) -> bool:
    """Whether tensors are named as in a released ReXNetV1."""
    return any(name.removeprefix("module.") == "output.1.weight" for name in state)


def from_release(state: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """State dict for `rexnet` of the same width from a released one.

    Both networks are one function, and their tensors stand in the same order; the released classifier is a 1x1
    convolution.

    Args:
        state: released `state_dict`, in its order.
        network: `rexnet`, or timm's; it may have another number of classes.

    Returns:
        Tensors by the names of `network.state_dict()`; the classifier has the released number of classes.

    Raises:
        InputError: it is of another network or width.
    """
    own = network.state_dict()
    if len(own) != len(state):
        raise InputError(f"the released checkpoint has {len(state)} tensors, not {len(own)}: it is of another network")
    result = {}
    for (name, ours), (theirs, tensor) in zip(own.items(), state.items(), strict=True):
        result[name] = tensor.flatten(1) if tensor.ndim == 4 and ours.ndim == 2 else tensor
        if result[name].shape != ours.shape and name not in CLASSIFIER:
            raise InputError(
                f"the released checkpoint has {theirs} of {tuple(tensor.shape)} where {name} is {tuple(ours.shape)}: "
                "it is of another width"
            )
    return result
