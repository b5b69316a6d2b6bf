"""WSNet's 1-D convolution, whose filters are windows of a condensed filter, and NES's learnable version of it."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from networks.complexity import Cost
from networks.epitome.base import EpitomeLayer, Execution, Positions, check_channels
from networks.epitome.sampler import Cell, filter_windows, fold, window_cell
from networks.errors import InputError


class EpitomeConv1d(EpitomeLayer):
    """nn.Conv1d whose N filters are overlapping windows of one condensed filter Phi (M* x L*).

    K[n, c, l] = Phi[c mod M*, t_n + l], with M* = ceil(M / C), L* = L + (N - 1) * S and t_n = n * S + delta_n. With all
    delta_n = 0 that is WSNet (Jin et al., ICML 2018, arXiv 1711.10067), bit for bit; learned delta_n are NES's
    learnable stride. Windows are clamped to Phi, positions straight through; all channels and repeats share them, so
    that the C blocks of input channels are added up before one convolution ("reuse").

    Args:
        in_channels (M), out_channels (N), kernel_size (L), stride, padding, dilation, bias: as in nn.Conv1d.
        sampling_stride: S, between the windows of consecutive filters.
        repeats: C, of Phi along input channels.
        shrink: rho >= 1; Phi gets the length max(L, ceil(L* / rho)), and windows begin evenly spread over it. Where
            that is L, all filters are the same. Ours, for NES's Table 5, whose rule is not known.
        positions: "param" learns delta, one for each filter (ours: no shape is stated), "none" is WSNet; with "feature"
            an IndexLearner gives delta = (L* - L) * (2 * sigmoid(z) - 1), which begins near 0 (ours).
        map_momentum, depthwise_learner, quantize_bits: as in EpitomeConv2d.
        execution: "reuse" ("auto" too) adds up input channels, "materialised" makes the whole weight.

    Shape:
        x: (B, M, T); returns (B, N, T'). `epitome` is Phi (M*, L*), `positions` are delta (N,), in entries of Phi.

    Raises:
        InputError: a stride, repeats or shrink that cannot be, or a Phi that is larger than the weight.
    """

    axis = 1

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int],
        stride: int | tuple[int] = 1,
        padding: int | tuple[int] | str = 0,
        dilation: int | tuple[int] = 1,
        bias: bool = True,
        *,
        sampling_stride: int = 1,
        repeats: int = 1,
        shrink: float = 1.0,
        positions: Positions = "param",
        map_momentum: float = 0.97,
        depthwise_learner: bool = False,
        quantize_bits: int | None = None,
        execution: Execution = "auto",
    ) -> None:
        super().__init__(positions, map_momentum, quantize_bits, execution)
        if positions == "feature_authors":
            raise InputError("positions='feature_authors' are for 2-D layers: the authors released nothing in 1-D")
        length = kernel_size if isinstance(kernel_size, int) else kernel_size[0]
        if sampling_stride < 1 or not 1 <= repeats <= in_channels or not 1 <= shrink < math.inf:
            raise InputError(
                f"{sampling_stride=} and {shrink=} must be at least 1, {repeats=} from 1 to the {in_channels} channels"
            )
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, (length,)
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.sampling_stride, self.repeats, self.shrink = sampling_stride, repeats, shrink
        full = length + (out_channels - 1) * sampling_stride
        shape = math.ceil(in_channels / repeats), max(length, math.ceil(full / shrink - 1e-9))
        if math.prod(shape) > out_channels * in_channels * length:
            raise InputError(
                f"a condensed filter of {shape[0]}x{shape[1]} is larger than its weight of "
                f"{out_channels}x{in_channels}x{length}: take a smaller sampling_stride or more repeats"
            )
        self.epitome = nn.Parameter(torch.empty(shape))
        nn.init.normal_(self.epitome, std=0.01)  # as SoundNet's
        self.register_parameter("bias", nn.Parameter(torch.zeros(out_channels)) if bias else None)
        self.last = shape[1] - length  # where the last window may begin
        self.spacing = sampling_stride if shape[1] == full else self.last / max(out_channels - 1, 1)  # of windows
        self._place(torch.zeros(out_channels), in_channels, 1, depthwise_learner)

    def _from_learner(self, z: Tensor) -> Tensor:
        return self.last * (2 * z.sigmoid() - 1)

    @property
    def starts(self) -> Tensor:
        """Where windows begin without offsets, (N,), never in less than float32, which holds them exactly."""
        dtype = torch.promote_types(self.epitome.dtype, torch.float32)
        return torch.arange(self.out_channels, dtype=dtype, device=self.epitome.device) * self.spacing

    def _cell(self, positions: Tensor | None) -> Cell:
        return window_cell(self.starts if positions is None else self.starts + positions, self.last)

    def filters(self, epitome: Tensor, positions: Tensor | None) -> Tensor:
        """The N windows of an epitome, (N, M*, L)."""
        (length,) = self.kernel_size
        if positions is None and self.last == (self.out_channels - 1) * self.sampling_stride:
            return epitome.unfold(1, length, self.sampling_stride).transpose(0, 1)
        return filter_windows(epitome, self._cell(positions), length)

    def sample(self, epitome: Tensor, positions: Tensor | None) -> Tensor:
        return self.filters(epitome, positions).repeat(1, self.repeats, 1)[:, : self.in_channels]

    def offsets(self) -> Tensor | None:
        """How far the window of each filter is from its start, (N,), in entries of Phi; None where none can move."""
        positions = self.route()
        if positions is None:
            return None
        floor, fraction = self._cell(positions)
        return floor + fraction - self.starts

    def forward(self, x: Tensor) -> Tensor:
        check_channels(x, -2, self.in_channels)
        positions = self.route(x)
        if self.execution == "materialised":
            weight = self.sample(self.values(), positions)
        else:
            weight = self.filters(self.values(), positions)
            x = fold(x, None, len(self.epitome), -2)
        return F.conv1d(x, weight, self.bias, self.stride, self.padding, self.dilation)

    def materialise(self) -> nn.Conv1d:
        """An nn.Conv1d with the weight of evaluation."""
        layer = nn.Conv1d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            bias=self.bias is not None,
            device="meta",
        )
        return self._fill(layer)  # type: ignore[return-value]

    def deployed_cost(self, x: Tensor, y: Tensor) -> Cost:
        """Multiply-adds of the one convolution behind the added-up channels, without product maps."""
        (length,), rows = self.kernel_size, len(self.epitome)
        flops = y.numel() * rows * length
        return self._cost(self.out_channels * self.in_channels * length, flops, x.shape[-1] * (self.in_channels - rows))

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, epitome={'x'.join(map(str, self.epitome.shape))}, "
            f"sampling_stride={self.sampling_stride}, repeats={self.repeats}, positions={self.source}"
        )


def integral_map_conv1d(
    x: Tensor, phi: Tensor, filters: int, kernel_size: int, sampling_stride: int, stride: int = 1
) -> Tensor:
    """WSNet's convolution without repeated products: an integral map of the product map (Jin et al. 2018).

    P[u, j] = <x[:, u], phi[:, j]>, I[u, j] = I[u-1, j-1] + P[u, j], and filter n at window start t gives
    I[t+L-1, n*S+L-1] - I[t-1, n*S-1]. That takes T * L* * M* multiply-adds instead of T' * N * L * M*. It is for
    reference: on real hardware the convolution with gathered filters is far faster.

    Args:
        x: (B, M*, T), padded, with repeated channels added up.
        phi: (M*, L*), with L* = L + (N - 1) * S.
        filters, kernel_size, sampling_stride: N, L and S.
        stride: of the convolution.

    Returns:
        (B, N, T').
    """
    products = torch.einsum("bmu,mj->buj", x, phi)
    integral = F.pad(products, (1, 0, 1, 0))  # a row and a column of zeros stand for negative indices
    for u in range(1, integral.shape[1]):
        integral[:, u, 1:] += integral[:, u - 1, :-1]
    t = torch.arange(0, x.shape[-1] - kernel_size + 1, stride, device=x.device)
    at = torch.arange(filters, device=x.device) * sampling_stride
    ends = integral[:, t[:, None] + kernel_size, at + kernel_size]
    return (ends - integral[:, t[:, None], at]).transpose(1, 2)
