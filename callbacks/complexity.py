"""Log what the network costs."""

import csv
from dataclasses import fields
from pathlib import Path

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_only

from networks import complexity
from networks.complexity import Cost


class ComplexityMonitor(Callback):
    """Counts the network once when training starts: scalars cost/<name>, cost.csv in the run folder, a W&B table.

    The figures are those of `networks.complexity.count`; what is unknown is left out of the scalars. The module
    trained must have `network` and `input_size`.
    """

    @rank_zero_only
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        report = complexity.count(pl_module.network, pl_module.input_size)  # type: ignore[arg-type]
        costs = [f.name for f in fields(Cost)]
        columns = ["name", "type", *costs]
        rows = [[getattr(layer, column) for column in columns] for layer in report.layers]

        folder = Path(trainer.log_dir or trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "cost.csv", "w", newline="") as file:
            csv.writer(file).writerows([columns, *rows])

        scalars = {f"cost/{name}": getattr(report, name) for name in costs if getattr(report, name) is not None}
        for logger in trainer.loggers:
            logger.log_metrics(scalars, step=trainer.global_step)
            if hasattr(logger, "log_table"):  # W&B's
                logger.log_table("cost/layers", columns=columns, data=rows)
