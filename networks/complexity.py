"""What a network costs as deployed: parameters, FLOPs, BOPs and stored bits, layer by layer.

FLOPs and BOPs are multiply-adds, each counted once, for one input. A multiply-add is a BOP where weight and activation
both have one bit (`weight_bits`, `activation_bits` of the layer, 32 where absent), else a FLOP. Normalisation, pooling
and elementwise work count as nothing, as usual. What cannot be counted is unknown (None), never zero.
"""

import copy
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from networks.errors import InputError

NOT_CALLED = "its forward was not called"


@dataclass(frozen=True)
class Cost:
    """Cost of a layer or of a network; None is unknown.

    A layer whose forward does not show what it costs when deployed (pruned weights, folded epitomes, one expert of
    several) has a method `deployed_cost(x, y) -> Cost`: the cost of one call with input x and output y, both on the
    meta device with batch size 1. It stands for everything inside the layer.

    Attributes:
        params: stored weights and other parameters; of a ticket the kept weights only.
        dense_params: parameters of the same layer in its ordinary form.
        binary_params: those of `params` that have one bit.
        flops: multiply-adds with a real operand.
        bops: multiply-adds of one bit by one bit.
        kept_flops, kept_bops: those of `flops` and `bops` on weights that are kept; all where nothing is pruned.
        overhead_flops: side work that an ordinary layer does not have (gates, wrapping); not in `flops`.
        routing_floats: stored positions of epitomes; not in `params`.
        size_bits: stored bits: parameters by their width, masks, gains, positions, running statistics of normalisation.
    """

    params: int | None = 0
    dense_params: int | None = 0
    binary_params: int | None = 0
    flops: int | None = 0
    bops: int | None = 0
    kept_flops: int | None = 0
    kept_bops: int | None = 0
    overhead_flops: int | None = 0
    routing_floats: int | None = 0
    size_bits: int | None = 0

    def __add__(self, other: "Cost") -> "Cost":
        pairs = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(Cost)}
        return Cost(**{name: None if None in pair else sum(pair) for name, pair in pairs.items()})


