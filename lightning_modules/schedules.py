"""Schedules of the learning rate beyond those that a Classifier knows by name."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


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
    """

    def __init__(
        self, optimizer: Optimizer, every: int, factor: float, warmup_epochs: int = 0, warmup_start: float = 0.0
    ) -> None:
        start = warmup_start / optimizer.param_groups[0]["lr"]

        def rate(epoch: int) -> float:
            if epoch < warmup_epochs:
                return start + epoch * (1 - start) / warmup_epochs
            return factor ** (epoch // every)

        super().__init__(optimizer, rate)
