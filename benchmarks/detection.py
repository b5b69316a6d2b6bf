"""A training step of Faster R-CNN with ResNet-50 and FPN: python benchmarks/detection.py FOLDER (that has coco/)

Two real photographs of 256 pixels, boxes as annotated, SGD: torchvision's own model in a bare loop, ours in one too,
and `frugal fit`'s module and callbacks. All begin with the same weights and draw the same anchors and proposals.
"""

import argparse
import os
import statistics
import tempfile
import time
import warnings

import torch
from pytorch_lightning import Callback, LightningDataModule, Trainer
from pytorch_lightning.loggers import CSVLogger
from timing import header, own_peak, peak_memory
from torch.utils.data import DataLoader
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from callbacks import ComplexityMonitor, ExactResume, FiniteLoss, LastCheckpoint, ProgressBar, TrainingCurves
from commands.memory import keep_freed_memory
from datamodules import COCO
from datamodules.randomness import Draw
from lightning_modules import Detector
from networks.detection import fasterrcnn
from networks.detection.two_stage import longest_side

SIDE, STEPS = 256, 4


class Repeated(LightningDataModule):
    """One batch, over and over."""

    num_classes, input_size = 91, (3, SIDE, SIDE * 3 // 2)

    def __init__(self, batch):
        super().__init__()
        self.batch = batch

    def train_dataloader(self):
        return DataLoader([self.batch] * (STEPS + 1), batch_size=None)


class Clock(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 1:  # what is done once is not a step's
            self.started = time.perf_counter()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == STEPS:
            self.seconds = (time.perf_counter() - self.started) / STEPS


def read(folder):
    data = COCO(folder, batch_size=2, image_size=SIDE, num_workers=0)
    data.setup("fit")
    return data.train_set[Draw(0, 0, torch.arange(2).numpy())]


def sgd(network):
    return torch.optim.SGD(network.parameters(), lr=0.001, momentum=0.9, weight_decay=1e-4)


def bare_loop(network, batch):
    network.train()
    optimizer = sgd(network)
    images, targets = batch

    def steps():
        torch.manual_seed(0)
        for step in range(STEPS + 1):
            if step == 1:
                started = time.perf_counter()
            losses = network([image.float() / 255 for image in images], targets)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
        return (time.perf_counter() - started) / STEPS

    return steps


def torchvisions(batch):
    torch.manual_seed(0)
    sizes = {"min_size": SIDE, "max_size": longest_side(SIDE)}
    norm = torch.nn.BatchNorm2d
    return bare_loop(fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, norm_layer=norm, **sizes), batch)


def ours(batch):
    torch.manual_seed(0)
    return bare_loop(fasterrcnn("resnet50", img_size=(SIDE, SIDE * 3 // 2)), batch)


def fit(batch):
    """As `frugal fit` trains, with its callbacks."""
    torch.manual_seed(0)
    module = Detector("fasterrcnn", 91, Repeated.input_size, {"backbone": "resnet50"}, sgd_of, "constant")
    data = Repeated(batch)

    def steps():
        with tempfile.TemporaryDirectory() as folder:
            clock = Clock()
            extras = [ComplexityMonitor(), TrainingCurves(), ExactResume(), FiniteLoss(), LastCheckpoint(folder)]
            trainer = Trainer(max_epochs=1, devices=1, logger=CSVLogger(folder), default_root_dir=folder,
                              callbacks=[*extras, ProgressBar(), clock], enable_model_summary=False)  # fmt: skip
            torch.manual_seed(0)
            trainer.fit(module, data)
            return clock.seconds

    return steps


def sgd_of(parameters):
    return torch.optim.SGD(parameters, lr=0.001, momentum=0.9, weight_decay=1e-4)


ALTERNATIVES = {"torchvision's, bare loop": torchvisions, "ours, bare loop": ours, "frugal fit": fit}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--only", choices=ALTERNATIVES, help="train a few steps and print the peak memory in MiB")
    parser.add_argument("--rounds", type=int, default=8, help="the default is 8")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    os.environ.setdefault("COLUMNS", "80")
    keep_freed_memory()  # as every frugal command; the bare loops gain as much
    batch = read(options.folder)
    if options.only:
        ALTERNATIVES[options.only](batch)()
        print(own_peak())
        return
    header()
    runs = {name: make(batch) for name, make in ALTERNATIVES.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, run in runs.items():  # they take turns, so that drift cancels
            seconds[name].append(run())
    print(f"\na step, median of {options.rounds} rounds of {STEPS}")
    base = statistics.median(seconds["torchvision's, bare loop"])
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"  {name:<42} {median * 1e3:9.0f} ms {median / base:8.3f} x")
    print("\npeak memory")
    for name in ALTERNATIVES:
        print(f"  {name:<42} {peak_memory(__file__, name, options.folder):9.0f} MiB")


if __name__ == "__main__":
    main()
