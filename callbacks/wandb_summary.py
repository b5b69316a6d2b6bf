"""What Weights & Biases shows of a run: the axis of its curves, and its best epoch."""

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import WandbLogger

from callbacks.curves import score_of

EPOCH, STEP = "epoch", "trainer/global_step"  # as Lightning logs them


class WandbSummary(Callback):
    """In W&B's runs, curves go by epoch, and the summary has val/best_<score> and val/best_epoch.

    Names that end in _step go by the optimiser's step. The score is the module's: top1, of detectors box_ap. Epochs
    count from 0, as on the curves; of equally good ones the first counts. Both are saved with the checkpoint, so that a
    resumed run knows them. What is logged after training, as by `test`, leaves the summary's epoch as it was.
    """

    def __init__(self) -> None:
        self.best: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for run in _runs(trainer):
            # Lightning's own rule for "*" says the step. Rules of patterns that overlap are taken in no fixed order:
            # hence this one in its place, and whole names for the exceptions.
            run.define_metric("*", step_metric=EPOCH, step_sync=True)
            for name in ("train/loss_step", "train/temperature_step"):
                run.define_metric(name, step_metric=STEP, step_sync=True)
            for name in (EPOCH, STEP):
                run.define_metric(name, summary=None if stage == "fit" else "none")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        name = score_of(pl_module)
        if trainer.state.fn != "fit" or trainer.sanity_checking or f"val/{name}" not in trainer.callback_metrics:
            return
        value = float(trainer.callback_metrics[f"val/{name}"])
        if value > self.best.get(f"val/best_{name}", float("-inf")):
            self.best = {f"val/best_{name}": value, "val/best_epoch": trainer.current_epoch}
        for run in _runs(trainer):
            run.summary.update(self.best)


def _runs(trainer: Trainer) -> list[Any]:
    """W&B's runs, in the first process."""
    loggers = trainer.loggers if trainer.is_global_zero else []
    return [logger.experiment for logger in loggers if isinstance(logger, WandbLogger)]
