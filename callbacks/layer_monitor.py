"""Log and draw what a method says of its layers."""

import time
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_info

from callbacks.folder import log_folder, log_picture

COLUMNS = 3  # of panels


class LayerMonitor(Callback):
    """Logs layers/<metric>/<layer> after every epoch and draws them into layers.png, a map of layers by epochs.

    It is drawn at the end of each epoch, but not more often than every ten seconds, and at the end of the run, when W&B
    also gets the last epoch's values as the table layers/final.

    Modules bring it themselves that have a method `layer_metrics() -> {metric: {layer: value}}`. It is called before
    the first epoch and after each, so that it may tell what has changed between, and in every process, so that it may
    add up over them; without a logger it is never called. A layer may be missing from some of the metrics. What was
    seen is saved with the checkpoint, so that a resumed run's picture begins at the first epoch.
    """

    def __init__(self) -> None:
        self.history: list[dict[str, dict[str, float]]] = []
        self.epochs: list[int] = []
        self._drawn = time.monotonic()  # or begun

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history, "epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history, self.epochs = state_dict["history"], state_dict["epochs"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if _listens(trainer) and not self.history and not trainer.ckpt_path:
            pl_module.layer_metrics()  # type: ignore[operator]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not _listens(trainer):
            return
        metrics: dict[str, dict[str, float]] = pl_module.layer_metrics()  # type: ignore[operator]
        self.history.append(metrics)
        self.epochs.append(trainer.current_epoch)
        flat = {f"layers/{name}/{layer}": v for name, values in metrics.items() for layer, v in values.items()}
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.log_metrics({"epoch": trainer.current_epoch, **flat}, step=trainer.global_step)
        self._draw(trainer, pause=10)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if _listens(trainer) and self.history:
            path = self._draw(trainer)
            if trainer.is_global_zero:
                self._log_table(trainer)
            rank_zero_info(f"{', '.join(self.history[0])} of each layer by epoch: {path}")

    def _draw(self, trainer: Trainer, pause: float = 0) -> Path:
        path = log_folder(trainer) / "layers.png"
        if trainer.is_global_zero and time.monotonic() - self._drawn > pause:
            draw(self.epochs, self.history, str(path))
            self._drawn = time.monotonic()
            log_picture(trainer, "layers", path)
        return path

    def _log_table(self, trainer: Trainer) -> None:
        last = self.history[-1]
        layers = dict.fromkeys(layer for values in last.values() for layer in values)
        rows = [[layer, *(values.get(layer) for values in last.values())] for layer in layers]
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_table("layers/final", columns=["layer", *last], data=rows)


def _listens(trainer: Trainer) -> bool:
    return bool(trainer.loggers) and not trainer.fast_dev_run  # type: ignore[attr-defined]


def draw(epochs: list[int], history: list[dict[str, dict[str, float]]], path: str) -> None:
    """Draw a map of layers by epochs for each metric into a PNG file."""
    import numpy as np
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    names = list(history[0])
    layers = list(dict.fromkeys(layer for values in history[0].values() for layer in values))
    columns = min(len(names), COLUMNS)
    rows = -(-len(names) // columns)
    height = min(max(1.6 + 0.22 * len(layers), 3.2), 16)
    figure = Figure(figsize=(5.2 * columns, height * rows), layout="constrained")
    extent = (epochs[0] + 0.5, epochs[-1] + 1.5, len(layers) - 0.5, -0.5)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in panels[len(names) :]:
        axes.remove()
    for i, (axes, name) in enumerate(zip(panels, names, strict=False)):
        values = np.array([[row[name].get(layer, np.nan) for row in history] for layer in layers])
        wide = np.nanmin(values) > 0 and np.nanmax(values) > 10 * np.nanmin(values)
        scale: dict[str, Any] = {"norm": LogNorm()} if wide else {}
        if name.endswith(("share", "coverage")):  # panels of shares are there to be compared
            scale = {"vmin": 0, "vmax": 1}
        image = axes.imshow(values, aspect="auto", interpolation="nearest", extent=extent, **scale)
        figure.colorbar(image, ax=axes)
        labelled = i % columns == 0
        axes.set_yticks(range(len(layers)), layers if labelled else [], fontsize=8 if len(layers) < 60 else 4)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set(xlabel="epoch", title=name.replace("_", " "))
    figure.savefig(path, dpi=120 if rows == 1 else 90)
