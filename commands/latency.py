"""`frugal latency`: how long networks take for one image on the CPU, and for a batch on a GPU."""

import json
import platform
import re
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

import networks
from callbacks.record import provenance
from commands.options import Options
from networks import InputError

DESCRIPTION = """\
Time networks in evaluation, in turn, after a warm-up: one image on the CPU, and a batch on a GPU where there is one.
Printed are medians. Without names: the networks of ReXNet's scaling table, whose accuracies in the paper --png draws
over our times.

  frugal latency
  frugal latency rexnet_100 'rexnet{width: 0.9}' efficientnet_b1@240 --png latency.png"""
BATCH = 64  # the paper's, on a GPU
WARM_UP, TURN = 3, 10  # runs before each turn of a network, and in it
# Top-1 on ImageNet of the paper's scaling table (Han et al., CVPR 2021).
PAPER = {
    "rexnet_plain": 0.748,
    "rexnet{width: 0.9}": 0.772,
    "rexnet{width: 1.0}": 0.779,
    "rexnet{width: 1.1}": 0.786,
    "rexnet{width: 1.2}": 0.790,
    "rexnet{width: 1.3}": 0.795,
    "rexnet{width: 1.4}": 0.798,
    "rexnet{width: 1.5}": 0.803,
    "rexnet{width: 2.0}": 0.816,
    "rexnet{width: 2.2}": 0.817,
    "rexnet{width: 3.0}": 0.828,
    "efficientnet_b0": 0.773,
    "efficientnet_b1@240": 0.792,
    "efficientnet_b2@260": 0.803,
    "efficientnet_b3@300": 0.817,
}


class Timed(NamedTuple):
    """A network, and the side of its images in pixels."""

    network: nn.Module
    side: int


def paper_name(text: str) -> str:
    """A network's name in PAPER, if it is there, of timm's too: rexnet_130 is rexnet{width: 1.3}."""
    return re.sub(r"^rexnet_(\d)(\d)0$", r"rexnet{width: \1.\2}", text)


def paper_top1(text: str) -> float | None:
    """The paper's accuracy of a network, 0 to 1."""
    return PAPER.get(paper_name(text))


def build(text: str) -> Timed:
    """The network of NAME, NAME{ARGUMENT: VALUE} or NAME@SIDE.

    Raises:
        InputError: it is none of these, or the network is not known.
    """
    match = re.fullmatch(r"([^{@]+)(\{.*\})?(?:@([1-9]\d*))?", text)
    try:
        args = yaml.safe_load(match[2] or "{}") if match else None
    except yaml.YAMLError:
        args = None
    if match is None or not isinstance(args, dict) or None in args.values():
        raise InputError(f"{text!r} is no NAME, NAME{{ARGUMENT: VALUE}} or NAME@SIDE, such as rexnet{{width: 1.3}}")
    side = int(match[3] or 224)
    return Timed(networks.create(match[1], (3, side, side), args=args).eval(), side)


def main(arguments: Sequence[str] | None = None) -> None:
    """Time, print, draw."""
    parser = Options("latency", DESCRIPTION)
    parser.add_argument(
        "networks",
        nargs="*",
        default=list(PAPER),
        metavar="NETWORK",
        help="NAME, NAME{ARGUMENT: VALUE} or NAME@SIDE, a side in pixels other than 224",
    )
    parser.add_argument("--runs", type=int, default=30, help="of each network on each device; the default is 30")
    parser.add_argument("--threads", type=int, help="of the CPU; the default is torch's")
    parser.add_argument("--batch", type=int, default=BATCH, help="on a GPU; the default is the paper's, 64")
    parser.add_argument("--channels_last", action="store_true", help="lay feature maps out with channels innermost")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw the paper's accuracies over these times")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    if min(options.runs, options.batch, options.threads or 1) < 1:
        parser.error("--runs, --batch and --threads must be positive")
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.png and not any(map(paper_top1, options.networks)):
        raise InputError(f"--png draws the paper's accuracies, which it has of {', '.join(PAPER)}")
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    built = {text: build(text) for text in options.networks}
    rows = {text: {"side": each.side, **_cost(each), "paper_top1": paper_top1(text)} for text, each in built.items()}
    for each in built.values():
        each.network.to(memory_format=layout)
    devices = [("cpu", 1)] + ([("cuda", options.batch)] if torch.cuda.is_available() else [])
    for device, batch in devices:
        for text, milliseconds in timed(built, device, batch, options.runs, layout).items():
            rows[text][f"{device}_ms"] = milliseconds
    threads = torch.get_num_threads()
    result = {"networks": rows, "threads": threads, "batch": options.batch, "runs": options.runs, **provenance()}
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        Console().print(table(result))
    if options.png:
        draw(result, options.png)


