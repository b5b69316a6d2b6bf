"""What layers share whose weight is sampled from a smaller tensor, the epitome, at positions that may be learned.

Zhou et al., "Neural Epitome Search for Architecture-Agnostic Network Compression" (NES), ICLR 2020, arXiv 1907.05642.
Its body could not be read when this was written; what is not stated in its abstract, captions or the authors' code
(https://github.com/zhoudaquan/NES) is our choice, and says so.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from networks.complexity import Cost
from networks.epitome.learner import IndexLearner
from networks.errors import InputError, check_choice

Positions = Literal["none", "param", "feature", "feature_authors"]
Execution = Literal["auto", "materialised", "reuse"]


def check_bits(quantize_bits: int | None) -> None:
    """Refuse a width that is no width (InputError)."""
    if quantize_bits is not None and not 1 <= quantize_bits <= 16:
        raise InputError(f"{quantize_bits=} must lie in 1 to 16, or be None")


def check_channels(x: Tensor, axis: int, channels: int) -> None:
    """Refuse inputs that folding would take and the ordinary layer would not (InputError)."""
    if x.shape[axis] != channels:
        raise InputError(f"the layer takes {channels} channels, and the input of {tuple(x.shape)} has {x.shape[axis]}")


def quantize(values: Tensor, bits: int) -> Tensor:
    """Values on 2^bits levels, evenly between the least and the largest; gradients go straight through.

    That is WSNet's linear quantisation of a condensed filter (Jin et al., ICML 2018); the error is at most half a step.
    """
    least, largest = values.detach().aminmax()
    step = ((largest - least) / (2**bits - 1)).clamp(min=torch.finfo(values.dtype).tiny)
    on_level = ((values.detach() - least) / step).round() * step + least
    return on_level + (values - values.detach())


class EpitomeLayer(nn.Module):
    """What epitome layers share: where positions come from, and which of them hold.

    Positions are None (all 0, plain repetition), the parameter `positions`, or made by an IndexLearner of the layer's
    input. Of a learner, the buffer `routing_map` follows the positions of training, mu * map + (1 - mu) * p, equally in
    all processes; in evaluation the map alone is read, so that outputs do not depend on the other samples.

    Attributes:
        epitome: the stored weights.
        positions: learned parameter, a constant after `freeze`, or None.
        bias: (O,), or None.
    """

    axis: int  # of the epitome, that is sampled
    epitome: nn.Parameter
    positions: Tensor | None
    bias: nn.Parameter | None
    routing_map: Tensor
    map_updates: Tensor

    def __init__(self, source: Positions, map_momentum: float, quantize_bits: int | None, execution: Execution) -> None:
        super().__init__()
        check_choice("positions", source, Positions)
        check_choice("execution", execution, Execution)
        if not 0 <= map_momentum < 1:
            raise InputError(f"{map_momentum=} must be at least 0 and less than 1")
        check_bits(quantize_bits)
        self.source, self.map_momentum = source, map_momentum
        self.quantize_bits, self.execution = quantize_bits, execution
        self.learner: IndexLearner | None = None

    def _place(self, initial: Tensor, channels: int, dims: int, depthwise_learner: bool) -> None:
        """Make positions, beginning at `initial`, or a learner of them for inputs of so many channels and axes."""
        self.register_parameter("positions", nn.Parameter(initial) if self.source == "param" else None)
        if self.source in ("feature", "feature_authors"):
            authors = self.source == "feature_authors"
            self.learner = IndexLearner(channels, initial.numel(), dims, depthwise_learner, last_norm=authors)
            self.register_buffer("routing_map", initial)
            self.register_buffer("map_updates", torch.zeros((), dtype=torch.int64))

    def route(self, x: Tensor | None = None) -> Tensor | None:
        """Positions for this forward, None where they are all 0; without an input those of evaluation."""
        if self.learner is None:
            return self.positions
        if not self.training or x is None:
            return self.routing_map
        positions = self._from_learner(self.learner(x))
        self._follow(positions.detach())
        return positions

    def _from_learner(self, z: Tensor) -> Tensor:
        raise NotImplementedError

    def _follow(self, positions: Tensor) -> None:
        """Move the routing map towards the positions of this step; the first time it takes them."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            positions = positions.clone()
            torch.distributed.all_reduce(positions)
            positions /= torch.distributed.get_world_size()
        kept = torch.where(self.map_updates > 0, self.map_momentum, 0.0).to(positions.dtype)
        self.routing_map.copy_(torch.lerp(positions, self.routing_map, kept))
        self.map_updates += 1

    def values(self) -> Tensor:
        """The epitome as it is computed with: quantised, if it is."""
        return self.epitome if self.quantize_bits is None else quantize(self.epitome, self.quantize_bits)

    @property
    def weight(self) -> Tensor:
        """The weight that the layer acts as in evaluation, in the shape of the ordinary layer's."""
        return self.sample(self.values(), self.route())

    def sample(self, epitome: Tensor, positions: Tensor | None) -> Tensor:
        """The weight that an epitome gives at these positions."""
        raise NotImplementedError

    def offsets(self) -> Tensor | None:
        """How far positions are from where plain sampling has them, in entries; None where nothing can move."""
        return self.route()

    def coverage(self) -> Tensor:
        """How often each entry of the epitome is read for the weight, in its shape; parts where a position is none."""
        with torch.enable_grad():
            epitome = torch.zeros_like(self.epitome, requires_grad=True)
            return torch.autograd.grad(self.sample(epitome, self.route()).sum(), epitome)[0]

    def reads(self) -> Tensor:
        """How often the entries along the sampled axis are read, on the mean over the others, (n,)."""
        coverage = self.coverage()
        return coverage.mean([dim for dim in range(coverage.ndim) if dim != self.axis])

    @torch.no_grad()
    def freeze(self) -> None:
        """Make positions constants and drop the learner; from then on training and evaluation compute the same."""
        if self.source == "none":
            return
        positions = self.route()
        assert positions is not None
        del self.positions
        self.register_buffer("positions", positions.detach().clone())
        if self.learner is not None:
            del self.learner, self.routing_map, self.map_updates
            self.learner = None

    def materialise(self) -> nn.Module:
        """An ordinary layer with the weight of evaluation."""
        raise NotImplementedError

    def _fill(self, layer: nn.Module) -> nn.Module:
        with torch.no_grad():
            layer.weight = nn.Parameter(self.weight.detach().clone())
            if self.bias is not None:
                layer.bias = nn.Parameter(self.bias.detach().clone())
        return layer.train(self.training)

    def _cost(self, dense: int, flops: int, overhead: int) -> Cost:
        """Cost with `flops` multiply-adds, of a layer whose ordinary form has `dense` weights."""
        bias = 0 if self.bias is None else self.bias.numel()
        positions = self.route()
        routing = 0 if positions is None else positions.numel()
        bits = 32 if self.quantize_bits is None else self.quantize_bits
        levels = 0 if self.quantize_bits is None else 64  # least and step
        return Cost(
            params=self.epitome.numel() + bias,
            dense_params=dense + bias,
            flops=flops,
            kept_flops=flops,
            overhead_flops=overhead,
            routing_floats=routing,
            size_bits=bits * self.epitome.numel() + levels + 32 * (bias + routing),
        )
