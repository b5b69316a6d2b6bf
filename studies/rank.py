"""`frugal rank`: ranks of what random layers give, by how strongly they expand (Han et al., CVPR 2021, Section 3).

Spatial size is 1x1, for there alone the linear curves of the paper are the identity, so a 3x3 convolution is its centre
tap and a depthwise one a factor for each channel: the study is matrix products and singular values.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from callbacks.record import provenance
from commands.parser import Parser
from commands.run_folder import needed_config, set_another_aside
from commands.seeds import room_for, write
from networks import InputError
from networks.errors import check_choice

DESCRIPTION = """\
Draw random layers and measure the rank of what they give, over their output channels, for each ratio of input to output
channels and each nonlinearity: results/<path of the config>.json, and rank.png in runs/<path of the config>/. A quick
look: frugal rank -c configs/rexnet/rank/default.yaml --study.networks 20"""
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "Linear": lambda x: x,
    "ReLU6": F.relu6,
    "ReLU": F.relu,
    "LeakyReLU": F.leaky_relu,
    "ELU": F.elu,
    "SoftPlus": F.softplus,
    "HardSwish": F.hardswish,
    "SiLU": F.silu,
}
PANELS = {
    "conv1x1": "1x1 convolution",
    "conv3x3": "3x3 convolution",
    "ib_conv": "bottleneck, dense 3x3",
    "ib_dw": "bottleneck, depthwise 3x3",
}
RATIOS = tuple(round(0.1 * k, 1) for k in range(1, 11))
# Read from the paper's figure, +- 0.01, at ratios 0.1, 0.2, 0.4, 0.6, 0.8, 1.
PAPER_RATIOS = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
PAPER = {
    "conv1x1": {
        "ReLU6": (0.85, 0.905, 0.945, 0.95, 0.957, 0.963),
        "ReLU": (0.85, 0.905, 0.945, 0.95, 0.957, 0.963),
        "LeakyReLU": (0.875, 0.93, 0.967, 0.98, 0.989, 0.991),
        "ELU": (0.915, 0.963, 0.98, 0.99, 0.996, 0.998),
        "SoftPlus": (0.934, 0.974, 0.99, 0.993, 0.997, 0.998),
        "HardSwish": (0.955, 0.984, 0.99, 0.994, 0.997, 0.998),
        "SiLU": (0.955, 0.984, 0.99, 0.994, 0.997, 0.998),
    },
    "conv3x3": {},
    "ib_conv": {"ReLU6": (0.30, 0.555, 0.845, 0.95, 0.985, 1.0), "SiLU": (0.385, 0.685, 0.91, 0.975, 0.99, 1.0)},
    "ib_dw": {"ReLU6": (0.19, 0.36, 0.60, 0.765, 0.895, 1.0), "SiLU": (0.245, 0.43, 0.655, 0.80, 0.915, 1.0)},
}


@dataclass
class RankStudy:
    """What is drawn. The paper states little of this; the defaults are what comes closest to its figure.

    Args:
        networks: drawn for each panel.
        x_dist: of the inputs: "uniform" in [0, 1), or "gaussian".
        bn_mode: batch normalisation before the nonlinearity: "eval" with its initial statistics, or "train".
        init: of the weights: "default" as torch draws a convolution's, or "gaussian" of variance 1 / fan-in.
        t: expansion of the inverted bottlenecks.
        rtol: singular values above rtol times the largest count; None is max(N, d_out) times float32's epsilon.
        d_out_range: output channels are uniform in it, both ends included.
        n_mult: inputs are n_mult d_out + 1 vectors, rounded down.
        seed: of all.

    Raises:
        InputError: an unknown choice, numbers that are too small.
    """

    networks: int = 1000
    x_dist: Literal["uniform", "gaussian"] = "uniform"
    bn_mode: Literal["eval", "train"] = "eval"
    init: Literal["default", "gaussian"] = "default"
    t: int = 2
    rtol: float | None = None
    d_out_range: tuple[int, int] = (16, 256)
    n_mult: float = 1.5
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("study.x_dist", self.x_dist, Literal["uniform", "gaussian"])
        check_choice("study.bn_mode", self.bn_mode, Literal["eval", "train"])
        check_choice("study.init", self.init, Literal["default", "gaussian"])
        low, high = self.d_out_range
        if self.seed < 0 or not (self.rtol is None or 0 <= self.rtol < 1):
            raise InputError(f"study.seed={self.seed} must not be negative, and rtol={self.rtol} lie in [0, 1)")
        if self.networks < 1 or self.t < 1 or not 10 <= low <= high or not 1 <= self.n_mult <= 1000:
            raise InputError(
                f"study.networks={self.networks} and t={self.t} must be at least 1, d_out_range={self.d_out_range} "
                f"begin at 10 or more, n_mult={self.n_mult} lie in 1 to 1000"
            )


def main(arguments: Sequence[str]) -> None:
    """Measure, write, draw."""
    parser = Parser(prog="frugal rank", description=DESCRIPTION, usage="frugal rank -c CONFIG [--study.ARGUMENT VALUE]")
    parser.add_argument("-c", "--config", action="config", help="a YAML file with these options")
    parser.add_class_arguments(RankStudy, "study")
    study = parser.instantiate(parser.parse_args(list(arguments))).study
    name = needed_config(list(arguments))
    path = room_for(Path("results") / f"{name}.json")
    result = {"study": asdict(study), "ratios": RATIOS, "curves": measure(study), **provenance()}
    set_another_aside(path, result, ("study",))
    write(result, path)
    picture = Path("runs") / name / "rank.png"
    draw(result, picture)
    print(picture)
    for panel in PANELS:
        Console().print(table(result, panel))


def measure(study: RankStudy) -> dict[str, dict[str, list[float]]]:
    """Mean rank over output channels: panel -> nonlinearity -> one value for each ratio."""
    threads, cores = torch.get_num_threads(), os.cpu_count() or 1
    torch.set_num_threads(1)  # many small matrices: a network on each core
    try:
        with ThreadPoolExecutor(cores) as pool:
            drawn = pool.map(lambda index: ranks(study, index), range(study.networks))
            console = Console(stderr=True)
            each = list(track(drawn, "networks", total=study.networks, console=console, transient=True))
    finally:
        torch.set_num_threads(threads)
    mean = np.mean(each, 0)  # (panels, nonlinearities, ratios)
    return {
        panel: {name: mean[i, j].round(5).tolist() for j, name in enumerate(ACTIVATIONS)}
        for i, panel in enumerate(PANELS)
    }


@torch.no_grad()
def ranks(study: RankStudy, index: int) -> np.ndarray:
    """Rank over output channels of one random network, (panels, nonlinearities, ratios): a function of seed, index."""
    state = np.random.SeedSequence((study.seed, index)).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(state >> np.uint64(1)))
    low, high = study.d_out_range
    d_out = int(torch.randint(low, high + 1, (), generator=generator))
    found = np.empty((len(PANELS), len(ACTIVATIONS), len(RATIOS)))
    for k, ratio in enumerate(RATIOS):
        d_in = max(1, round(ratio * d_out))
        shape = d_in, int(study.n_mult * d_out) + 1
        x = _random(shape, generator) if study.x_dist == "gaussian" else torch.rand(shape, generator=generator)
        for i, panel in enumerate(PANELS):
            features = _features(panel, study, x, d_out, generator)
            singular = torch.linalg.svdvals(features)  # (nonlinearities, d_out), from the largest
            rtol = max(features.shape[1:]) * torch.finfo(torch.float32).eps if study.rtol is None else study.rtol
            found[i, :, k] = (singular > rtol * singular[:, :1]).sum(1).numpy() / d_out
    return found


def _features(panel: str, study: RankStudy, x: Tensor, d_out: int, generator: torch.Generator) -> Tensor:
    """What a random network gives of inputs (d_in, N), for each nonlinearity: (nonlinearities, N, d_out)."""
    d_in, width = len(x), study.t * len(x)
    functions = ACTIVATIONS.values()
    if panel in ("conv1x1", "conv3x3"):
        taps = 1 if panel == "conv1x1" else 9
        y = _normalised(_weight(d_out, d_in, taps, study, generator) @ x, study)
        return torch.stack([f(y).T for f in functions])
    expand = _weight(width, d_in, 1, study, generator)
    dense = panel == "ib_conv"
    middle = _weight(width, width if dense else 1, 9, study, generator)
    project = _weight(d_out, width, 1, study, generator)
    outputs = []
    expanded = _normalised(expand @ x, study)
    for f in functions:
        y = middle @ f(expanded) if dense else middle * f(expanded)
        y = _normalised(project @ f(_normalised(y, study)), study)
        y[:d_in] += x
        outputs.append(y.T)
    return torch.stack(outputs)


def _weight(outputs: int, inputs: int, taps: int, study: RankStudy, generator: torch.Generator) -> Tensor:
    """The centre tap of a convolution's random weight, (outputs, inputs); fan-in counts all taps."""
    fan_in = inputs * taps
    if study.init == "gaussian":
        return _random((outputs, inputs), generator) / fan_in**0.5
    return (2 * torch.rand(outputs, inputs, generator=generator) - 1) / fan_in**0.5


