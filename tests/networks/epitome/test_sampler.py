"""The sampler against tent kernels and plain slicing; gradients against finite differences."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from networks.epitome.sampler import cyclic_cell, expand, filter_windows, fold, window_cell, windows


def double(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def tent(t):
    return (1 - t.abs()).clamp(min=0)


def cyclic_matrix(positions, length, n):
    """(length, n): the periodic tent kernel k_n(p + u - u'), summed over enough periods (spec 3.1)."""
    row = torch.arange(length)
    at = positions[row // n] + (row % n)
    periods = torch.arange(-8, 9) * n
    return tent(at[:, None, None] - torch.arange(n)[None, :, None] + periods).sum(-1)


def test_expand_is_the_periodic_tent_kernel():
    e = double(5, 3)
    positions = torch.tensor([0.3, 4.7, -1.25, 11.5], dtype=torch.float64)
    for length in (16, 18, 20):
        blended = expand(e, cyclic_cell(positions), length, 0)
        torch.testing.assert_close(blended, cyclic_matrix(positions, length, 5) @ e, rtol=0, atol=1e-12)


def test_windows_are_the_clamped_tent_kernel():
    phi = double(3, 12)
    positions = torch.tensor([0.0, 0.6, 3.99, 7.0, -2.0, 9.5], dtype=torch.float64)
    filters = filter_windows(phi, window_cell(positions, 7), 5)
    at = positions.clamp(0, 7)[:, None] + torch.arange(5)
    kernel = tent(at[..., None] - torch.arange(12))  # (N, L, L*)
    torch.testing.assert_close(filters, torch.einsum("nlj,mj->nml", kernel, phi), rtol=0, atol=1e-12)


def test_integer_positions_are_slices_and_go_round():
    e = torch.randn(6, 4)
    rolled = expand(e, cyclic_cell(torch.tensor([2.0])), 6, 0)
    assert rolled.equal(e.roll(-2, 0))
    assert expand(e, cyclic_cell(torch.tensor([2.0 + 6])), 6, 0).equal(rolled)
    assert expand(e, cyclic_cell(torch.tensor([2.0 - 6])), 6, 0).equal(rolled)
    assert filter_windows(e.t(), window_cell(torch.tensor([3.0, 0.0, 2.0]), 3), 3).equal(
        torch.stack([e.t()[:, s : s + 3] for s in (3, 0, 2)])
    )


@pytest.mark.parametrize("length", [4, 7, 8, 12])
def test_positions_of_zero_repeat(length):
    e = torch.randn(2, 4)
    repeated = e.repeat(1, 3)[:, :length]
    assert expand(e, None, length, 1).equal(repeated)
    assert expand(e, cyclic_cell(torch.zeros(-(-length // 4))), length, 1).equal(repeated)


def test_axes_may_be_sampled_in_any_order():
    e, across, along = double(4, 7), torch.tensor([0.4, 2.6]).double(), torch.tensor([1.3] * 8).double()
    cell = window_cell(along, 2)
    first = windows(expand(e, cyclic_cell(across), 8, 0), cell, 5, 1, 0)
    one = window_cell(along[:4], 2)
    torch.testing.assert_close(expand(windows(e, one, 5, 1, 0), cyclic_cell(across), 8, 0), first, rtol=0, atol=1e-12)


def test_linear_in_the_epitome():
    one, two, cell = double(5, 2), double(5, 2, seed=1), cyclic_cell(torch.tensor([0.3, 3.9]).double())
    mixed = expand(2 * one - 3 * two, cell, 9, 0)
    torch.testing.assert_close(mixed, 2 * expand(one, cell, 9, 0) - 3 * expand(two, cell, 9, 0))


@given(
    n=st.integers(1, 6),
    length=st.integers(1, 20),
    seed=st.integers(0, 99),
    plain=st.booleans(),
    dim=st.sampled_from([0, 1, -1, -2]),
)
@settings(max_examples=60)
def test_fold_is_the_transpose_of_expand(n, length, seed, plain, dim):
    """<x, expand(e)> = <fold(x), e>: why a layer may fold its input instead of repeating its weight."""
    blocks = -(-length // n)
    cell = None if plain else cyclic_cell(3 * n * double(blocks, seed=seed + 1))
    sizes = [[length, 3], [n, 3]]
    if dim in (1, -1):
        sizes = [size[::-1] for size in sizes]
    x, e = double(*sizes[0], seed=seed), double(*sizes[1], seed=seed + 2)
    left = (x * expand(e, cell, length, dim)).sum()
    torch.testing.assert_close(left, (fold(x, cell, n, dim) * e).sum())


def test_gradients_of_values_and_positions():
    e = double(4, 3).requires_grad_()
    p = torch.tensor([0.3, 2.6, -1.4], dtype=torch.float64, requires_grad=True)
    x = double(10, 3).requires_grad_()
    assert gradcheck(lambda e, p: expand(e, cyclic_cell(p), 10, 0), (e, p))
    assert gradcheck(lambda x, p: fold(x, cyclic_cell(p), 4, 0), (x, p))


def test_gradients_of_windows_along_one_to_three_axes():
    phi = double(3, 9).requires_grad_()
    t = torch.tensor([0.2, 1.7, 4.5], dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda phi, t: filter_windows(phi, window_cell(t, 5), 4), (phi, t))
    e = double(2, 3, 5, 6).requires_grad_()
    p = torch.tensor([[0.3, 1.2, 0.4], [1.6, 0.7, 2.5]], dtype=torch.float64, requires_grad=True)

    def block(e, p):
        w = expand(e, cyclic_cell(p[:, 0]), 4, 0)
        rows = p.repeat_interleave(2, 0)
        w = windows(w, window_cell(rows[:, 1], 2), 3, 2, 0)
        return windows(w, window_cell(rows[:, 2], 3), 3, 3, 0)

    assert gradcheck(block, (e, p))


def test_the_clamp_lets_gradients_through_and_never_leaves_the_bounds():
    positions = torch.tensor([-0.3, 0.0, 2.5, 7.0, 7.1], requires_grad=True)
    cell = window_cell(positions, 7)
    inside = cell.floor + cell.fraction
    assert inside.tolist() == [0, 0, 2.5, 7, 7]
    assert (cell.floor >= 0).all()
    assert (cell.floor <= 6).all()
    inside.sum().backward()
    assert positions.grad.tolist() == [1] * 5


@given(positions=st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=8), last=st.integers(0, 1400))
def test_windows_stay_inside_exactly(positions, last):
    positions = torch.tensor(positions)
    cell = window_cell(positions, last)
    assert (cell.floor + cell.fraction).equal(positions.clamp(0, last))
    assert (cell.floor >= 0).all()
    assert (cell.floor <= max(last - 1, 0)).all()


def test_the_derivative_at_integers_is_one_sided():
    """To the right inside, and to the left at the upper bound, where there is nothing to the right (spec 3.2)."""
    phi = torch.tensor([[1.0, 3.0, 8.0, 20.0]], dtype=torch.float64)
    t = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64, requires_grad=True)
    filter_windows(phi, window_cell(t, 3), 1).sum().backward()
    assert t.grad.tolist() == [2.0, 5.0, 12.0]


def test_a_position_is_found_again():
    """Spec 13.7: target sampled at 7.3, start 7.9, Adam 0.02, 400 steps."""
    phi = double(1, 64)
    target = filter_windows(phi, window_cell(torch.tensor([7.3]).double(), 56), 8)
    t = torch.nn.Parameter(torch.tensor([7.9], dtype=torch.float64))
    optimizer = torch.optim.Adam([t], 0.02)
    for _ in range(400):
        optimizer.zero_grad()
        ((filter_windows(phi, window_cell(t, 56), 8) - target) ** 2).mean().backward()
        optimizer.step()
    assert abs(t.item() - 7.3) < 1e-6
