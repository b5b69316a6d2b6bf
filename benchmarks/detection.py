"""A training step of Faster R-CNN with ResNet-50 and FPN: python benchmarks/detection.py FOLDER (that has coco/)

Two real photographs of 256 pixels, boxes as annotated, SGD: torchvision's own model in a bare loop, ours in one too,
and `frugal fit`'s module and callbacks. All begin with the same weights and draw the same anchors and proposals.
"""

import argparse
import os
import tempfile
import time
import warnings

import torch
from pytorch_lightning import Callback, LightningDataModule, Trainer
from pytorch_lightning.loggers import CSVLogger
from timing import compare, header, own_peak, peak_memory
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from callbacks import ComplexityMonitor, ExactResume, FiniteLoss, LastCheckpoint, ProgressBar, TrainingCurves
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
        return [self.batch] * (STEPS + 1)


class Clock(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 1:  # what is done once is not a step's
            self.started = time.perf_counter()


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
        for _ in range(STEPS):
            losses = network([image.float() / 255 for image in images], targets)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()

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
    """Seconds of as many steps, by the clock of a callback."""
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
            return time.perf_counter() - clock.started

    return steps


def sgd_of(parameters):
    return torch.optim.SGD(parameters, lr=0.001, momentum=0.9, weight_decay=1e-4)


ALTERNATIVES = {"torchvision's, bare loop": torchvisions, "ours, bare loop": ours, "frugal fit": fit}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--only", choices=ALTERNATIVES, help="train a few steps and print the peak memory in MiB")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    os.environ.setdefault("COLUMNS", "80")
    batch = read(options.folder)
    if options.only:
        ALTERNATIVES[options.only](batch)()
        print(own_peak())
        return
    header()
    compare(f"{STEPS} steps", {name: make(batch) for name, make in ALTERNATIVES.items()}, rounds=10)
    print("\npeak memory")
    for name in ALTERNATIVES:
        print(f"  {name:<42} {peak_memory(__file__, name, options.folder):9.0f} MiB")


if __name__ == "__main__":
    main()
