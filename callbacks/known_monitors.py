"""Refuse to watch a score that nobody logs."""

from pytorch_lightning import Callback, LightningModule, Trainer

from networks import InputError


class KnownMonitors(Callback):
    """Refuses a `monitor`, of a ModelCheckpoint or EarlyStopping, that validation does not log, before training begins.

    What validation logs is known from the sanity check; what training will, train/..., is not, nor what modules log
    that are none of ours.

    Raises:
        InputError: names what validation logs.
    """

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not hasattr(pl_module, "score"):
            return
        logged = trainer.callback_metrics.keys()
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            name = getattr(callback, "monitor", None)
            if name is None or name in (*logged, "epoch", "step") or name.startswith("train/"):
                continue
            raise InputError(
                f"{type(callback).__name__} has the monitor {name}, which nothing logs: give one of "
                f"{', '.join(sorted(logged))} (--checkpoint.monitor NAME), or of training, train/..."
            )
