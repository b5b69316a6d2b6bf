"""Which weights of a layer are kept (biprop's selection, the same as edge-popup's)."""

import numpy as np
import torch
from torch import Tensor


def kept_count(keep_fraction: float, n: int) -> int:
    """Number of weights that a layer of n keeps: n - floor((1 - k) * n), evaluated in double precision as released.

    Floating point is part of the definition: 1 - 0.8 lies just below 0.2, so k = 0.8 keeps 2049 of 2560.
    """
    return n - int((1 - keep_fraction) * n)


def keep_mask(scores: Tensor, kept: int) -> Tensor:
    """Mask of the `kept` entries with the largest |score|.

    Exactly what a stable ascending sort by |score| gives: among equals the lower row-major index is pruned first,
    whatever the memory format, so that every process and device chooses the same weights.

    Args:
        scores: any shape, real.
        kept: 0 to scores.numel().

    Returns:
        Bool tensor of the scores' shape with exactly `kept` ones.
    """
    magnitude = scores.detach().abs().flatten()
    if kept in (0, magnitude.numel()):
        return torch.full_like(scores, kept > 0, dtype=torch.bool)
    on_host = magnitude.device.type == "cpu" and not torch.compiler.is_compiling()
    return (mask_by_partition if on_host else mask_by_sort)(magnitude, kept).view(scores.shape)


def mask_by_sort(magnitude: Tensor, kept: int) -> Tensor:
    """The definition, for any device: nothing is read back to the host, so nothing waits for the device."""
    order = magnitude.argsort(stable=True)
    return torch.ones_like(magnitude, dtype=torch.bool).scatter_(0, order[:-kept], False)


def mask_by_partition(magnitude: Tensor, kept: int) -> Tensor:
    """The same on a CPU without sorting: NumPy's vectorised partition finds the smallest magnitude that is kept."""
    if magnitude.dtype not in (torch.float32, torch.float64):
        magnitude = magnitude.float()  # exact; NumPy has no bfloat16
    smallest = np.partition(magnitude.numpy(), -kept)[-kept].item()
    mask = magnitude >= smallest
    excess = int(mask.sum()) - kept
    if excess < 0:  # NaN compares with nothing; sorting ranks it highest
        return mask_by_sort(magnitude, kept)
    if excess:
        tied = (magnitude == smallest).nonzero().flatten()
        mask[tied[:excess]] = False
    return mask
