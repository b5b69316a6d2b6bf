"""Schedules of the learning rate: those that modules know by name, and StepDecay."""

import math
from collections.abc import Sequence
from typing import Literal

from pytorch_lightning.cli import LRSchedulerCallable
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from networks import InputError

NamedSchedule = Literal["cosine", "steps", "constant"]
Schedule = NamedSchedule | LRSchedulerCallable


def check_schedule(schedule: Schedule, drop_epochs: Sequence[int], **warmup: int) -> None:
    """Refuse drops without steps and steps without drops, and a warm-up of a schedule that is a class (InputError).

    Args:
        warmup: its length by the name of its argument.
    """
    for name, length in warmup.items():
        if length and not isinstance(schedule, str):
            raise InputError(f"{name}={length} belong to the schedules by name: give them to the schedule itself")
    if bool(drop_epochs) != (schedule == "steps"):
        raise InputError(f"{drop_epochs=} go with schedule='steps', and it with them; got {schedule=}")


def check_epochs(schedule: Schedule, epochs: int, warmup_epochs: int) -> None:
    """Refuse a number of epochs that leaves nothing behind the warm-up (InputError)."""
    if schedule == "cosine" and epochs <= warmup_epochs:
        raise InputError(f"the cosine schedule ends with trainer.max_epochs: give more than {warmup_epochs=}")


def warmup_then(
    schedule: Schedule, optimizer: Optimizer, epochs: int, warmup_epochs: int, drop_epochs: Sequence[int] = ()
) -> LRScheduler:
    """Linear warm-up, then cosine, steps or constant, stepped every epoch e = 0, 1, ...

    lr(e) = lr0 * (e + 1) / w for e < w; then lr0, for "cosine" lr0 * (1 + cos(pi * (e - w) / (E - w))) / 2, for "steps"
    lr0 * 0.1^(number of drops at or before e).
    In closed form, so that a resumed run has the same rates; timm's linear warm-up has another slope, (L - init) / w.

    Args:
        epochs: E, the whole run's.
        warmup_epochs: w, less than E.
        drop_epochs: of "steps".

    Raises:
        InputError: E is not known, or leaves nothing behind the warm-up.
    """
    w = warmup_epochs
    check_epochs(schedule, epochs, w)

    def factor(epoch: int) -> float:
        if epoch < w:
            return (epoch + 1) / w
        if schedule == "steps":
            return 0.1 ** sum(epoch >= drop for drop in drop_epochs)
        return (1 + math.cos(math.pi * (epoch - w) / (epochs - w))) / 2 if schedule == "cosine" else 1.0

    return LambdaLR(optimizer, factor)


def set_rates(scheduler: LambdaLR) -> None:
    """Set the optimiser's rates to the schedule's for its epoch."""
    groups = scheduler.optimizer.param_groups
    for group, rate, factor in zip(groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
        group["lr"] = rate * factor(scheduler.last_epoch)


class StepDecay(LambdaLR):
    """Exponential steps behind a linear warm-up, stepped every epoch e = 0, 1, ...

    lr(e) = start + e * (lr0 - start) / w for e < w, then lr0 * factor^floor(e / every): as timm's StepLRScheduler
    without its warmup_prefix, in closed form. EfficientNet's recipe; epochs of the decay count from 0.

    Args:
        optimizer: its rate is lr0.
        every: epochs between steps.
        factor: by which the rate is multiplied at each.
        warmup_epochs: w.
        warmup_start: rate of epoch 0, of the first parameter group; the others are in proportion.

    Raises:
        InputError: numbers that are none of these.
    """

    def __init__(
        self, optimizer: Optimizer, every: int, factor: float, warmup_epochs: int = 0, warmup_start: float = 0.0
    ) -> None:
        peak = optimizer.param_groups[0]["lr"]
        if every < 1 or not 0 < factor < math.inf or warmup_epochs < 0 or not 0 <= warmup_start <= peak or not peak:
            raise InputError(
                f"{every=} and {factor=} must be positive, {warmup_epochs=} not negative, {warmup_start=} at most the "
                f"rate of {peak}"
            )
        start = warmup_start / peak

        def rate(epoch: int) -> float:
            if epoch < warmup_epochs:
                return start + epoch * (1 - start) / warmup_epochs
            return factor ** (epoch // every)

        super().__init__(optimizer, rate)
