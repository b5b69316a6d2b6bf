"""The progress bar."""

from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import RichProgressBar


class ProgressBar(RichProgressBar):
    """Lightning's bar, reading metrics off a GPU only every `log_every_n_steps`: Lightning's waits in every step."""

    def __init__(self) -> None:
        super().__init__()
        self._shown: dict[str, Any] = {}

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        free = pl_module.device.type == "cpu" or not trainer.training
        if free or trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._shown = super().get_metrics(trainer, pl_module)
        return self._shown