def _random(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator)


def _normalised(y: Tensor, study: RankStudy) -> Tensor:
    """Batch normalisation as initialised, over (channels, N)."""
    if study.bn_mode == "eval":
        return y / (1 + 1e-5) ** 0.5
    return (y - y.mean(1, keepdim=True)) / (y.var(1, keepdim=True, correction=0) + 1e-5).sqrt()


def table(result: dict[str, Any], panel: str) -> Table:
    """A line for each nonlinearity, a column for each ratio."""
    title = f"{PANELS[panel]}: rank / output channels, by input / output channels"
    shown = Table("", *map(str, result["ratios"]), title=title, box=SIMPLE, padding=(0, 1, 0, 0))
    for name, values in result["curves"][panel].items():
        shown.add_row(name, *(f"{value:.2f}" for value in values))
    return shown


def draw(result: dict[str, Any], path: Path) -> None:
    """The four panels into a PNG file: lines are ours, crosses read from the paper's figure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.6), layout="constrained")
    for axes, (panel, title) in zip(figure.subplots(2, 2).flatten(), PANELS.items(), strict=True):
        for i, (name, values) in enumerate(result["curves"][panel].items()):
            style = ("-", "--", "-.", ":")[i % 4]  # several lie on one another
            axes.plot(result["ratios"], values, style, color=f"C{i}", linewidth=1.5, label=name)
            if name in PAPER[panel]:
                axes.plot(PAPER_RATIOS, PAPER[panel][name], "x", color=f"C{i}", markersize=5)
        if PAPER[panel]:
            axes.plot([], [], "x", color="black", markersize=5, label="read from the paper")
        axes.set(title=title, xlabel="input / output channels", ylabel="rank / output channels", ylim=(0, 1.03))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, loc="lower right")
    study = {name: value for name, value in result["study"].items() if value is not None}
    settings = ", ".join(f"{name} {value}" for name, value in study.items())
    figure.suptitle(settings, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
