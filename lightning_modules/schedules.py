"""Schedules of the learning rate beyond those that a Classifier knows by name."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from networks import InputError


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
