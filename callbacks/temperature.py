"""Anneal the temperature of every layer that has one."""

import math
from typing import Any, Literal

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from networks import InputError
from networks.errors import check_choice

Schedule = Literal["constant", "linear", "cosine", "exponential"]
Interval = Literal["epoch", "step"]


class TemperatureAnnealing(Callback):
    """Anneals the float attribute `temperature` of every submodule that has one, and logs it as train/temperature.

    With t from 0 in the run's first epoch (or step) to 1 in its last, the temperature is `start` for "constant",
    start + (end - start) t for "linear", end + (start - end) (1 + cos(pi t)) / 2 for "cosine", and
    start (end / start)^t for "exponential". It depends on the epoch or the optimiser's step alone, so that a resumed
    run goes on with what it had. A run of one epoch (or step) has `start`. No checkpoint has it: after
    training layers keep the last one, and in another process they have that which they were built with.

    Args:
        start: the first temperature, positive.
        end: the last one, positive; "constant" has none, the other schedules need it.
        schedule: "constant", "linear", "cosine" or "exponential".
        interval: "epoch", t = epoch / (trainer.max_epochs - 1), logged after every epoch; or "step",
            t = optimiser step / (all steps - 1), logged as train/temperature_step every trainer.log_every_n_steps.

    Raises:
        InputError: a temperature that is not positive and finite, an option that is not in its list, an `end` too few
            or too many; a run whose end is not known, unless "constant".
    """

    def __init__(
        self,
        start: float = 1.0,
        end: float | None = None,
        schedule: Schedule = "constant",
        interval: Interval = "epoch",
    ) -> None:
        for name, value, choices in (("schedule", schedule, Schedule), ("interval", interval, Interval)):
            check_choice(name, value, choices)
        constant = schedule == "constant"
        if end is None and not constant:
            raise InputError(f"a {schedule} temperature needs an end: give end=0.02, say")
        end = start if end is None else end
        if not (0 < start < math.inf and 0 < end < math.inf):
            raise InputError(f"temperatures must be positive and finite; got {start=}, {end=}")
        if constant and end != start:
            raise InputError(f"a constant temperature stays at {start=}: drop {end=}, or choose another schedule")
        self.start, self.end, self.schedule, self.interval = float(start), float(end), schedule, interval
        self._name = "train/temperature" if interval == "epoch" else "train/temperature_step"
        self._layers: list[nn.Module] = []
        self._last = 0  # number of the run's last epoch or step

    def value(self, t: float) -> float:
        """Temperature at progress t, 0 to 1; exactly `start` at 0 and `end` at 1."""
        if self.schedule == "constant":
            return self.start
        left = (1 + math.cos(math.pi * t)) / 2 if self.schedule == "cosine" else 1 - t
        if self.schedule == "exponential":
            return self.start**left * self.end ** (1 - left)
        return left * self.start + (1 - left) * self.end

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and self.schedule != "constant" and trainer.max_epochs == trainer.max_steps == -1:
            raise self._without_end()  # before anything runs

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set it here too: Lightning leaves on_train_epoch_start out where a run resumes in the middle of an epoch."""
        others = (module for module in pl_module.modules() if module is not pl_module)
        self._layers = [module for module in others if isinstance(getattr(module, "temperature", None), float)]
        if not self._layers:
            rank_zero_warn("TemperatureAnnealing does nothing: no submodule has a float attribute `temperature`")
            return
        constant = self.schedule == "constant"
        self._last = 0 if constant else self._count(trainer) - 1
        self._set(trainer)
        span = f"{self.start:g}" if constant else f"{self.start:g} to {self.end:g}"
        by = "" if constant else f" by {self.interval},"
        layers = "1 layer" if len(self._layers) == 1 else f"{len(self._layers)} layers"
        rank_zero_info(f"temperature {span}, {self.schedule},{by} in {layers}")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._set(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.interval == "epoch" or batch_idx % trainer.accumulate_grad_batches:
            return
        self._set(trainer)
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (trainer.global_step + 1) % every == 0:  # where Lightning logs, and under its number of the step
            self._log(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.interval == "epoch":
            self._log(trainer)

    def _now(self, trainer: Trainer) -> float:
        done = trainer.current_epoch if self.interval == "epoch" else trainer.global_step
        return self.value(min(done / self._last, 1.0) if self._last else 0.0)

    def _set(self, trainer: Trainer) -> None:
        value = self._now(trainer)
        for layer in self._layers:
            layer.temperature = value  # type: ignore[assignment]

    def _log(self, trainer: Trainer) -> None:
        if self._layers and trainer.is_global_zero:
            for logger in trainer.loggers:
                metrics = {"epoch": trainer.current_epoch, self._name: self._now(trainer)}
                logger.log_metrics(metrics, step=trainer.global_step)

    def _count(self, trainer: Trainer) -> int:
        """Epochs or steps of the whole run."""
        count: float = trainer.max_epochs or 0
        if self.interval == "step":
            count = trainer.estimated_stepping_batches
        elif count == -1:
            steps_per_epoch = -(-trainer.num_training_batches // trainer.accumulate_grad_batches)
            count = -(-trainer.max_steps // steps_per_epoch)
        if not 0 < count < math.inf:  # also where the data do not say how many they are
            raise self._without_end()
        return int(count)

    def _without_end(self) -> InputError:
        return InputError(
            f"a {self.schedule} temperature ends with the run's last {self.interval}, whose number is not known: "
            f"give trainer.max_{self.interval}s, or schedule=constant"
        )
