"""Convolution of each sample with the kernel of the expert that it chose, and its gradients, in either of two schemes.

Per sample, the literal one: copies the kernel of each sample and convolves once, with B * G groups. Nothing has to know
which kernels they are, so no step waits for a GPU.

Per expert: copies the samples of each expert and convolves once for each expert in use, as an ordinary layer would. The
host has to know who chose what. On a CPU it is the faster one where kernels are large, see `per_expert_pays`.

The gate's gradient compares every expert with the gradient R_b of the kernel of sample b, of which ordinary operations
give the sum. N further convolutions would give <Theta_i, R_b> without it, and cost N / 3 of a training step. R_b itself
takes no more multiplications than the sum, and each comparison P more, where a convolution has P H' W': so both schemes
make it and keep nothing, per expert for a few samples at a time.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv2d_weight

from networks.binarize import sign

SMALL_KERNEL = 1 << 16  # numbers
AT_ONCE = 1 << 20  # numbers of R that are made at once: 4 MiB stay in a cache


class Geometry(NamedTuple):
    """How a kernel is applied, in the order of F.conv2d."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


def per_expert_pays(x: Tensor, kernel_size: int) -> bool:
    """Whether to compute per expert: kernels of P numbers are too large to be copied and laid out for each sample.

    Without gradients always. A GPU would have to wait for the gate's choice, so there only under torch.inference_mode,
    as Lightning evaluates: under no_grad a training step may ask a teacher. Never where there are no values.
    """
    if x.is_meta or isinstance(x, (FakeTensor, FunctionalTensor)):  # the latter in torch.export of 2.4
        return False
    if x.device.type == "cpu":
        return kernel_size > SMALL_KERNEL or not torch.is_grad_enabled()
    return torch.is_inference_mode_enabled()


def routed_conv2d(
    x: Tensor, experts: Tensor, phi: Tensor, geometry: Geometry, binary: bool, per_expert: bool
) -> Tensor:
    """y_b = conv2d(x_b, K_e) for the e where phi_be = 1; K_i = sign(Theta_i), +1 for 0, or Theta_i if not binary.

    Backward, with R_b the gradient of sample b's kernel, masked where |Theta_e| >= 1 if binary: dL/dTheta_i is the sum
    of R_b over the samples that chose i, exactly zero where there is none, and dL/dphi_bi = <Theta_i, R_b> for all i.

    Args:
        x: (B, C, H, W).
        experts: Theta, (N, O, C / G, k, k).
        phi: one-hot, (B, N).
        per_expert: the scheme; results are the same but for rounding.

    Returns:
        (B, O, H', W') in x's memory format, and under autocast of its dtype, else of x's.
    """
    device = x.device.type
    if x.dtype != torch.float64 and torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        x = x.to(torch.get_autocast_dtype(device))
    apply = _uncompiled if per_expert else _RoutedConv2d.apply
    y: Tensor = apply(x, experts, phi, geometry, binary, per_expert)
    inner = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return y.contiguous(memory_format=torch.channels_last if inner else torch.contiguous_format)


class _RoutedConv2d(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, experts: Tensor, phi: Tensor, geometry: Geometry, binary: bool, per_expert: bool) -> Tensor:
        chosen = phi.argmax(-1)
        if not per_expert:
            kernels = _kernels(experts, binary, x.dtype)  # N signs, not B
            return convolve_each(x, kernels.index_select(0, chosen), geometry)
        y = x.new_empty(0)
        for i, samples in _samples_of_experts(chosen, len(experts)):
            part = F.conv2d(x[samples], _kernels(experts[i], binary, x.dtype), None, *geometry)
            if not len(y):
                y = part.new_empty(len(x), *part.shape[1:])
            y[samples] = part
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, experts, phi, ctx.geometry, ctx.binary, ctx.per_expert = inputs
        ctx.save_for_backward(x, experts, phi.argmax(-1))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, experts, chosen = ctx.saved_tensors
        scheme = _gradients_per_expert if ctx.per_expert else _gradients_per_sample
        return *scheme(x, experts, chosen, grad_outputs[0], ctx.geometry, ctx.binary), None, None, None


_uncompiled = torch.compiler.disable(_RoutedConv2d.apply)  # its sizes change with every batch


def convolve_each(x: Tensor, kernels: Tensor, geometry: Geometry) -> Tensor:
    """Each sample with its own kernel: x (B, C, H, W), kernels (B, O, C / G, k, k); returns (B, O, H', W')."""
    if _pointwise(kernels, geometry):
        return _matrices(kernels, geometry).bmm(_matrices(x, geometry)).view(len(x), -1, *x.shape[2:])
    y = F.conv2d(_side_by_side(x), kernels.flatten(0, 1), None, *geometry[:3], len(x) * geometry.groups)
    return y.view(len(x), -1, *y.shape[2:])


