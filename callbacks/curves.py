"""Draw how a run went."""

from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_info

from networks import complexity


class TrainingCurves(Callback):
    """Draws curves.png when training ends: loss and top-1 by epoch, and the weights that each layer keeps.

    What it has seen is saved with the checkpoint, so that a resumed run's picture begins at the first epoch.
    """

    def __init__(self) -> None:
        self.history: list[dict[str, float]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = state_dict["history"]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        names = ("train/loss", "val/loss", "train/top1", "val/top1")
        seen = {name: float(trainer.callback_metrics[name]) for name in names if name in trainer.callback_metrics}
        self.history.append({"epoch": trainer.current_epoch, **seen})

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or not self.history:
            return
        path = Path(trainer.log_dir or trainer.default_root_dir) / "curves.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        report = complexity.count(pl_module.network, pl_module.input_size)  # type: ignore[arg-type]
        draw(self.history, report, str(path))
        for logger in trainer.loggers:
            if hasattr(logger, "log_image"):  # W&B's
                logger.log_image("curves", [str(path)])
        rank_zero_info(f"training curves and kept weights per layer: {path}")


def draw(history: list[dict[str, float]], report: complexity.Report, path: str) -> None:
    """Draw loss and top-1 by epoch beside the weights of each layer, kept and dense, into a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4.2), layout="constrained")
    loss, top1, weights = figure.subplots(1, 3)
    for axes, metric in ((loss, "loss"), (top1, "top1")):
        for stage, style in (("train", "--"), ("val", "-")):
            points = [(row["epoch"] + 1, row[f"{stage}/{metric}"]) for row in history if f"{stage}/{metric}" in row]
            if points:
                axes.plot(*zip(*points, strict=True), style, marker=".", label=f"{stage}/{metric}")
        axes.set(xlabel="epoch", title={"loss": "loss", "top1": "top-1 accuracy"}[metric])
        axes.grid(alpha=0.3)
        axes.legend()

    layers = [layer for layer in report.layers if layer.dense_params and len(layer.output_size) > 0]
    positions = range(len(layers))
    weights.barh(positions, [layer.dense_params or 0 for layer in layers], color="0.85", label="all")
    weights.barh(positions, [layer.params or 0 for layer in layers], height=0.5, label="kept")
    weights.set_yticks(positions, [layer.name for layer in layers], fontsize=8 if len(layers) < 25 else 4)
    weights.invert_yaxis()
    weights.set(xscale="log", xlabel="parameters", title="kept weights per layer")
    weights.legend()
    figure.savefig(path, dpi=120)
