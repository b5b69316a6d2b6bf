"""Log the learning rates."""

from pytorch_lightning import Callback, LightningModule, Trainer


class LearningRates(Callback):
    """Logs lr/group_<i>, the rate of each group of the optimiser's parameters, with which an epoch begins."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        rates = {f"lr/group_{i}": float(group["lr"]) for i, group in enumerate(groups)}
        for logger in trainer.loggers:
            logger.log_metrics({"epoch": trainer.current_epoch, **rates}, step=trainer.global_step)
