"""Convolution and linear layer whose weight repeats an epitome along one channel axis (NES)."""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from networks.complexity import Cost
from networks.epitome.base import EpitomeLayer, Execution, Positions, check_channels
from networks.epitome.sampler import Cell, cyclic_cell, expand, fold, window_cell, windows
from networks.errors import InputError, check_choice

Share = Literal["out", "in"]
Init = Literal["zero", "spread"]

PAYS = 5


def epitome_channels(multiplier: float, channels: int) -> int:
    """ceil(m * channels), with room for the rounding of floats: 0.7 * 10 is 7."""
    if not 0 < multiplier <= 1:
        raise InputError(
            f"multiplier={multiplier}: an epitome has more than 0 and at most 1 times the channels of its weight"
        )
    return math.ceil(multiplier * channels - 1e-9)


class _ChannelLayer(EpitomeLayer):
    """A layer whose epitome is repeated along one channel axis; its operation is what subclasses add.

    The weight (O, I, ...) is made of R = ceil(1 / multiplier) blocks along filters (`share="out"`) or input channels
    (`share="in"`), each a copy of the epitome rolled by its position. Reuse then gives the same as the weight: "in"
    rolls back and adds up the blocks of the input ("channel wrapping"), "out" repeats and rolls the output.
    """

    channels: int  # axis of channels in inputs and outputs
    share: Share

    def operate(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The ordinary layer's operation."""
        raise NotImplementedError

    def _build(
        self, size: tuple[int, ...], multiplier: float, share: Share, inner: tuple[int, ...], bias: bool
    ) -> None:
        """Make epitome and bias for a weight of a size; `inner` is the epitome's size behind its channels."""
        check_choice("share", share, Share)
        self.share, self.size = share, size
        self.axis = 0 if share == "out" else 1
        shape = [*size[:2], *inner]
        shape[self.axis] = epitome_channels(multiplier, size[self.axis])
        if math.prod(shape) > math.prod(size):
            raise InputError(
                f"an epitome of {'x'.join(map(str, shape))} is larger than its weight of {'x'.join(map(str, size))}: "
                "take a smaller multiplier or epitome_size"
            )
        self.epitome = nn.Parameter(torch.empty(shape))
        nn.init.normal_(self.epitome, std=math.sqrt(2 / (size[0] * math.prod(size[2:]))))  # of the target's fan-out
        self.register_parameter("bias", nn.Parameter(torch.zeros(size[0])) if bias else None)

    def _place_blocks(self, init: Init, depthwise_learner: bool) -> None:
        """Make a position along channels for each block, and two along space where the epitome is larger."""
        check_choice("init", init, Init)
        n, whole = self.epitome.shape[self.axis], self.size[self.axis]
        self.blocks = -(-whole // n)
        self._saved = (1 - n / whole) * self.size[1 - self.axis]  # multiply-adds for each number that is moved
        if self.source == "feature_authors" and self.blocks == 1:
            self.source = "none"  # as released
        if self.source == "feature_authors" and not self._flat():
            raise InputError("positions='feature_authors' are along channels alone: leave epitome_size out")
        along = torch.arange(self.blocks) * (n / self.blocks if init == "spread" else 0.0)
        still = torch.zeros(self.blocks)
        initial = along if self._flat() else torch.stack([along, still, still], 1)
        self._place(initial, self.size[1], len(self.size) - 2, depthwise_learner)

    def _cell(self, positions: Tensor) -> Cell:
        """Of the shared axis."""
        along = positions if positions.ndim == 1 else positions[:, 0]
        if self.source == "feature_authors":  # c * E + (1 - c) * roll(E), beyond one slot where c < 0
            return Cell(torch.zeros_like(along, dtype=torch.int64), along)
        return cyclic_cell(along)

    def _from_learner(self, z: Tensor) -> Tensor:
        if self.source == "feature_authors":
            return 1 - z
        n, shares = self.epitome.shape[self.axis], z.sigmoid()
        if self._flat():
            return n * shares
        spans = [e - k for e, k in zip(self.epitome.shape[2:], self.size[2:], strict=True)]
        return torch.stack([shares[i::3] * reach for i, reach in enumerate((n, *spans))], 1)

    def _flat(self) -> bool:
        """Whether the epitome is as large as the kernel, so that positions are along channels alone."""
        return self.epitome.shape[2:] == self.size[2:]

    def offsets(self) -> Tensor | None:
        positions = self.route()
        if positions is None or self._flat():
            return positions
        last = [e - k for e, k in zip(self.epitome.shape[2:], self.size[2:], strict=True)]
        inside = [positions[:, i + 1].clamp(0, reach) for i, reach in enumerate(last)]
        return torch.stack([positions[:, 0], *inside], 1)

    def sample(self, epitome: Tensor, positions: Tensor | None) -> Tensor:
        length = self.size[self.axis]
        weight = expand(epitome, None if positions is None else self._cell(positions), length, self.axis)
        if self._flat():
            return weight
        if positions is None:
            return weight[:, :, : self.size[2], : self.size[3]]
        n = self.epitome.shape[self.axis]
        for dim in (2, 3):
            at = positions[:, dim - 1].repeat_interleave(n)[:length]
            cell = window_cell(at, self.epitome.shape[dim] - self.size[dim])
            weight = windows(weight, cell, self.size[dim], dim, self.axis)
        return weight

    def reuses(self, positions: Tensor | None, x: Tensor) -> bool:
        """Whether this forward folds inputs or repeats outputs instead of making the weight.

        "auto" makes it where positions are not all 0: blending inputs or outputs moves more memory than blending the
        weight. Else reuse pays wherever channels are whole planes. Where they are the innermost axis, its blocks are
        short runs of memory, and it pays if it saves PAYS multiply-adds for each number and block (measured on two
        cores, benchmarks/epitome.py).
        """
        if self.execution != "auto" or not self._flat():
            return self.execution == "reuse" and self._flat()
        if positions is not None:
            return False
        planes = self.channels == -3 and x.is_contiguous()
        return planes or self._saved >= PAYS * self.blocks

    def forward(self, x: Tensor) -> Tensor:
        check_channels(x, self.channels, self.size[1])
        positions = self.route(x)
        if not self.reuses(positions, x):
            return self.operate(x, self.sample(self.values(), positions), self.bias)
        cell = None if positions is None else self._cell(positions)
        if self.share == "in":
            return self.operate(fold(x, cell, self.epitome.shape[1], self.channels), self.values(), self.bias)
        y = expand(self.operate(x, self.values(), None), cell, self.size[0], self.channels)
        return y if self.bias is None else y + self.bias.to(y.dtype).view(-1, *[1] * (-1 - self.channels))

    def deployed_cost(self, x: Tensor, y: Tensor) -> Cost:
        """Multiply-adds are epitome entries times output places: the authors' convention; folding is overhead."""
        places_in, places_out = x.numel() // self.size[1], y.numel() // self.size[0]
        still = self.route() is None
        if self.share == "in":
            overhead = places_in * (self.size[1] - self.epitome.shape[1] if still else 2 * self.size[1])
        else:
            overhead = 0 if still else 2 * places_out * self.size[0]
        return self._cost(math.prod(self.size), self.epitome.numel() * places_out, overhead)


class EpitomeConv2d(_ChannelLayer):
    """nn.Conv2d whose weight is sampled from an epitome, at one position for each repetition (NES).

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, bias: as in nn.Conv2d.
        multiplier: m, 0 < m <= 1; the epitome has ceil(m * channels) along the shared axis.
        share: the axis that is repeated, "out" (filters) or "in" (input channels).
        epitome_size: (eh, ew), at least the kernel's; larger ones are cut at a position in each block too, clamped.
            None is the kernel's, the paper's for 1x1. (Larger ones: ours, no source shows them running.)
        positions: "none" (all 0, what every released model has), "param" (learned; our default), "feature" (from the
            layer's input, see IndexLearner), or "feature_authors", as released: a curiosity, see there.
        init: positions begin at 0, or "spread": block a at a * n / R of an axis of n.
        map_momentum: mu of the routing map with a learner; 0 keeps the last batch's positions, as released.
        depthwise_learner: a cheaper learner. Ours.
        quantize_bits: compute with the epitome on 2^bits levels; None is as stored.
        execution: "materialised" makes the weight, "reuse" folds inputs or repeats outputs, with the same result;
            "auto" takes the faster, see `reuses`.

    Shape:
        x: (B, I, H, W); returns (B, O, H', W'). `epitome` is (o, I, eh, ew) or (O, i, eh, ew); `positions` are (R,), or
        (R, 3), channel, y, x, where the epitome is larger than the kernel.

    Raises:
        InputError: a multiplier outside (0, 1], an epitome that is larger than the weight or smaller than the kernel.
    """

    channels = -3

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        bias: bool = True,
        *,
        multiplier: float = 0.5,
        share: Share = "in",
        epitome_size: tuple[int, int] | None = None,
        positions: Positions = "param",
        init: Init = "zero",
        map_momentum: float = 0.97,
        depthwise_learner: bool = False,
        quantize_bits: int | None = None,
        execution: Execution = "auto",
    ) -> None:
        super().__init__(positions, map_momentum, quantize_bits, execution)
        kernel = (kernel_size, kernel_size) if isinstance(kernel_size, int) else tuple(kernel_size)
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel
        self.stride, self.padding, self.dilation = stride, padding, dilation
        inner = kernel if epitome_size is None else tuple(epitome_size)
        if any(e < k for e, k in zip(inner, kernel, strict=True)):
            raise InputError(f"epitome_size={inner} is smaller than the kernel of {kernel}")
        self._build((out_channels, in_channels, *kernel), multiplier, share, inner, bias)
        self._place_blocks(init, depthwise_learner)

    def operate(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation)

    def materialise(self) -> nn.Conv2d:
        """An nn.Conv2d with the weight of evaluation."""
        layer = nn.Conv2d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,  # type: ignore[arg-type]
            self.stride,
            self.padding,
            self.dilation,
            bias=self.bias is not None,
            device="meta",
        )
        return self._fill(layer)  # type: ignore[return-value]

    def extra_repr(self) -> str:
        shape = "x".join(map(str, self.epitome.shape))
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, epitome={shape}, share={self.share}, positions={self.source}"
        )


