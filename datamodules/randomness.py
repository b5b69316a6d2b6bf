"""Random numbers that are functions of (seed, epoch, sample index).

No generator is carried along: order and augmentation are the same with any number of workers and processes, and a run
that is resumed in the middle of an epoch draws what it would have drawn.
"""

from typing import NamedTuple

import numpy as np
import torch


class Draw(NamedTuple):
    """The samples of one batch, and the randomness that belongs to each of them in this epoch."""

    seed: int
    epoch: int
    indices: np.ndarray  # (N,), int64, of the data set

    def uniform(self, count: int) -> np.ndarray:
        """Numbers in [0, 1), (N, count), float64; each row is a function of (seed, epoch, index of the sample)."""
        samples = _mix(_mix(_key(self.seed, self.epoch)) ^ self.indices.astype(np.uint64))
        columns = _mix(samples[:, None] + np.arange(count, dtype=np.uint64) * _GOLDEN)
        return (columns >> np.uint64(11)) * 2.0**-53


def permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch, (size,), int64: a function of (seed, epoch)."""
    generator = torch.Generator().manual_seed(int(_mix(_key(seed, epoch))[0] >> np.uint64(1)))
    return torch.randperm(size, generator=generator).numpy()


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _key(seed: int, epoch: int) -> np.ndarray:
    return _mix(np.array([seed], dtype=np.int64).astype(np.uint64)) + np.uint64(epoch)


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's step (Steele, Lea and Flood, OOPSLA 2014): neighbouring numbers come out unrelated."""
    x = x + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
