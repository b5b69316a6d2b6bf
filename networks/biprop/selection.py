"""Which weights are kept (biprop's selection, the same as edge-popup's)."""

from collections.abc import Sequence
from typing import Protocol

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
    smallest = _order_statistic(magnitude, magnitude.numel() - kept)
    mask = magnitude >= smallest
    excess = int(mask.sum()) - kept
    if excess < 0:  # NaN compares with nothing; sorting ranks it highest
        return mask_by_sort(magnitude, kept)
    if excess:
        tied = (magnitude == smallest).nonzero().flatten()
        mask[tied[:excess]] = False
    return mask


def _order_statistic(magnitude: Tensor, rank: int) -> float:
    """The entry that a sort would put at `rank`, counted from 0; on a CPU."""
    if magnitude.dtype not in (torch.float32, torch.float64):
        magnitude = magnitude.float()  # exact; NumPy has no bfloat16
    return np.partition(magnitude.numpy(), rank)[rank].item()


class _Scored(Protocol):
    @property
    def scores(self) -> Tensor: ...
    @property
    def keep_fraction(self) -> float: ...


class GlobalSelection:
    """One threshold for all layers of a network, as released in 2022 for the follow-up paper (CARDs, NeurIPS 2021).

    Of all N scores the floor((1 - k) * N) smallest magnitudes are pruned, and what is tied with the largest of them;
    k = 1 keeps everything, where the release prunes it. Layers of large fan-in start with small scores and are pruned
    first, down to nothing at small k.

    Args:
        layers: masked layers, all with the same keep fraction.
    """

    def __init__(self, layers: Sequence[_Scored]) -> None:
        self.layers = layers
        self.threshold: float | Tensor = -1.0
        self._seen: object = None

    def _versions(self) -> object:
        scores = [layer.scores for layer in self.layers]
        return self.layers[0].keep_fraction, [(id(s), s.data_ptr(), s._version) for s in scores if not s.is_meta]

    def update(self, *_: object) -> None:
        """Choose the threshold anew; nothing waits for a GPU.

        The network calls this before each forward, for writes through .data, which PyTorch does not count.
        """
        if self.layers[0].scores.is_meta:
            return
        self._seen = self._versions()
        magnitude = torch.cat([layer.scores.detach().abs().flatten() for layer in self.layers])
        pruned = int((1 - self.layers[0].keep_fraction) * magnitude.numel())
        if not pruned:
            self.threshold = -1.0
        elif magnitude.device.type == "cpu":
            self.threshold = _order_statistic(magnitude, pruned - 1)
        else:
            self.threshold = magnitude.kthvalue(pruned).values

    def mask(self, scores: Tensor) -> Tensor:
        """Mask of one layer, bool, of the scores' shape; the threshold is chosen anew if a score has changed."""
        if self._seen != self._versions():
            self.update()
        return scores.detach().abs() > self.threshold


def scheduled_keep_fraction(final: float, epoch: int, epochs: int = 10) -> float:
    """Keep fraction of global selection in an epoch e = 0, 1, ...: from a half down to a final k of at most a half.

    1 - k(e) = s + (0.5 - s) * (1 - e / E)^3 with s = 1 - k, as released: layers would be empty at first otherwise.

    Args:
        final: k from epoch E on; above 0.5 there is no schedule.
        epochs: E.
    """
    if final > 0.5 or epoch >= epochs:
        return final
    return final + (0.5 - final) * (1 - epoch / epochs) ** 3
