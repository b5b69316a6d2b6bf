"""The channel search space (paper, Section 4 and Table 1): what its networks cost, and lists within a budget.

Costs are closed forms over arrays of channel lists (n, d), for to build a network only to count it would take seconds;
tests compare them with built networks. Published budgets count 10 classes in parameters, though training has 100, and
two operations for each element that is normalised, beside multiply-adds: found by fitting the printed columns, and
confirmed nowhere.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from networks.errors import InputError

Lists = NDArray[np.int64]  # (n, d): c_1 ... c_d of n networks

FLOORS = (16, 64)  # of c_1, as drawn
CHUNK = 20_000  # lists drawn at once
DRAWS = 1_000_000  # at most, for one budget
MAX_SLOPE = 4096.0


@dataclass(frozen=True)
class Around:
    """What stands around the searched blocks, as in `channel_search_net`."""

    stem: int = 32
    first: int = 16
    strided: tuple[int, ...] | None = None
    expansion: int = 6
    penultimate: int = 1024
    in_chans: int = 3  # of the images
    side: int = 32

    def __post_init__(self) -> None:
        if self.expansion < 2:
            raise InputError(
                f"expansion={self.expansion}: below 2 blocks have no layer that expands, which costs count"
            )


PAPER = Around()


def stride_blocks(blocks: int) -> tuple[int, ...]:
    """Numbers, from 1, of the searched blocks of stride 2."""
    return tuple(sorted({blocks // 3 + 1, min(2 * (blocks // 3) + 1, blocks)}))


def params(channels: Lists, classes: int | None = 10, around: Around = PAPER) -> Lists:
    """Parameters, (n,), with a linear head for so many classes, or with None without one."""
    t, last, before, after = around.expansion, around.penultimate, *_neighbours(channels, around)
    blocks = t * before * (before + after + 9 + 4) + 2 * after
    head = 0 if classes is None else (last + 1) * classes
    return blocks.sum(1) + last * (channels[:, -1] + 2) + sum(_outside(around)) + head


def macs(channels: Lists, classes: int = 100, around: Around = PAPER) -> Lists:
    """Multiply-adds of convolutions and head for one image, (n,)."""
    t, last, before, after = around.expansion, around.penultimate, *_neighbours(channels, around)
    enter, leave = _pixels(channels.shape[1], around)
    blocks = t * before * (before * enter + (9 + after) * leave)
    return blocks.sum(1) + last * (channels[:, -1] * leave[-1] + classes) + _outside(around)[0] * around.side**2


def flops(channels: Lists, classes: int = 100, around: Around = PAPER) -> Lists:
    """Multiply-adds, and two for each normalised element: what the published columns fit, (n,)."""
    before, after = _neighbours(channels, around)
    enter, leave = _pixels(channels.shape[1], around)
    normalised = (around.expansion * before * (enter + leave) + after * leave).sum(1)
    outside = _outside(around)[1] // 2 * around.side**2 + around.penultimate * leave[-1]
    return macs(channels, classes, around) + 2 * (normalised + outside)


def _outside(around: Around) -> tuple[int, int]:
    """Parameters of the convolutions before the searched blocks, and of their normalisations (two for a channel)."""
    stem, first = around.stem, around.first
    if not first:
        return 9 * around.in_chans * stem, 2 * stem
    return 9 * around.in_chans * stem + 9 * stem + stem * first, 2 * (stem + stem + first)


def _neighbours(channels: Lists, around: Around) -> tuple[Lists, Lists]:
    """Channels entering and leaving each block, (n, d) each."""
    first = around.first or around.stem
    return np.concatenate((np.full((len(channels), 1), first), channels[:, :-1]), 1), channels


def _pixels(blocks: int, around: Around) -> tuple[Lists, Lists]:
    """Pixels of the maps entering and leaving each block, (d,) each."""
    halved = np.isin(np.arange(1, blocks + 1), stride_blocks(blocks) if around.strided is None else around.strided)
    if around.side % 2 ** halved.sum():
        raise InputError(f"images of {around.side} pixels cannot be halved {halved.sum()} times: resize them")
    sides = around.side // 2 ** np.concatenate(([0], halved.cumsum()))
    return sides[:-1] ** 2, sides[1:] ** 2


@dataclass(frozen=True)
class Budget:
    """What a list of channels may cost.

    Args:
        blocks: d, the number of searched blocks.
        flops: the target, in operations as `flops` counts them.
        flops_tolerance: relative, on either side.
        params: the target, with 10 classes; None leaves parameters free.
        params_tolerance: relative.

    FLOPs count a head of 100 classes whatever the data have, parameters one of 10: so the paper's numbers are budgets.
    """

    blocks: int
    flops: float
    flops_tolerance: float = 0.05
    params: float | None = None
    params_tolerance: float = 0.06

    def check(self) -> None:
        """Refuse what no list can meet.

        Raises:
            InputError: fewer than two blocks, numbers that are not positive.
        """
        if self.blocks < 2:
            raise InputError(f"budget.blocks={self.blocks} must be at least 2")
        for name in ("flops", "flops_tolerance", "params", "params_tolerance"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"budget.{name}={value} must be positive")

    def accepts(self, channels: Lists, around: Around = PAPER) -> NDArray[np.bool_]:
        """Which lists (n, d) cost what they may, (n,)."""
        within = np.abs(flops(channels, around=around) / self.flops - 1) <= self.flops_tolerance
        if self.params is not None:
            within &= np.abs(params(channels, around=around) / self.params - 1) <= self.params_tolerance
        return within


# Tolerances are ours: with them the sampler spreads as the paper prints. Budget (d) says 300 M, and all
# its groups are at 351 M.
BUDGETS: dict[str, Budget] = {
    "a": Budget(5, 30e6, 0.05, 0.2e6, 0.06),
    "b": Budget(9, 100e6, 0.12, 0.5e6, 0.06),
    "c": Budget(9, 200e6, 0.15, 1.0e6, 0.06),
    "d": Budget(13, 350e6, 0.03, 3.0e6, 0.03),
    "5_blocks_30m": Budget(5, 30e6),
    "5_blocks_50m": Budget(5, 50e6),
    "5_blocks_70m": Budget(5, 70e6),
    "9_blocks_100m": Budget(9, 100e6),
    "9_blocks_150m": Budget(9, 150e6),
    "9_blocks_200m": Budget(9, 200e6),
}

# The best and the worst list that the paper prints for a budget, with their top-1 on CIFAR-100 in percent (Table 1).
PUBLISHED: dict[str, dict[str, tuple[tuple[int, ...], float]]] = {
    "a": {"best": ((34, 34, 45, 55, 66), 63.4), "worst": ((36, 36, 36, 36, 83), 61.1)},
    "b": {"best": ((24, 33, 42, 50, 59, 68, 77, 85, 94), 68.9), "worst": ((*(39,) * 7, 87, 158), 67.6)},
    "c": {"best": ((30, 45, 59, 74, 88, 103, 117, 132, 146), 71.1), "worst": ((47, 47, *(70,) * 6, 364), 69.6)},
    "d": {
        "best": ((34, 34, 34, 40, 64, 88, 112, 136, 160, 184, 208, 232, 256), 73.2),
        "worst": ((*(52,) * 9, 115, 263, 263, 412), 71.6),
    },
}


def sample(budget: Budget, count: int, seed: int = 0, around: Around = PAPER) -> Lists:
    """Distinct lists within a budget, (count, d), the same ones for the same seed and the first of any larger count.

    Raises:
        InputError: too few lists meet the budget, or its numbers are not positive.
    """
    budget.check()
    generator = np.random.default_rng(seed)
    found: dict[tuple[int, ...], None] = {}
    for _ in range(DRAWS // CHUNK):
        drawn = draw(budget, CHUNK, generator, around)
        found.update(dict.fromkeys(map(tuple, drawn[budget.accepts(drawn, around)].tolist())))
        if len(found) >= count:
            return np.array(list(found)[:count], dtype=np.int64)
    wanted = "" if budget.params is None else f" and {budget.params:.3g} parameters"
    raise InputError(
        f"only {len(found)} of {count} lists of {budget.blocks} blocks have {budget.flops:.3g} FLOPs{wanted}, of "
        f"{DRAWS:,} drawn: ask for fewer, widen budget.flops_tolerance, or take a budget that agrees with itself"
    )


def draw(budget: Budget, count: int, generator: np.random.Generator, around: Around = PAPER) -> Lists:
    """Lists near a budget, (count, d): c_i = max(c_1, round(c_1 + a (f(i) - phase))), f counting a picked subset.

    How the paper draws them is not known; here the subset's size, then the subset, then c_1 and the phase of the first
    step are uniform, and the slope a is found by bisection on the parameters, or where these are free on the FLOPs.
    """
    d = budget.blocks
    size = generator.integers(1, d, count)[:, None]
    picked = generator.random((count, d - 1)).argsort(1).argsort(1) < size
    floor = generator.integers(FLOORS[0], FLOORS[1] + 1, count)[:, None]
    phase = generator.random(count)[:, None]
    steps = np.concatenate((np.zeros((count, 1)), picked.cumsum(1)), 1)
    steps = np.maximum(steps - phase, 0)  # 0 before the first pick
    low, high = np.zeros((count, 1)), np.full((count, 1), MAX_SLOPE)
    while high[0] - low[0] > 1 / 64:
        middle = (low + high) / 2
        channels = _rounded(floor + middle * steps)
        if budget.params is None:
            over = flops(channels, around=around) > budget.flops
        else:
            over = params(channels, around=around) > budget.params
        low, high = np.where(over[:, None], low, middle), np.where(over[:, None], middle, high)
    return _rounded(floor + low * steps)


def _rounded(channels: NDArray[np.float64]) -> Lists:
    """To the nearest integer, halves up."""
    return np.floor(channels + 0.5).astype(np.int64)