@dataclass(frozen=True)
class LayerCost(Cost):
    """Cost of one layer; `uncounted` names what makes it unknown: operations, mostly."""

    name: str = ""
    type: str = ""
    output_size: tuple[int, ...] = ()
    uncounted: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report(Cost):
    """Cost of a network for one input of `input_size`, with that of its layers; `str()` is a table.

    `output_size` is without the batch, and empty where the output is not one tensor. `parts` are the sums over a
    detector's parts, of which `layers` has the layers.
    """

    input_size: tuple[int, ...] = ()
    output_size: tuple[int, ...] = ()
    layers: tuple[LayerCost, ...] = ()
    parts: tuple[LayerCost, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The report as plain types, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return _table(self)


def count(network: nn.Module, input_size: Sequence[int]) -> Report:
    """Count what a network costs as deployed, without running a multiplication or touching the network.

    A network whose forward depends on values, as a detector's, has a method `deployed_forward(x)` that runs the same
    layers on tensors of stated sizes; `cost_parts`, a mapping from the name of a part to a prefix of its layers' names;
    and in its modules `side_operations`, names of operations of unknown cost that it leaves out.

    Args:
        network: any module that takes one tensor.
        input_size: size of one input without the batch: (C, H, W) or (C, T).

    Returns:
        Report with a row for each layer that stores or computes something, in the network's order.

    Raises:
        InputError: the network does not accept such an input.
    """
    ledger, failure = _run(network, input_size)
    layers = tuple(ledger.rows(failure))
    total: Cost = sum(layers, Cost())
    prefixes: dict[str, str] = getattr(network, "cost_parts", {})
    return Report(
        **{f.name: getattr(total, f.name) for f in fields(Cost)},
        input_size=tuple(input_size),
        output_size=ledger.output_size.get(ledger.network, ()),
        layers=layers,
        parts=tuple(part for name, prefix in prefixes.items() if (part := _part(name, prefix, layers))),
    )


def _part(name: str, prefix: str, layers: tuple[LayerCost, ...]) -> LayerCost | None:
    """The sum over the layers of a part; None where there are none."""
    inside = [layer for layer in layers if layer.name.startswith(prefix)]
    return LayerCost(**asdict(sum(inside, Cost())), name=name) if inside else None


def output_sizes(network: nn.Module, input_size: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Size of what each module gives for one input, without the batch, by dotted name, in the network's order.

    Modules that were not called, or that do not give one tensor, are left out.

    Raises:
        InputError: the network does not accept such an input.
    """
    ledger, _ = _run(network, input_size)
    named = ledger.network.named_modules()
    return {name: ledger.output_size[module] for name, module in named if module in ledger.output_size}


def output_size(network: nn.Module, input_size: Sequence[int]) -> tuple[int, ...]:
    """Size of what a network gives for one input, without the batch; empty where that is not one tensor, or unknown.

    Raises:
        InputError: the network does not accept such an input.
    """
    output, _ = _forward(_on_meta(network).eval(), input_size)
    return tuple(output.shape[1:]) if isinstance(output, Tensor) else ()


def _run(network: nn.Module, input_size: Sequence[int]) -> tuple["_Ledger", tuple[str, ...]]:
    """The ledger of one forward on the meta device, and why it broke off."""
    twin = _on_meta(network).eval()
    ledger = _Ledger(twin)
    with ledger.counter, ledger:
        _, failure = _forward(twin, input_size)
    return ledger, failure


def _forward(twin: nn.Module, input_size: Sequence[int]) -> tuple[Any, tuple[str, ...]]:
    """What a network on the meta device gives for a batch of one, or why that depends on values."""
    dtype = next((p.dtype for p in twin.parameters() if p.is_floating_point()), None)
    forward = getattr(twin, "deployed_forward", twin)
    try:
        with torch.no_grad():
            return forward(torch.empty(1, *input_size, device="meta", dtype=dtype)), ()
    except Exception as error:
        reason = str(error).split("\n")[0]
        size = "x".join(map(str, input_size))
        if isinstance(error, NotImplementedError) or "meta" in reason:  # it depends on values
            return None, (reason,)
        raise InputError(f"{type(twin).__name__} does not accept an input of {size}: {reason}") from error


def _on_meta(network: nn.Module) -> nn.Module:
    """Copy of a network on the meta device; no weight is copied on the way."""

    def twin(tensor: Tensor) -> Tensor:
        empty = torch.empty_like(tensor, device="meta")
        return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty

    tensors = [*network.parameters(), *network.buffers()]
    tensors += [value for module in network.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    return copy.deepcopy(network, {id(tensor): twin(tensor) for tensor in tensors})


# Operations of aten that multiply and add, for which torch's counter has no formula.
_UNCOUNTED = re.compile(
    r"(mv|dot|vdot|addmv|addr|_int_mm|_trilinear|inverse|_native_multi_head_attention|_transformer_encoder_layer_fwd)$"
    r"|.*(linalg|cholesky|cdist|pdist|euclidean_dist|fft)"
)


class _Ledger(TorchDispatchMode):
    """Books every multiply-add to the innermost module that runs it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.counter = FlopCounterMode(display=False)
        self.open: list[tuple[nn.Module, int, list[int]]] = []  # module, count at entry, counts of modules inside
        self.macs: dict[nn.Module, int] = {}
        self.uncounted: dict[nn.Module, set[str]] = {}
        self.deployed: dict[nn.Module, Cost] = {}
        self.output_size: dict[nn.Module, tuple[int, ...]] = {}
        for module in network.modules():
            module.register_forward_pre_hook(self.enter)
            module.register_forward_hook(self.leave, with_kwargs=True)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.partition("::")
        known = name[0] in ("aten", "prim", "prims") and not _UNCOUNTED.match(name[2])
        if not known and self.open:
            self.uncounted.setdefault(self.open[-1][0], set()).add(func._schema.name)
        return func(*args, **(kwargs or {}))

    def macs_so_far(self) -> int:
        return self.counter.get_total_flops() // 2  # the counter takes a multiply-add for two

    def enter(self, module: nn.Module, args: Any) -> None:
        self.open.append((module, self.macs_so_far(), []))

    def leave(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        _, before, inside = self.open.pop()
        spent = self.macs_so_far() - before
        if self.open:
            self.open[-1][2].append(spent)
        self.macs[module] = self.macs.get(module, 0) + spent - sum(inside)
        if isinstance(output, Tensor):
            self.output_size[module] = tuple(output.shape[1:])
        deployed_cost: Any = getattr(module, "deployed_cost", None)
        if deployed_cost:
            cost = deployed_cost(*args, *kwargs.values(), output)
            if module in self.deployed:  # a further call computes again and stores nothing more
                stored = dict(params=0, dense_params=0, binary_params=0, routing_floats=0, size_bits=0)
                cost = self.deployed[module] + replace(cost, **stored)
            self.deployed[module] = cost

    def rows(self, failure: tuple[str, ...]) -> list[LayerCost]:
        """One row per layer; `failure` is why the run broke off, and makes all computation unknown."""
        stored: set[int] = set()
        covered: set[nn.Module] = set()  # inside a layer that states its own cost
        rows = []
        for name, module in self.network.named_modules():
            if module in covered:
                continue
            uncounted = failure or tuple(sorted(self.uncounted.get(module, ())))
            if hasattr(module, "deployed_cost"):
                covered.update(module.modules())
                unused = Cost(**dict.fromkeys((f.name for f in fields(Cost)), None))
                cost = self.deployed.get(module, unused)
                uncounted = failure or (() if module in self.deployed else (NOT_CALLED,))
            else:
                cost = _plain_cost(module, self.macs.get(module, 0), bool(uncounted), stored)
            if side := getattr(module, "side_operations", ()):
                cost, uncounted = replace(cost, overhead_flops=None), (*uncounted, *side)
            if cost != Cost():
                rows.append(
                    LayerCost(
                        **asdict(cost),
                        name=name,
                        type=type(module).__name__,
                        output_size=self.output_size.get(module, ()),
                        uncounted=uncounted,
                    )
                )
        return rows


def _plain_cost(module: nn.Module, macs: int, unknown: bool, stored: set[int]) -> Cost:
    """Cost of what a module itself stores and computes; `stored` remembers tensors that several modules share."""
    weight_bits, activation_bits = getattr(module, "weight_bits", 32), getattr(module, "activation_bits", 32)
    params = binary = size = 0
    for name, tensor in [*module.named_parameters(recurse=False), *_statistics(module)]:
        if id(tensor) in stored:
            continue
        stored.add(id(tensor))
        bits = weight_bits if name == "weight" else 32
        size += bits * tensor.numel()
        if isinstance(tensor, nn.Parameter):
            params += tensor.numel()
            binary += tensor.numel() * (bits == 1)
    ops = None if unknown else macs
    costs: dict[str, int | None] = dict(params=params, dense_params=params, binary_params=binary, size_bits=size)
    if weight_bits == activation_bits == 1:
        return Cost(**costs, bops=ops, kept_bops=ops)
    return Cost(**costs, flops=ops, kept_flops=ops)


def _statistics(module: nn.Module) -> list[tuple[str, Tensor]]:
    saved = module._non_persistent_buffers_set
    return [
        (name, buffer)
        for name, buffer in module.named_buffers(recurse=False)
        if name not in saved and buffer.is_floating_point()
    ]


def _table(report: Report) -> str:
    """Columns that hold nothing but zeros, or repeat the column of all weights, are left out."""
    columns = ["params", "dense_params", "binary_params", "flops", "bops", "kept_flops", "kept_bops", "overhead_flops"]
    twins = {"dense_params": "params", "kept_flops": "flops", "kept_bops": "bops"}
    shown = [
        name
        for name in [*columns, "routing_floats", "size_bits"]
        if getattr(report, name) != 0 and getattr(report, name) != getattr(report, twins.get(name, ""), -1)
    ]

    def row(name: str, type: str, output: str, cost: Cost) -> list[str]:
        figures = [getattr(cost, column) for column in shown]
        return [name, type, output, *("unknown" if figure is None else f"{figure:,}" for figure in figures)]

    head = ["layer", "type", "output", *(name.replace("_", " ") for name in shown)]
    body = [
        row(layer.name or "(network)", layer.type, "x".join(map(str, layer.output_size)), layer)
        for layer in report.layers
    ]
    sums = [row(part.name, "", "", part) for part in report.parts] + [row("total", "", "", report)]
    widths = [max(map(len, column)) for column in zip(head, *body, *sums, strict=True)]
    formats = [f"{{:{'<' if i < 3 else '>'}{width}}}" for i, width in enumerate(widths)]
    head_line, *lines = ["  ".join(formats).format(*cells).rstrip() for cells in (head, *body, *sums)]
    rule = "-" * (sum(widths) + 2 * len(widths) - 2)
    size = "x".join(map(str, report.input_size))
    caption = f"FLOPs and BOPs are multiply-adds, each counted once, for one input of {size}; sizes in bits."
    unknown = [layer for layer in report.layers if layer.uncounted]
    notes = [f"unknown: {layer.name or '(network)'}: {', '.join(layer.uncounted)}" for layer in unknown]
    return "\n".join([head_line, rule, *lines[: len(body)], rule, *lines[len(body) :], caption, *notes])
