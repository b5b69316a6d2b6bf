"""Log what the network costs."""

import csv
from dataclasses import fields

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_warn

from callbacks.folder import log_folder
from networks import complexity
from networks.complexity import Cost, Report


def cost_of(module: LightningModule) -> Report | None:
    """Cost of the network that a module trains; None where it has no `network` and `input_size` to count."""
    network, input_size = getattr(module, "network", None), getattr(module, "input_size", None)
    return complexity.count(network, input_size) if network and input_size else None


class ComplexityMonitor(Callback):
    """Counts the network when training starts: scalars cost/<name>, and cost.csv in the run folder.

    In W&B the scalars belong to the run's summary, not to a step, and cost/layers is the table of layers. The figures
    are those of `networks.complexity.count`; what is unknown is left out of the scalars. They are written again at the
    end if training has changed them, as a selection over the whole network does.
    """

    def __init__(self) -> None:
        self._written: Report | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer, pl_module)

    def _write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = log_folder(trainer)
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        report = cost_of(pl_module)
        if report is None:
            rank_zero_warn(f"{type(pl_module).__name__} has no `network` and `input_size`: its cost is not counted")
            return
        if report == self._written:
            return
        self._written = report
        costs = [f.name for f in fields(Cost)]
        columns = ["name", "type", *costs]
        rows = [[getattr(layer, column) for column in columns] for layer in report.layers]
        with open(folder / "cost.csv", "w", newline="") as file:
            csv.writer(file).writerows([columns, *rows])
        scalars = {f"cost/{name}": getattr(report, name) for name in costs if getattr(report, name) is not None}
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.summary.update(scalars)
                logger.log_table("cost/layers", columns=columns, data=rows)
            else:
                logger.log_metrics(scalars, step=trainer.global_step)
