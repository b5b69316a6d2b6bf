"""Runs of detectors to compare processes with: python detecting.py DEVICES FOLDER

Writes result.pt: figures of validation and test and which images each process has scored, what training gives where
batch normalisation is in eval mode and every process has one image at a time, and whether the processes agree; and two
files detections_*.json.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from pytorch_lightning import Callback, Trainer
from torch import nn

from callbacks import DetectionPictures, PredictionWriter
from datamodules.base import DataModule
from lightning_modules import Detector

SIDE = 64


COUNTS = (3, 5, 0, 2, 4, 1, 3, 5, 0)  # of objects in each image


def target_of(place: int) -> dict[str, torch.Tensor]:
    """What there is to see in an image; its id is smaller, the later it comes."""
    generator, count = torch.Generator().manual_seed(place), COUNTS[place]
    corners = torch.randint(0, 18, (count, 2), generator=generator)
    boxes = torch.cat([corners, corners + torch.randint(8, 46, (count, 2), generator=generator)], 1)
    masks = torch.zeros(count, SIDE, SIDE, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    labels, crowds = torch.randint(1, 4, (count,), generator=generator), torch.rand(count, generator=generator) < 0.2
    known = {"boxes": boxes.float(), "labels": labels, "masks": masks, "iscrowd": crowds.long()}
    return {**known, "area": masks.sum((1, 2)).float(), "image_id": torch.tensor(100 - place)}


class Objects:
    """Images of noise whose first pixel is their place; half of them come to training mirrored."""

    def __init__(self, count: int, training: bool) -> None:
        generator = torch.Generator().manual_seed(count)
        self.images = torch.randint(0, 256, (count, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
        self.images[:, :, 0, 0] = torch.arange(count)[:, None]
        self.training = training

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, draw):
        images, targets = [], []
        for place, mirrored in zip(draw.indices.tolist(), draw.uniform(1)[:, 0] < 0.5, strict=True):
            image, target = self.images[place], target_of(place)
            if self.training and mirrored:
                image, x = image.flip(2), target["boxes"][:, [2, 0]]
                target["boxes"][:, [0, 2]] = SIDE - x
            images.append(image)
            targets.append(target)
        return images, targets


class Data(DataModule):
    """7 images to train, 5 to validate, 9 to test: of the last batches of two the second process has no share."""

    num_classes, input_size, masks = 4, (3, SIDE, SIDE), True

    def setup(self, stage=None):
        self.train_set, self.val_set, self.test_set = Objects(7, True), Objects(5, False), Objects(9, False)


class Seer(nn.Module):
    """A detector that knows the objects of an image by its first pixel, but not exactly."""

    def __init__(self) -> None:
        super().__init__()
        self.number, self.roi_heads = nn.Parameter(torch.ones(1)), SimpleNamespace(has_mask=lambda: True)

    def forward(self, images, targets=None):
        return [self._found(round(image[0, 0, 0].item() * 255)) for image in images]

    def _found(self, place):
        target, generator = target_of(place), torch.Generator().manual_seed(place)
        keep = torch.rand(len(target["labels"]), generator=generator) < 0.85
        labels = torch.cat([target["labels"][keep], torch.tensor([1, 2])])
        boxes = torch.cat([target["boxes"][keep], torch.tensor([[5.0, 5, 20, 20], [1, 9, 50, 30]])])
        boxes[::2] += torch.tensor([2.0, 0, 2, 0])
        masks = torch.cat([target["masks"][keep], torch.ones(2, SIDE, SIDE, dtype=torch.uint8)])
        masks[::2] = masks[::2].roll(2, dims=2)
        scores = torch.randint(1, 5, labels.shape, generator=generator) / 4  # many are equal
        return {"boxes": boxes, "labels": labels, "scores": scores, "masks": masks[:, None].float()}


class Scored(Callback):
    """Which images this process has scored."""

    def __init__(self) -> None:
        self.images: list[list[int]] = []

    def on_validation_epoch_end(self, trainer, pl_module) -> None:
        self.images.append(list(pl_module.precision_of["val"].image_ids))

    def on_test_epoch_end(self, trainer, pl_module) -> None:
        self.images.append(list(pl_module.precision_of["test"].image_ids))


class FixedBatchNorm(Detector):
    """Trains with batch normalisation in eval mode, where processes and one process have equal gradients."""

    def on_train_epoch_start(self):
        for layer in self.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eval()


def trainer(devices: int, folder: Path, *callbacks: Callback, **options) -> Trainer:
    return Trainer(
        accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", logger=False,
        callbacks=list(callbacks), default_root_dir=folder, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, **options,
    )  # fmt: skip


def of_all(mine, devices: int) -> list:
    """What each process has."""
    everyone = [mine] * devices
    if devices > 1:
        torch.distributed.all_gather_object(everyone, mine)
    return everyone


def figures(runner: Trainer) -> dict[str, float]:
    return {name: value.item() for name, value in runner.callback_metrics.items()}


def known_detections(devices: int, folder: Path) -> dict:
    """Figures of the detector that knows, with masks."""
    module, scored, result = Detector(Seer(), 4, (3, SIDE, SIDE)), Scored(), {}
    runner = trainer(devices, folder, scored, PredictionWriter(), DetectionPictures(images=2))
    runner.validate(module, datamodule=Data(2), verbose=False)
    result["val"] = of_all(figures(runner), devices)
    runner.test(module, datamodule=Data(2), verbose=False)
    result["test"] = of_all(figures(runner), devices)
    runner.predict(module, datamodule=Data(2))
    return {**result, "images": of_all(scored.images, devices)}


def real_detections(devices: int, folder: Path) -> dict:
    """SSDLite predicts as it was built, one image at a time, and is then trained."""
    torch.manual_seed(0)  # differently in each process would do too: weights are those of rank 0
    args = {"backbone": "mobilenetv3_small_050", "score_thresh": 0.003, "detections_per_img": 20}
    module, scored = FixedBatchNorm("ssdlite", 4, (3, SIDE, SIDE), args, warmup_steps=2), Scored()
    trainer(devices, folder, PredictionWriter()).predict(module, datamodule=Data(devices))
    runner = trainer(devices, folder, scored, max_epochs=2, accumulate_grad_batches=2 // devices)
    runner.fit(module, datamodule=Data(2))
    state = {name: value.clone() for name, value in module.state_dict().items()}
    states = of_all(state, devices)
    return {
        "steps": runner.global_step,
        "state": state,
        "same weights": all(torch.equal(other[name], state[name]) for other in states for name in state),
        "figures": of_all(figures(runner), devices),
        "images": of_all(scored.images, devices),
    }


def main(devices: int, folder: Path) -> None:
    result = {"known": known_detections(devices, folder / "known"), "real": real_detections(devices, folder / "real")}
    if torch.distributed.is_initialized() and torch.distributed.get_rank():
        return
    torch.save(result, folder / "result.pt")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