class EpitomeLinear(_ChannelLayer):
    """nn.Linear whose weight is sampled from an epitome; as EpitomeConv2d with a 1x1 kernel.

    `share="in"` folds the input vector. `share="out"` repeats outputs, which ties the scores of classes: it is for
    layers inside a network, and `networks.epitome.apply` refuses it for the last.

    Args:
        in_features, out_features, bias: as in nn.Linear.
        multiplier, share, positions, init, map_momentum, depthwise_learner, quantize_bits, execution: as in
            EpitomeConv2d.

    Shape:
        x: (..., I); returns (..., O).

    Raises:
        InputError: a multiplier outside (0, 1].
    """

    channels = -1

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        multiplier: float = 0.5,
        share: Share = "in",
        positions: Positions = "param",
        init: Init = "zero",
        map_momentum: float = 0.97,
        depthwise_learner: bool = False,
        quantize_bits: int | None = None,
        execution: Execution = "auto",
    ) -> None:
        super().__init__(positions, map_momentum, quantize_bits, execution)
        self.in_features, self.out_features = in_features, out_features
        self._build((out_features, in_features), multiplier, share, (), bias)
        self._place_blocks(init, depthwise_learner)

    def operate(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def route(self, x: Tensor | None = None) -> Tensor | None:
        return super().route(None if x is None else x.reshape(-1, self.in_features, 1, 1))

    def materialise(self) -> nn.Linear:
        """An nn.Linear with the weight of evaluation."""
        layer = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        return self._fill(layer)  # type: ignore[return-value]

    def extra_repr(self) -> str:
        shape = "x".join(map(str, self.epitome.shape))
        return f"{self.in_features}, {self.out_features}, epitome={shape}, share={self.share}, positions={self.source}"
