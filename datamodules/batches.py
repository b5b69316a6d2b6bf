"""Batches of a data set: who takes which samples, in which order, from where on."""

import signal
import weakref
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from datamodules.randomness import Draw, permutation
from networks import InputError


class BatchDataset(Protocol):
    """A data set that gives whole batches, augmented by the randomness of the draw alone."""

    def __len__(self) -> int: ...

    def __getitem__(self, draw: Draw) -> Any: ...


class Order(Sampler[Draw]):
    """The draws of one process in one epoch.

    A batch of the recipe is cut into equal shares: by accumulated steps, then by processes, so that they see together
    what one process would. In training an incomplete last batch is left out, so that every step of an epoch is alike on
    any hardware; in evaluation it is shared out as evenly as it goes, each sample once, and a share may be empty:
    every process has equally many batches, for the first forward after a training step shares the buffers of rank 0.

    Args:
        size: number of samples.
        batch_size: of the recipe, over all processes and accumulated steps.
        training: shuffle, by (seed, epoch); else in the data set's order.
        seed: of the run.
        rank, world_size: of the process.
        steps: accumulated steps.
        repeat: every epoch is as the first, for Lightning's `overfit_batches`.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        training: bool,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        steps: int = 1,
        repeat: bool = False,
    ) -> None:
        self.size, self.batch_size, self.training, self.seed = size, batch_size, training, seed
        self.rank, self.world_size, self.steps, self.repeat = rank, world_size, steps, repeat
        self.epoch = 0
        self.start = 0  # where the next iteration begins, in batches of this process

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before every epoch."""
        self.epoch = 0 if self.repeat else epoch

    def __len__(self) -> int:
        batches = self.size // self.batch_size if self.training else -(-self.size // self.batch_size)
        return batches * self.steps

    def __iter__(self) -> Iterator[Draw]:
        order = permutation(self.size, self.seed, self.epoch) if self.training else np.arange(self.size)
        for i in range(self.start, len(self)):
            batch, step = divmod(i, self.steps)
            samples = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            shares = np.array_split(samples, self.steps * self.world_size)
            yield Draw(self.seed, self.epoch, shares[step * self.world_size + self.rank])


class Batches:
    """What a DataModule's loaders are: iterable, with a length, and resumable in the middle of an epoch.

    Lightning sets the epoch and saves the position; in a loop of your own each iteration is the next epoch.

    Args:
        dataset: gives whole batches.
        order: the draws of this process.
        num_workers: processes that prepare batches; 0 prepares them in this one. The batches are the same.
    """

    batch_sampler = None  # Lightning looks for one

    def __init__(self, dataset: BatchDataset, order: Order, num_workers: int = 0) -> None:
        self.sampler = order  # under the name by which Lightning sets the epoch
        self._resumed: dict[str, int] | None = None
        self._position = 0
        self._loader: DataLoader[Any] = DataLoader(
            dataset,  # type: ignore[arg-type]
            batch_size=None,
            sampler=order,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            worker_init_fn=_leave_signals_to_the_main_process,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # else a loader takes a number from the global one, and resuming is not exact
        )
        # Before the loader can be garbage: its queues may close before its workers are told to end, and then it waits.
        weakref.finalize(self, _end_workers, self._loader)

    @property
    def _iterator(self) -> Any:
        """Of the loader; Lightning ends persistent workers through this name."""
        return self._loader._iterator

    @_iterator.setter
    def _iterator(self, iterator: Any) -> None:
        self._loader._iterator = iterator

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Any]:
        # A generator runs from the first `next` on; Lightning makes the iterator before it sets the epoch.
        resumed, self._resumed = self._resumed, None
        here = resumed is not None and resumed["epoch"] == self.sampler.epoch
        self._position = self.sampler.start = resumed["position"] if resumed and here else 0
        try:
            for batch in self._loader:
                self._position += 1
                yield batch
        except InputError as error:  # from a worker its text is a whole traceback, which ends with what the user needs
            raise InputError(str(error).strip().rpartition("InputError: ")[2]) from error
        self.sampler.epoch, self._position = self.sampler.epoch + 1, 0

    def indices(self) -> list[list[int]]:
        """Which samples each batch of this epoch has."""
        return [draw.indices.tolist() for draw in self.sampler]

    def state_dict(self) -> dict[str, int]:
        """Where this epoch has got to, and on what that position depends."""
        order = self.sampler
        return {
            "epoch": order.epoch,
            "position": self._position,
            "batch_size": order.batch_size,
            "batches": len(order),
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there.

        Raises:
            InputError: in the middle of an epoch, where the rest of it would be other samples than it was.
        """
        ours = self.state_dict()
        changed = [f"{name} {state[name]}" for name in ("batch_size", "batches") if state[name] != ours[name]]
        if changed and 0 < state["position"] < state["batches"]:
            raise InputError(
                f"the checkpoint is from the middle of an epoch with {', '.join(changed)} (here "
                f"{', '.join(str(ours[change.split()[0]]) for change in changed)}): resume it with the same"
            )
        self._resumed = state


def _end_workers(loader: DataLoader[Any]) -> None:
    if loader._iterator is not None:
        loader._iterator._shutdown_workers()  # type: ignore[attr-defined]


def _leave_signals_to_the_main_process(worker: int) -> None:
    """Terminals and schedulers signal every process of a job; the main one still needs its batches to save and stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
