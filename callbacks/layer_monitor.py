"""Log and draw what a method says of its layers."""

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_info

from callbacks.folder import log_folder


class LayerMonitor(Callback):
    """Logs layers/<metric>/<layer> after every epoch and draws them into layers.png, a map of layers by epochs.

    Modules bring it themselves that have a method `layer_metrics() -> {metric: {layer: value}}`. It is called before
    the first epoch and after each, so that it may tell what has changed between; without a logger it is never called.
    What was seen is saved with the checkpoint, so that a resumed run's picture begins at the first epoch.
    """

    def __init__(self) -> None:
        self.history: list[dict[str, dict[str, float]]] = []
        self.epochs: list[int] = []

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
        for logger in trainer.loggers:
            logger.log_metrics({"epoch": trainer.current_epoch, **flat}, step=trainer.global_step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        path = log_folder(trainer) / "layers.png"
        if not _listens(trainer) or not self.history:
            return
        draw(self.epochs, self.history, str(path))
        for logger in trainer.loggers:
            if hasattr(logger, "log_image"):  # W&B's
                logger.log_image("layers", [str(path)])
        rank_zero_info(f"{', '.join(self.history[0])} of each layer by epoch: {path}")


def _listens(trainer: Trainer) -> bool:
    return trainer.is_global_zero and bool(trainer.loggers) and not trainer.fast_dev_run  # type: ignore[attr-defined]


def draw(epochs: list[int], history: list[dict[str, dict[str, float]]], path: str) -> None:
    """Draw a map of layers by epochs for each metric into a PNG file."""
    import numpy as np
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    names, layers = list(history[0]), list(next(iter(history[0].values())))
    height = 1.6 + 0.22 * len(layers)
    figure = Figure(figsize=(5.2 * len(names), min(max(height, 3.2), 16)), layout="constrained")
    extent = (epochs[0] + 0.5, epochs[-1] + 1.5, len(layers) - 0.5, -0.5)
    for i, (axes, name) in enumerate(zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True)):
        values = np.array([[row[name][layer] for row in history] for layer in layers])
        wide = values.min() > 0 and values.max() > 10 * values.min()
        image = axes.imshow(
            values, aspect="auto", interpolation="nearest", extent=extent, norm=LogNorm() if wide else None
        )
        figure.colorbar(image, ax=axes)
        axes.set_yticks(range(len(layers)), layers if i == 0 else [], fontsize=8 if len(layers) < 60 else 4)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="epoch", title=name.replace("_", " "))
    figure.savefig(path, dpi=120)
