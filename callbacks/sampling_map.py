"""Draw where a method's layers read their stored weights."""

import time
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from callbacks.folder import log_folder, log_picture

SNAPSHOTS = 8  # of the offsets over training; when there are more, every second one is dropped
LAYERS = 40  # that are drawn at most


class SamplingMap(Callback):
    """Draws epitomes.png: the offsets of each layer over training, and how often each stored entry is read.

    It is drawn at the end of an epoch, but not more often than every half a minute, and at the end of the run.

    Modules bring it themselves that have a method `sampling() -> {layer: (offsets, reads)}`: offsets (R,) or (R, k) of
    the positions, or None where they are fixed, and reads (n,) along the axis that is sampled. What was seen is saved
    with the checkpoint.
    """

    def __init__(self) -> None:
        self.snapshots: dict[int, dict[str, Tensor]] = {}  # epochs done: offsets
        self._every = 1
        self._drawn = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        return {"snapshots": self.snapshots, "every": self._every}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.snapshots, self._every = state_dict["snapshots"], state_dict["every"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.snapshots and not trainer.ckpt_path:
            self._look(pl_module, 0)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        done = trainer.current_epoch + 1
        if done % self._every == 0:
            self._look(pl_module, done)
        if trainer.loggers:
            self._draw(trainer, pl_module, pause=30)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.snapshots and trainer.loggers:
            self._look(pl_module, trainer.current_epoch)
            rank_zero_info(f"offsets, and how often stored weights are read: {self._draw(trainer, pl_module)}")

    def _look(self, module: LightningModule, done: int) -> None:
        sampling: dict[str, tuple[Tensor | None, Tensor]] = module.sampling()  # type: ignore[operator]
        self.snapshots[done] = {
            name: offsets.cpu().clone() for name, (offsets, _) in sampling.items() if offsets is not None
        }
        if len(self.snapshots) > SNAPSHOTS:
            self._every *= 2
            kept = {epoch for epoch in self.snapshots if epoch % self._every == 0 or epoch == done}
            self.snapshots = {epoch: seen for epoch, seen in self.snapshots.items() if epoch in kept}

    def _draw(self, trainer: Trainer, module: LightningModule, pause: float = 0) -> Path:
        path = log_folder(trainer) / "epitomes.png"  # of all processes, also where it is not yet time
        late = time.monotonic() - self._drawn > pause
        if trainer.is_global_zero and late and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            sampling: dict[str, tuple[Tensor | None, Tensor]] = module.sampling()  # type: ignore[operator]
            draw(self.snapshots, {name: reads.cpu() for name, (_, reads) in sampling.items()}, str(path))
            log_picture(trainer, "epitomes", path)
            self._drawn = time.monotonic()
        return path


def draw(snapshots: dict[int, dict[str, Tensor]], reads: dict[str, Tensor], path: str) -> None:
    """Draw a row for each layer into a PNG file: offsets by position, a line for each epoch, and reads by entry."""
    import matplotlib
    from matplotlib.figure import Figure

    names = list(reads)[:LAYERS]
    figure = Figure(figsize=(12, max(1.15 * len(names) + 0.8, 3)), layout="constrained")
    panels = figure.subplots(len(names), 2, squeeze=False)
    last = max(snapshots)
    colours = matplotlib.colormaps["viridis"]
    for (left, right), name in zip(panels, names, strict=True):
        shown = {epoch: seen[name] for epoch, seen in sorted(snapshots.items()) if name in seen}
        for epoch, offsets in shown.items():
            values = offsets.flatten()
            few = {"marker": "o", "markersize": 3} if len(values) < 20 else {}
            left.plot(values, color=colours(0.9 * epoch / max(last, 1)), linewidth=0.7, label=f"{epoch}", **few)
        if not shown:
            left.text(0.5, 0.5, "fixed", transform=left.transAxes, ha="center", color="0.5")
        left.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=7)
        right.plot(reads[name], drawstyle="steps-mid", linewidth=0.8, color="C0")
        right.set_ylim(0, 1.1 * max(float(reads[name].max()), 1e-9))
        for axes in (left, right):
            axes.tick_params(labelsize=6)
            axes.margins(x=0.01)
    panels[0][0].set_title("offset of each position, in entries", fontsize=9)
    panels[0][1].set_title("how often each entry along the sampled axis is read", fontsize=9)
    handles, labels = panels[0][0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, title="epochs", fontsize=6, title_fontsize=7, loc="outside right upper")
    if len(reads) > LAYERS:
        figure.suptitle(f"the first {LAYERS} of {len(reads)} layers", fontsize=9)
    figure.savefig(path, dpi=90)