def _gradients_per_sample(
    x: Tensor, experts: Tensor, chosen: Tensor, g: Tensor, geometry: Geometry, binary: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dx, residual = _gradients_of_each(x, _kernels(experts, binary, x.dtype).index_select(0, chosen), g, geometry)
    residual, flat = residual.view(len(x), -1).to(experts.dtype), experts.flatten(1)
    if binary:
        residual *= _inside(flat).index_select(0, chosen)
    phi = F.one_hot(chosen, len(experts)).to(experts.dtype)
    dexperts = phi.T @ residual  # adding by index would not add in the same order every time on a GPU
    return dx.view_as(x), dexperts.view_as(experts), _compare(residual.view(len(x), *experts.shape[1:]), experts)


def _gradients_of_each(x: Tensor, kernels: Tensor, g: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Of x, and of each sample's own kernel: R."""
    if _pointwise(kernels, geometry):
        of_y = _matrices(g, geometry)
        return _matrices(kernels, geometry).mT.bmm(of_y), of_y.bmm(_matrices(x, geometry).mT)
    dx, residual, _ = torch.ops.aten.convolution_backward(  # one call for both saves laying out what they share
        _side_by_side(g), _side_by_side(x), kernels.flatten(0, 1), None, *geometry[:3], False, (0, 0),
        len(x) * geometry.groups, (True, True, False),
    )  # fmt: skip
    return dx, residual


def _gradients_per_expert(
    x: Tensor, experts: Tensor, chosen: Tensor, g: Tensor, geometry: Geometry, binary: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dx, dexperts, dphi = torch.empty_like(x), torch.zeros_like(experts), experts.new_empty(len(x), len(experts))
    at_once = max(1, AT_ONCE // experts[0].numel())
    for i, samples in _samples_of_experts(chosen, len(experts)):
        kernel, inside = _kernels(experts[i], binary, x.dtype), _inside(experts[i]) if binary else None
        x_i, g_i = x[samples], g[samples]
        dx[samples] = conv2d_input(x_i.shape, kernel, g_i, *geometry)
        compared = []
        for x_b, g_b in zip(x_i.split(at_once), g_i.split(at_once), strict=True):
            residual = _residual(x_b, g_b, experts[i], geometry)
            if inside is not None:
                residual *= inside
            dexperts[i] += residual.sum(0) if len(residual) > 1 else residual[0]
            compared.append(_compare(residual, experts))
        dphi[samples] = torch.cat(compared)
    return dx, dexperts, dphi


def _residual(x: Tensor, g: Tensor, expert: Tensor, geometry: Geometry) -> Tensor:
    """R, (B, O, C / G, k, k), in the expert's dtype."""
    if _pointwise(expert, geometry):
        residual = _matrices(g, geometry).bmm(_matrices(x, geometry).mT)
    else:
        size = len(x) * len(expert), *expert.shape[1:]
        groups = len(x) * geometry.groups
        residual = conv2d_weight(_side_by_side(x), size, _side_by_side(g), *geometry[:3], groups)
    return residual.view(len(x), *expert.shape).to(expert.dtype)


def _compare(residual: Tensor, experts: Tensor) -> Tensor:
    """<Theta_i, R_b>, (B, N), summed by outputs: faster and more exact than one product as long as a kernel."""
    return residual.flatten(2).transpose(0, 1).bmm(experts.flatten(2).permute(1, 2, 0)).sum(0)


def _kernels(experts: Tensor, binary: bool, dtype: torch.dtype) -> Tensor:
    return (sign(experts, at_zero=1) if binary else experts).to(dtype)


def _inside(weight: Tensor) -> Tensor:
    return (weight.abs() < 1).to(weight.dtype)


def _samples_of_experts(chosen: Tensor, num_experts: int) -> list[tuple[int, Tensor]]:
    """Experts in use, and the places of their samples; of an empty batch an expert without any."""
    samples = chosen.argsort(stable=True).split(chosen.bincount(minlength=num_experts).tolist())
    return [(i, places) for i, places in enumerate(samples) if len(places)] or [(0, chosen)]


def _pointwise(kernels: Tensor, geometry: Geometry) -> bool:
    """Whether the layer is a matrix product."""
    return kernels.shape[-2:] == (1, 1) and geometry.stride == (1, 1) and geometry.padding == (0, 0)


def _matrices(t: Tensor, geometry: Geometry) -> Tensor:
    """Of each sample and group: (B, C, H, W) -> (B G, C / G, H W), (B, O, C / G, 1, 1) -> (B G, O / G, C / G)."""
    return t.flatten(2).reshape(len(t) * geometry.groups, t.shape[1] // geometry.groups, -1)


def _side_by_side(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (1, B C, H, W)."""
    return x.reshape(1, -1, *x.shape[2:])
