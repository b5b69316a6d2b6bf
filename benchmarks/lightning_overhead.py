"""What Lightning and our callbacks cost over a bare PyTorch loop: python benchmarks/lightning_overhead.py

Conv-4 as a ticket (MPT-1/32) on images of CIFAR's size, batch 128, on the processor or the first GPU: the same network,
optimiser and input, trained in a bare loop, by Lightning's Trainer alone, and with all that `frugal fit` adds to it
(metrics, divergence check, exact resume, checkpoints, curves, progress bar, CSV logger). Then the same with a network
that costs next to nothing, which shows the milliseconds that are added to every step.
"""

import argparse
import itertools
import os
import statistics
import tempfile
import time
import warnings

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything
from pytorch_lightning.loggers import CSVLogger
from timing import header, own_peak, peak_memory
from torch.nn import functional as F

from callbacks import ComplexityMonitor, ExactResume, FiniteLoss, LastCheckpoint, ProgressBar, TrainingCurves
from datamodules.base import DataModule
from datamodules.images import Images
from lightning_modules import Biprop

SIZES = {"Conv-4, batch 128": (1.0, 128), "Conv-4 of width 0.05, batch 8": (0.05, 8)}


class Pictures(DataModule):
    """Random images, enough for a number of steps."""

    num_classes, input_size = 10, (3, 32, 32)

    def __init__(self, steps: int, batch: int) -> None:
        super().__init__(batch)
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (batch * steps, 3, 32, 32), dtype=np.uint8)
        labels = rng.integers(0, 10, len(images))
        self.train_set = Images(images, labels, (125.0,) * 3, (63.0,) * 3, crop_padding=4, flip=True)


class Clock(Callback):
    """When each step ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_start(self, *args):
        self.times.append(now())


class Bare(LightningModule):
    def __init__(self, module: Biprop) -> None:
        super().__init__()
        self.module = module

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.module(batch[0]), batch[1])

    def configure_optimizers(self):
        return sgd(self.module)


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def sgd(module: torch.nn.Module) -> torch.optim.Optimizer:
    trained = [p for p in module.parameters() if p.requires_grad]
    return torch.optim.SGD(trained, lr=0.1, momentum=0.9, weight_decay=1e-4)


def bare_loop(module: Biprop, data: Pictures) -> list[float]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    module.to(device).train()
    optimizer, times = sgd(module), []
    for images, labels in data.train_dataloader():
        times.append(now())
        optimizer.zero_grad()
        F.cross_entropy(module(images.to(device)), labels.to(device)).backward()
        optimizer.step()
    return times


def trainer_alone(module: Biprop, data: Pictures) -> list[float]:
    return fit(Bare(module), data, logger=False, enable_checkpointing=False, enable_progress_bar=False)


def frugal_fit(module: Biprop, data: Pictures) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        extras = [
            ComplexityMonitor(),
            TrainingCurves(),
            ExactResume(),
            FiniteLoss(),
            LastCheckpoint(folder),
            ProgressBar(),
        ]
        return fit(module, data, extras, logger=CSVLogger(folder), default_root_dir=folder)


def fit(module: LightningModule, data: Pictures, callbacks: list[Callback] | None = None, **options) -> list[float]:
    clock = Clock()
    trainer = Trainer(
        max_epochs=1, devices=1, callbacks=[*(callbacks or []), clock], enable_model_summary=False,
        limit_val_batches=0, **options,
    )  # fmt: skip
    trainer.fit(module, data)
    return clock.times


ALTERNATIVES = {"bare PyTorch loop": bare_loop, "Lightning's Trainer": trainer_alone, "frugal fit": frugal_fit}


def steps(name: str, number: int, width: float, batch: int) -> list[float]:
    """Seconds of each step, from its start to the next one's."""
    seed_everything(0, verbose=False)
    module = Biprop("conv4", 10, (3, 32, 32), {"width": width})
    times = ALTERNATIVES[name](module, Pictures(number, batch))
    return [after - before for before, after in itertools.pairwise(times[2:])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="train by one alternative and print the peak memory in MiB")
    parser.add_argument("--rounds", type=int, default=6, help="the default is 6")
    parser.add_argument("--steps", type=int, default=23, help="of each round; the first two do not count")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    os.environ.setdefault("COLUMNS", "80")
    if options.only:
        steps(options.only, 4, *SIZES["Conv-4, batch 128"])
        print(own_peak())
        return
    header()
    for title, size in SIZES.items():
        seconds: dict[str, list[float]] = {name: [] for name in ALTERNATIVES}
        for _ in range(options.rounds):
            for name in ALTERNATIVES:  # they take turns, so that drift cancels
                seconds[name] += steps(name, options.steps, *size)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        print(f"\na step of {title}, median of {len(seconds['frugal fit'])}")
        for name, median in medians.items():
            print(f"  {name:<42} {median * 1e3:9.2f} ms {median / medians['bare PyTorch loop']:8.3f} x")
    print("\npeak memory")
    for name in ALTERNATIVES:
        print(f"  {name:<42} {peak_memory(__file__, name):9.0f} MiB")


if __name__ == "__main__":
    main()
