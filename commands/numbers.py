"""Numbers of a trainer that Lightning takes, and on which a run fails later, or does nothing."""

from jsonargparse import Namespace
from pytorch_lightning import Trainer

from networks import InputError

LEAST = {"accumulate_grad_batches": 1, "check_val_every_n_epoch": 1, "gradient_clip_val": 0, "log_every_n_steps": 0}


def check_numbers(trainer: Namespace) -> None:
    """Refuse those that are too small, before a trainer is built (InputError)."""
    for name, least in LEAST.items():
        value = trainer.get(name)
        if value is not None and value < least:
            raise InputError(f"trainer.{name}={value} must be at least {least}")


def check_length(trainer: Trainer, batches: int) -> None:
    """Refuse a run that trains on nothing, or whose epochs are shorter than the way to their validation.

    Args:
        batches: of an epoch, of each device.

    Raises:
        InputError: says which number to change.
    """
    for name in ("max_epochs", "max_steps"):
        if getattr(trainer, name) == 0:
            raise InputError(f"trainer.{name}=0 trains nothing: give at least 1, or see `frugal count` for the cost")
    limit, interval = trainer.limit_train_batches, trainer.val_check_interval
    taken = int(batches * limit) if isinstance(limit, float) else min(batches, limit)
    if taken < 1:
        raise InputError(f"trainer.limit_train_batches={limit} of {batches} batches leaves none to train on: give more")
    if isinstance(interval, int) and interval > taken and trainer.check_val_every_n_epoch is not None:
        raise InputError(
            f"trainer.val_check_interval={interval} is more than the {taken} batches of an epoch: give less, or "
            "--trainer.check_val_every_n_epoch null to count on from epoch to epoch"
        )
