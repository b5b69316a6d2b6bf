"""Draw how a run went."""

import math
import time
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_info

from callbacks.complexity import cost_of
from callbacks.folder import log_folder, log_picture
from networks.complexity import Report

TITLES = {"top1": "top-1 accuracy", "box_ap": "average precision of boxes"}


class TrainingCurves(Callback):
    """Draws curves.png when training ends: loss and score by epoch, and the parameters that each layer stores.

    What it has seen is saved with the checkpoint, so that a resumed run's picture begins at the first epoch. `history`
    has a row for each epoch, with the hours of training until its end; the time between a checkpoint and the resuming
    does not count.
    """

    def __init__(self) -> None:
        self.history: list[dict[str, float]] = []
        self._hours = 0.0  # until _since
        self._since = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history, "hours": self.hours}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history, self._hours = state_dict["history"], state_dict.get("hours", 0.0)

    @property
    def hours(self) -> float:
        """Of training, until now."""
        return self._hours + (time.monotonic() - self._since) / 3600

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._record(trainer, "val/loss", f"val/{score_of(pl_module)}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._record(trainer, "train/loss", f"train/{score_of(pl_module)}")

    def _record(self, trainer: Trainer, *names: str) -> None:
        if not self.history or self.history[-1]["epoch"] != trainer.current_epoch:
            self.history.append({"epoch": trainer.current_epoch})
        seen = {name: float(trainer.callback_metrics[name]) for name in names if name in trainer.callback_metrics}
        self.history[-1].update(seen, hours=self.hours)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        path = log_folder(trainer) / "curves.png"
        if not trainer.is_global_zero or trainer.fast_dev_run or not self.history:  # type: ignore[attr-defined]
            return
        draw(self.history, cost_of(pl_module), str(path), score_of(pl_module))
        log_picture(trainer, "curves", path)
        rank_zero_info(f"training curves and stored parameters per layer: {path}")


def score_of(module: LightningModule) -> str:
    """The metric that says how good a network is, without its stage."""
    return getattr(module, "score", "top1")


def draw(history: list[dict[str, float]], report: Report | None, path: str, score: str = "top1") -> None:
    """Draw loss and score by epoch beside what each layer that multiplies stores, and in its ordinary form would.

    Of a detector its parts stand for their layers.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, NullFormatter

    figure = Figure(figsize=(14, 4.2), layout="constrained")
    loss, scores, weights = figure.subplots(1, 3)
    for axes, metric in ((loss, "loss"), (scores, score)):
        for stage, style in (("train", "--"), ("val", "-")):
            points = [(row["epoch"] + 1, row[f"{stage}/{metric}"]) for row in history if f"{stage}/{metric}" in row]
            if points:
                axes.plot(*zip(*points, strict=True), style, marker=".", label=f"{stage}/{metric}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set(xlabel="epoch", title=TITLES.get(metric, metric))
        axes.grid(alpha=0.3)
        if axes.lines:  # a module of the user's own may log neither
            axes.legend()

    layers = (report.parts or report.layers) if report else ()
    sizes = [
        (layer.name, layer.params, layer.dense_params)
        for layer in layers
        if layer.dense_params and (layer.flops != 0 or layer.bops != 0)  # it multiplies
    ]
    fontsize = 8 if len(sizes) < 25 else 4
    for row, (_, kept, dense) in enumerate(sizes):
        weights.barh(row, dense, color="0.85")
        weights.barh(row, kept or 0, height=0.5, color="C0")
        share = "unknown" if kept is None else f"{kept / dense:.1%}"
        weights.text(max(dense, kept or 0) * 1.1, row, share, va="center", fontsize=fontsize)
    weights.set_yticks(range(len(sizes)), [name for name, _, _ in sizes], fontsize=fontsize)
    weights.invert_yaxis()
    weights.set(
        xscale="log",
        xlabel="parameters: ordinary layer (grey), stored (blue)",
        title=f"stored per {'part' if report and report.parts else 'layer'}",
    )
    weights.xaxis.set_minor_formatter(NullFormatter())  # their labels overlap
    if sizes:  # a whole decade at least, which has a label
        logs = [math.log10(value) for _, *values in sizes for value in values if value]
        left, right = math.floor(min(logs)), max(logs)
        weights.set_xlim(10**left, 10 ** (right + max(1, right - left) / 4))  # and room for the shares
    figure.savefig(path, dpi=120)
