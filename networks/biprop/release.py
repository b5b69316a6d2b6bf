"""Checkpoints of the authors' release (github.com/chrundle/biprop) for our networks."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from networks.errors import InputError, mismatch


def is_release(state: Mapping[str, Tensor]) -> bool:
    """Whether tensors are named as in a released checkpoint."""
    return any(name.startswith("module.") and name.endswith(".scores") for name in state)


def from_release(state: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """State dict for one of our tickets from that of a released one.

    Released keys begin with "module." (nn.DataParallel); linear layers are 1x1 convolutions [C_out, C_in, 1, 1]; the
    CIFAR ResNets call a block's downsampling "shortcut". Batch normalisation has a scale and shift in files of
    "affine" configurations also where these were never trained; those are left out where ours has none. A released
    ticket computes exactly alike with gain_count="floor_kn".

    Args:
        state: released `state_dict`.
        network: a ticket of the same architecture, see `networks.biprop.apply`.

    Returns:
        Tensors of exactly the names and shapes of `network.state_dict()`.

    Raises:
        InputError: it is of another network, or has trained batch normalisation where `network` has none (+BN).
    """
    given = {name.removeprefix("module.").replace("shortcut.", "downsample."): t for name, t in state.items()}
    own = network.state_dict()
    result = {name: tensor for name, tensor in own.items() if name.endswith("sign_seed")}  # ours alone
    affine = {
        name: tensor
        for name, tensor in given.items()
        if name not in own and name.endswith((".weight", ".bias")) and f"{name.rpartition('.')[0]}.running_mean" in own
    }
    for name, tensor in given.items():
        if name in affine:
            continue
        result[name] = tensor.flatten(1) if tensor.ndim == 4 and name in own and own[name].ndim == 2 else tensor
    if wrong := mismatch(own, result):
        raise InputError(f"the released checkpoint is of another network: {wrong}")
    for name, tensor in affine.items():
        if not torch.equal(tensor, torch.full_like(tensor, float(name.endswith(".weight")))):
            raise InputError(f"the released checkpoint has a trained {name}: it is of a +BN ticket, give train_bn")
    return result
