"""Stop a run that has diverged, and keep its checkpoints good."""

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from networks import InputError


class FiniteLoss(Callback):
    """Stops a run whose loss is NaN or infinite, and names the last good checkpoint.

    The loss is watched on the device and read every `log_every_n_steps`, where metrics are read too, so that no step
    waits; on CPU in every step. No checkpoint is written whose run has seen such a loss or whose parameters are not
    finite.

    Raises:
        InputError: such a loss, or such parameters.
    """

    def __init__(self) -> None:
        self._diverged: Tensor | None = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if not isinstance(loss, Tensor):
            return
        diverged = ~torch.isfinite(loss.detach()).all()
        self._diverged = diverged if self._diverged is None else self._diverged | diverged
        free = loss.device.type == "cpu" and trainer.world_size == 1
        if free or trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._check(trainer, self._diverged)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check(trainer, self._diverged)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._check(trainer, self._diverged)
        finite = torch.stack([torch.isfinite(p.detach()).all() for p in pl_module.parameters()] or [torch.tensor(True)])
        self._check(trainer, ~finite.all(), "parameters are")

    def _check(self, trainer: Trainer, diverged: Tensor | None, what: str = "the loss is") -> None:
        bad = diverged is not None and bool(diverged)
        if not trainer.strategy.reduce_boolean_decision(bad, all=False):
            return
        if not trainer.is_global_zero:  # one process tells
            raise SystemExit(1)
        saved_by = [getattr(callback, "best_model_path", "") for callback in trainer.checkpoint_callbacks]
        paths = [Path(path) for path in (*saved_by, trainer.ckpt_path or "")]
        saved = max((path for path in paths if path.is_file()), key=lambda path: path.stat().st_mtime, default=None)
        good = f"the last good checkpoint is {saved}" if saved else "no checkpoint had been saved"
        raise InputError(
            f"{what} NaN or infinite in epoch {trainer.current_epoch}, by step {trainer.global_step}; {good}. "
            "Take a lower learning rate, or 32-true instead of 16-mixed"
        )
