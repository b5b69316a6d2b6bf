"""Runs that end before their time, and whether two that should be one are."""

import torch
from pytorch_lightning import Callback

from callbacks import LastCheckpoint


class Stop(Callback):
    """Ends a run after a number of steps, as SIGTERM would."""

    def __init__(self, steps):
        self.steps = steps

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.steps:
            next(c for c in trainer.callbacks if isinstance(c, LastCheckpoint))._signal = 15


def same(a, b):
    """Whether nested values are equal, their tensors bit for bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
