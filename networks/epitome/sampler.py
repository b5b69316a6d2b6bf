"""Cut blocks out of an epitome at real positions, by linear interpolation: NES's sampler.

Zhou et al., "Neural Epitome Search for Architecture-Agnostic Network Compression", ICLR 2020, arXiv 1907.05642. With
j = floor(p) and f = p - j, the slice at position p is (1 - f) * E[j : j + len] + f * E[j + 1 : j + 1 + len], which is
the tent kernel max(0, 1 - |t|). Axes are separable. Channel axes are cyclic (as in the authors' code), spatial ones
are clamped. Positions never leave their device: no step waits for it.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Cell(NamedTuple):
    """Where positions lie between two neighbouring entries; `floor` carries no gradient, `fraction` does."""

    floor: Tensor  # (R,), int64
    fraction: Tensor  # (R,)


def cyclic_cell(positions: Tensor) -> Cell:
    """Cells on a cyclic axis. At an integer the derivative is the one to the right."""
    floor = positions.detach().floor()
    return Cell(floor.long(), positions - floor)


def window_cell(positions: Tensor, last: int) -> Cell:
    """Cells on a clamped axis, on which windows start at 0 to `last`.

    Straight-through: positions outside give the window at the bound, and their gradient stays. (A plain clamp has
    gradient 0 on its bounds too, where the first and the last filter begin.) At the upper bound the derivative is the
    one to the left, for there is no cell to the right.
    """
    inside = positions.detach().clamp(0, last)
    if last == 0:  # nowhere to go
        return Cell(torch.zeros_like(inside, dtype=torch.int64), 0 * positions)
    floor = inside.floor().clamp(max=last - 1)
    return Cell(floor.long(), inside + (positions - positions.detach()) - floor)


def expand(x: Tensor, cell: Cell | None, length: int, dim: int) -> Tensor:
    """Blocks of a cyclic axis one behind the other, cut to `length`; block a begins at position a.

    y[a*n + u] = (1 - f_a) * x[(j_a + u) mod n] + f_a * x[(j_a + u + 1) mod n], with n the size of the axis.

    Args:
        x: any shape.
        cell: of ceil(length / n) positions; None is plain repetition.
        length: of the axis in the result.
        dim: the axis.
    """
    n = x.shape[dim]
    if cell is None:
        blocks = [x] * (length // n)
        if length % n:
            blocks.append(x.narrow(dim, 0, length % n))
        return torch.cat(blocks, dim) if len(blocks) > 1 else blocks[0]
    ramp = torch.arange(length, device=x.device)
    below = (cell.floor.repeat_interleave(n)[:length] + ramp) % n
    fraction = _along(cell.fraction.repeat_interleave(n)[:length], x, dim)
    return _blend(x.index_select(dim, below), x.index_select(dim, (below + 1) % n), fraction)


def fold(x: Tensor, cell: Cell | None, n: int, dim: int) -> Tensor:
    """The transpose of `expand`, channel wrapping: blocks of n entries of an axis, each rolled back, and added up.

    y[v] = sum_b (1 - f_b) * x_b[(v - j_b) mod n] + f_b * x_b[(v - j_b - 1) mod n]; a last block that is cut short is
    filled up with zeros. Then <x, expand(e)> = <fold(x), e>, so a layer with a repeated weight may fold its input.
    """
    dim %= x.ndim
    blocks = list(x.split(n, dim))
    missing = n - blocks[-1].shape[dim]
    if missing:
        size = list(x.shape)
        size[dim] = missing
        blocks[-1] = torch.cat([blocks[-1], x.new_zeros(size)], dim)
    if cell is not None:
        ramp = torch.arange(n, device=x.device)
        for b, block in enumerate(blocks):
            at = (ramp - cell.floor[b]) % n
            blocks[b] = _blend(block.index_select(dim, at), block.index_select(dim, (at - 1) % n), cell.fraction[b])
    total = blocks[0]
    for block in blocks[1:]:
        total = total + block
    return total


def windows(x: Tensor, cell: Cell, length: int, dim: int, rows: int) -> Tensor:
    """Of each entry of the axis `rows` a window of its own along the clamped axis `dim`.

    y[.., r, .., l, ..] = (1 - f_r) * x[.., r, .., j_r + l, ..] + f_r * x[.., r, .., j_r + l + 1, ..]

    Args:
        x: any shape.
        cell: of x.shape[rows] positions.
        length: of a window.
        dim: the axis that is cut.
        rows: the axis of the windows.
    """
    last = x.shape[dim] - 1
    index = _along(cell.floor, x, rows) + _along(torch.arange(length, device=x.device), x, dim)
    below = torch.take_along_dim(x, index, dim)
    return _blend(below, torch.take_along_dim(x, (index + 1).clamp(max=last), dim), _along(cell.fraction, x, rows))


def filter_windows(phi: Tensor, cell: Cell, length: int) -> Tensor:
    """Filters cut out of a condensed filter: K[n, m, l] = blend of phi[m] at t_n + l.

    Args:
        phi: (M*, L*).
        cell: of N positions.
        length: L.

    Returns:
        (N, M*, L).
    """
    ramp = torch.arange(length + 1, device=phi.device)
    index = (cell.floor[:, None] + ramp).clamp(max=phi.shape[1] - 1)  # (N, L + 1)
    # An embedding: on a CPU its gradient is several times as fast as that of indexing.
    rows = torch.nn.functional.embedding(index, phi.t())  # (N, L + 1, M*)
    return _blend(rows[:, :-1], rows[:, 1:], cell.fraction[:, None, None]).transpose(1, 2)


def _along(values: Tensor, x: Tensor, dim: int) -> Tensor:
    """(n,) as a tensor that broadcasts along one axis of x."""
    return values.view([-1 if axis == dim % x.ndim else 1 for axis in range(x.ndim)])


def _blend(below: Tensor, above: Tensor, fraction: Tensor) -> Tensor:
    """Exactly `below` at 0 and `above` at 1; in the precision of positions, whatever autocast made of the values."""
    if below.dtype == fraction.dtype:
        return torch.lerp(below, above, fraction)
    return torch.lerp(below.to(fraction.dtype), above.to(fraction.dtype), fraction).to(below.dtype)
