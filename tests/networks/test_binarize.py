import pytest
import torch

from networks import InputError
from networks.binarize import Sign, sign

GRID = [-1.5, -1.0, -0.75, -0.5, -0.0, 0.0, 0.25, 1.0]


@pytest.mark.parametrize(
    ("at_zero", "expected"), [(0, [-1, -1, -1, -1, 0, 0, 1, 1]), (1, [-1, -1, -1, -1, 1, 1, 1, 1])]
)
def test_forward_and_triangular_gradient_on_a_grid(at_zero, expected):
    x = torch.tensor(GRID, requires_grad=True)
    y = sign(x, at_zero)
    assert y.tolist() == expected
    y.backward(torch.full_like(y, 3.0))
    assert x.grad.tolist() == [0, 0, 1.5, 3, 6, 6, 4.5, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_module_keeps_the_dtype(dtype):
    assert Sign(at_zero=1)(torch.zeros(2, dtype=dtype)).dtype == dtype


def test_refuses_other_values_at_zero():
    with pytest.raises(InputError, match="0 or 1, got -1"):
        Sign(at_zero=-1)


@pytest.mark.parametrize("at_zero", [0, 1])
def test_window_gradient_is_one_inside_and_cuts_the_end_points(at_zero):
    x = torch.tensor([-2, -1, -0.999, -0.5, -0.0, 0.0, 0.5, 0.999, 1, 2], requires_grad=True)
    y = sign(x, at_zero, gradient="window")
    assert y.tolist() == [-1, -1, -1, -1, at_zero, at_zero, 1, 1, 1, 1]
    y.backward(torch.arange(1.0, 11))
    assert x.grad.tolist() == [0, 0, 3, 4, 5, 6, 7, 8, 0, 0]
