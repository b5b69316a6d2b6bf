"""What tests of runs share: stopping one, what two equal ones have in common, and comparing it."""

import os
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback

import frugal
from callbacks import LastCheckpoint


def fit(folder: Path) -> None:
    """`frugal fit`, for a process of its own whose working directory is `folder`; it begins, or goes on."""
    os.chdir(folder)
    with open("said.txt", "a") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    frugal.main(["fit", "-c", "configs/small.yaml", "--ckpt_path", "last"])


class Stop(Callback):
    """Ends a run after a number of steps, as SIGTERM would."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer, *args) -> None:
        if trainer.global_step == self.steps:
            next(c for c in trainer.callbacks if isinstance(c, LastCheckpoint))._signal = 15


def same(a: Any, b: Any) -> bool:
    """Whether nested dicts and lists are equal, tensors bit for bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def without_hours(history: list[dict[str, float]]) -> list[dict[str, float]]:
    """Rows of TrainingCurves without the time that they took."""
    return [{name: value for name, value in row.items() if name != "hours"} for row in history]


def result(path: Path) -> dict[str, Any]:
    """What the checkpoints of two equal runs have in common: all but the time they took and where they are."""
    checkpoint = torch.load(path, weights_only=True)
    callbacks = {name: state for name, state in checkpoint.pop("callbacks").items() if "Checkpoint" not in name}
    callbacks["TrainingCurves"] = without_hours(callbacks["TrainingCurves"]["history"])
    return {**{name: value for name, value in checkpoint.items() if name != "wandb_id"}, "callbacks": callbacks}
