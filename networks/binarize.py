"""sign() with its straight-through gradients, and the binary activation made of it."""

from typing import Literal

import torch
from torch import Tensor, nn

from networks.errors import InputError

Gradient = Literal["triangle", "window"]


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, at_zero: int, gradient: Gradient) -> Tensor:
        # copy_: torch.export of 2.4 refuses to change in place what `to` gave
        return torch.empty_like(x).copy_(x >= 0).mul_(2).sub_(1) if at_zero else x.sign()

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.gradient = inputs[2]

    @staticmethod
    def backward(ctx, *grad_outputs):
        (x,) = ctx.saved_tensors
        if ctx.gradient == "window":  # that of hardtanh, in one pass
            return torch.ops.aten.hardtanh_backward(grad_outputs[0], x, -1, 1), None, None
        return grad_outputs[0] * (2 * (1 - x.abs().clamp(max=1))), None, None


def sign(x: Tensor, at_zero: int = 0, gradient: Gradient = "triangle") -> Tensor:
    """Sign with a straight-through pseudo-gradient, not zero for -1 < x < 1.

    forward:            y = -1 for x < 0, `at_zero` for x = 0, +1 for x > 0 (of NaN a number too)
    backward, triangle: dL/dx = dL/dy * 2 * (1 - min(|x|, 1)), as in Bi-Real Net (Liu et al., ECCV 2018); 2 at zero
    backward, window:   dL/dx = dL/dy where |x| < 1, else 0 (Hubara et al., NeurIPS 2016); the end points are cut

    Args:
        x: any shape.
        at_zero: 0 as in biprop's release, where an exact zero stays zero, or 1 for strictly binary outputs.
        gradient: shape of the pseudo-gradient.

    Returns:
        Tensor of x's shape and dtype, values in {-1, +1}, and 0 where x is exactly 0 and `at_zero` is 0.
    """
    return _Sign.apply(x, at_zero, gradient)


class Sign(nn.Module):
    """Binary activation: `sign` as a module.

    Raises:
        InputError: `at_zero` is neither 0 nor 1.
    """

    def __init__(self, at_zero: int = 0) -> None:
        super().__init__()
        if at_zero not in (0, 1):
            raise InputError(f"at_zero is 0 or 1, got {at_zero!r}")
        self.at_zero = at_zero

    def forward(self, x: Tensor) -> Tensor:
        return sign(x, self.at_zero)

    def extra_repr(self) -> str:
        return f"at_zero={self.at_zero}"
