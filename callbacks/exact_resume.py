"""Save what Lightning leaves out of a checkpoint."""

import random
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from torchmetrics import Metric


class ExactResume(Callback):
    """Saves the random states and running metrics of every process, so that a resumed run goes on as if it never ended.

    With it, and with our DataModules, a run that is resumed at an epoch's end or in the middle of an epoch gives the
    weights and metrics of the run that was not interrupted, bit for bit on CPU.
    """

    def __init__(self) -> None:
        self._state: dict[str, Any] | None = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        progress: Any = trainer.fit_loop.epoch_progress.current
        in_epoch = progress.processed < progress.ready  # at its end the metrics are logged and begin anew
        metrics = _metrics(trainer, pl_module) if in_epoch else {}
        state: dict[str, Any] = {"random": _random_states(), "in_epoch": in_epoch, "metrics": metrics}
        states = [state] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(states, state)
        checkpoint["processes"] = states

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        states = checkpoint.get("processes", [])
        if len(states) == trainer.world_size:
            self._state = states[trainer.global_rank]
        elif trainer.training:
            rank_zero_warn(
                f"the checkpoint has the random states of {len(states)} processes, here are {trainer.world_size}: "
                "what follows is not what would have followed"
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._state:  # before loaders are iterated, for PyTorch's draw their order then
            _set_random_states(self._state["random"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        state, self._state = self._state, None
        if state and state["in_epoch"]:  # whose loaders had drawn before
            _set_random_states(state["random"])
            for name, values in state["metrics"].items():
                metric = pl_module.get_submodule(name)
                for attribute, value in values.items():
                    setattr(metric, attribute, value.to(pl_module.device))


def _metrics(trainer: Trainer, module: LightningModule) -> dict[str, dict[str, Any]]:
    """State tensors of the metrics that training has logged, which are not in a module's state_dict.

    Those of validation may be full here, though it is over: Lightning resets them after checkpoints are saved.
    """
    running = {id(item.value) for item in trainer.fit_loop.epoch_loop._results.values()}
    return {
        name: {key: value.cpu().clone() for key, value in metric.metric_state.items() if isinstance(value, Tensor)}
        for name, metric in module.named_modules()
        if isinstance(metric, Metric) and id(metric) in running
    }


def _random_states() -> dict[str, Any]:
    """States of the global generators, as tensors, numbers and tuples: they load with weights_only."""
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002, the generator that libraries use
    states = {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), *rest),  # type: ignore[union-attr]
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _set_random_states(states: dict[str, Any]) -> None:
    kind, keys, *rest = states["numpy"]
    random.setstate(states["python"])
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
