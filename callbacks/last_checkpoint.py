"""last.ckpt: where an interrupted run goes on."""

import signal
from pathlib import Path
from types import FrameType
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities import rank_zero_info


class LastCheckpoint(ModelCheckpoint):
    """Saves last.ckpt after every epoch, and when SIGTERM or Ctrl-C asks the run to stop.

    The step that is being done is finished first; the process then ends with status 143 or 130, as the signal says.
    A second Ctrl-C stops at once. During validation the signal waits for its end. Several processes agree at every
    `log_every_n_steps`, where they wait for their devices anyhow.

    Args:
        dirpath: folder of last.ckpt.
    """

    def __init__(self, dirpath: str | Path) -> None:
        # after every epoch, also where validation is rarer
        super().__init__(dirpath, "last", save_on_train_epoch_end=True, enable_version_counter=False)
        self._signal: int | None = None

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let the best checkpoint of a run folder that was moved stay the best: Lightning forgets it with the path."""
        here = Path(str(self.dirpath))
        if trainer.ckpt_path is None or Path(trainer.ckpt_path).resolve().parent != here.resolve():
            return
        for state in checkpoint["callbacks"].values():
            if state.get("dirpath") not in (None, str(here)):
                state["dirpath"] = str(here)
                state["best_k_models"] = {str(here / Path(p).name): s for p, s in state["best_k_models"].items()}
                for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
                    state[name] = state[name] and str(here / Path(state[name]).name)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over from Lightning, which stops without saving and asks the device in every distributed step."""
        super().on_train_start(trainer, pl_module)
        if trainer.received_sigterm:  # before training began
            self._signal, trainer._signal_connector.received_sigterm = signal.SIGTERM, False
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        for number in (signal.SIGTERM, signal.SIGINT):
            trainer._signal_connector._register_signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self._signal == number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = number
        again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
        rank_zero_info(f"{signal.Signals(number).name}: this step is finished and saved first{again}")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        accumulating = (batch_idx + 1) % trainer.accumulate_grad_batches
        if accumulating or trainer.is_last_batch:
            return
        every = trainer.val_check_batch  # validation would be left out if the run went on from a checkpoint before it
        validates = every and (batch_idx + 1) % every == 0
        agrees = trainer.world_size == 1 or trainer.global_step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        asked = agrees and not validates and self._asked(trainer)
        stops = trainer.should_stop and trainer.fit_loop._can_stop_early  # not before min_epochs and min_steps
        if asked or stops or trainer.global_step == trainer.max_steps:
            path = Path(str(self.dirpath)) / "last.ckpt"
            trainer.save_checkpoint(path, weights_only=False)
            if asked:
                self._stop(trainer, f"saved in the middle of epoch {trainer.current_epoch}: {path}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, unless the run ends inside the epoch: it could not go on from here."""
        if trainer.is_last_batch:
            super().on_train_epoch_end(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        if self._asked(trainer):
            epoch = trainer.current_epoch
            self._stop(trainer, f"stopped after epoch {epoch - 1}, which is saved" if epoch else "stopped at the start")

    def _asked(self, trainer: Trainer) -> bool:
        return trainer.strategy.reduce_boolean_decision(self._signal is not None, all=False)

    def _stop(self, trainer: Trainer, what: str) -> None:
        rank_zero_info(f"{what}; the same command with --ckpt_path last goes on from there")
        # The process that launched others watches their status, and would take another one for a crash.
        raise SystemExit(128 + (self._signal or signal.SIGTERM) if trainer.is_global_zero else 0)