def _cost(given: Timed) -> dict[str, Any]:
    report = networks.complexity.count(given.network, (3, given.side, given.side))
    return {"params": report.params, "flops": report.flops}


@torch.inference_mode()
def timed(built: dict[str, Timed], device: str, batch: int, runs: int, layout: torch.memory_format) -> dict[str, float]:
    """Median milliseconds of each network for a batch of random images.

    Networks take turns of some runs, against drift; not of one, for caches would be cold, as they are not in use.
    """
    inputs = {
        text: torch.randn(batch, 3, each.side, each.side, device=device).to(memory_format=layout)
        for text, each in built.items()
    }
    for each in built.values():
        each.network.to(device)
    taken: dict[str, list[float]] = {text: [] for text in built}
    turns = [(text, min(TURN, runs - done)) for done in range(0, runs, TURN) for text in built]
    for text, count in track(turns, f"timing on {device}", console=Console(stderr=True), transient=True):
        seconds = [_seconds(built[text].network, inputs[text], device) for _ in range(WARM_UP + count)]
        taken[text] += seconds[WARM_UP:]
    return {text: 1000 * statistics.median(seconds) for text, seconds in taken.items()}


def _seconds(network: nn.Module, x: Tensor, device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    network(x)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def table(result: dict[str, Any]) -> Table:
    """A line for each network."""
    hardware = result["hardware"]
    title = f"CPU: one image on {hardware['processor']}, {result['threads']} threads"
    if hardware["gpus"]:
        title += f"; GPU: {result['batch']} images on {hardware['gpus'][0]}"
    times = ["CPU (ms)", "GPU (ms)"] if hardware["gpus"] else ["CPU (ms)"]
    shown = Table("network", "side", "params (M)", "FLOPs (G)", *times, "top1, paper", title=title)
    for text, row in result["networks"].items():
        cost = f"{row['params'] / 1e6:.2f}", f"{row['flops'] / 1e9:.2f}"
        taken = [f"{row[key]:.1f}" for key in ("cpu_ms", "cuda_ms") if key in row]
        accuracy = f"{row['paper_top1']:.3f}" if row["paper_top1"] else ""
        shown.add_row(text.replace("[", r"\["), str(row["side"]), *cost, *taken, accuracy)
    return shown


def draw(result: dict[str, Any], path: Path) -> None:
    """The paper's accuracies over our times, a line for each family, into a PNG file."""
    from matplotlib.figure import Figure

    rows = {text: row for text, row in result["networks"].items() if row["paper_top1"]}
    keys = [key for key in ("cpu_ms", "cuda_ms") if key in next(iter(rows.values()))]
    figure = Figure(figsize=(6 * len(keys), 4.2), layout="constrained")
    for axes, key in zip(figure.subplots(1, len(keys), squeeze=False)[0], keys, strict=True):
        families: dict[str, list[tuple[float, float]]] = {}
        for text, row in rows.items():
            name = paper_name(text)
            family = re.split(r"[{@]|_b\d", name)[0]
            families.setdefault(family, []).append((row[key], row["paper_top1"]))
            label = name.removeprefix("rexnet{width: ").removeprefix("efficientnet_").split("@")[0].strip("}")
            axes.annotate(label, (row[key], row["paper_top1"]), (3, -9), textcoords="offset points", fontsize=7)
        for family, points in families.items():
            by_top1 = sorted(points, key=lambda point: point[1])
            axes.plot(*zip(*by_top1, strict=True), marker="o", label=family)
        hardware = result["hardware"]
        cpu = f"our time for one image, {hardware['processor'] or platform.machine()}, {result['threads']} threads (ms)"
        gpu = f"our time for {result['batch']} images, {(hardware['gpus'] or [''])[0]} (ms)"
        axes.set(xlabel=cpu if key == "cpu_ms" else gpu, ylabel="top1 on ImageNet in the paper")
        axes.grid(alpha=0.3)
        axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    print(path)
