"""What every DataModule shares: the batch size of the recipe, and loaders whose randomness is a function."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning import LightningDataModule, Trainer

from datamodules.batches import BatchDataset, Batches, Order
from networks import InputError


class DataModule(LightningDataModule):
    """Gives batches of `train_set`, `val_set` and `test_set`, which `setup` of a subclass makes; predicts on the last.

    A subclass says `num_classes`, `input_size` and `class_names` before it reads anything. Order and augmentation are
    functions of (seed, epoch, sample index); the seed is that of `seed_everything`, or 0.

    Args:
        batch_size: total over all devices and accumulated steps.
        num_workers: processes that prepare batches, for each device.
    """

    num_classes: int
    input_size: tuple[int, ...]
    class_names: tuple[str, ...]
    gives: str  # "labels" or "objects"; data that do not say it are taken for what the model learns
    validates: bool = True  # whether there are data to validate on
    train_set: BatchDataset
    val_set: BatchDataset
    test_set: BatchDataset
    trainer: Trainer | None

    def __init__(self, batch_size: int, num_workers: int = 0) -> None:
        super().__init__()
        if num_workers < 0:
            raise InputError(f"data.num_workers={num_workers} must not be negative")
        self.batch_size, self.num_workers = batch_size, num_workers
        self.seed: int | None = None  # chosen when loaders are first made

    def state_dict(self) -> dict[str, int | None]:
        return {"seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, int | None]) -> None:
        """A resumed run goes on in the order that it began with."""
        self.seed = state_dict["seed"]

    def train_dataloader(self) -> Batches:
        size = len(self.train_set)
        if size < self.batch_size:
            raise InputError(f"data.batch_size={self.batch_size} is more than the {size} samples to train")
        return self._batches(self.train_set, training=True)

    def val_dataloader(self) -> Batches:
        return self._batches(self.val_set)

    def test_dataloader(self) -> Batches:
        return self._batches(self.test_set)

    def predict_dataloader(self) -> Batches:
        return self._batches(self.test_set)

    def _batches(self, dataset: BatchDataset, training: bool = False) -> Batches:
        process: dict[str, Any] = {}
        if self.trainer:
            process = {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}
            check_batch_size(self.batch_size, self.trainer, training)
            if training:
                process["steps"] = self.trainer.accumulate_grad_batches
                process["repeat"] = self.trainer.overfit_batches > 0  # type: ignore[attr-defined]
        if self.seed is None:
            self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        return Batches(dataset, Order(len(dataset), self.batch_size, training, self.seed, **process), self.num_workers)


def data_root(given: str | None) -> Path:
    """Folder of data sets: what was given, or the environment variable FRUGAL_DATA, or data/."""
    return Path(given or os.environ.get("FRUGAL_DATA", "data")).expanduser()


def hold_out(labels: np.ndarray, count: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Places of the samples that train, and of `count` that validate instead, evenly over the classes; always the same.

    Raises:
        InputError: too few are left on one side.
    """
    every = np.arange(len(labels))
    if not count:
        return every, every[:0]
    if not num_classes <= count <= len(labels) - num_classes:
        raise InputError(f"data.held_out={count} of {len(labels)} images leaves too few on one side")
    from sklearn.model_selection import train_test_split

    train, held_out = train_test_split(every, test_size=count, stratify=labels, random_state=0)
    return train, held_out


def check_batch_size(total: int, trainer: Trainer, training: bool) -> None:
    """Refuse a batch size that devices and, in training, accumulated steps do not share out evenly.

    Raises:
        InputError: `total` is no multiple of them.
    """
    devices, steps = trainer.world_size, trainer.accumulate_grad_batches if training else 1
    if total < 1 or total % (devices * steps):
        raise InputError(
            f"data.batch_size={total} is the total and is no multiple of {devices} devices x {steps} accumulated "
            f"steps; take a multiple of {devices * steps}"
        )
