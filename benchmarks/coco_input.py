"""Training input of COCO on one core: python benchmarks/coco_input.py FOLDER (the one that has coco/)

Photographs with their boxes, and masks for Mask R-CNN, until the detector has its batch: torchvision's reference
pipeline (CocoDetection, its v2 transforms on tensors, resizing in the detector) and `datamodules.COCO`. For SSDLite all
of SSD's augmentation to 320 pixels; for the others flips and a short side of 800.
"""

import argparse

import numpy as np
import torch
from timing import compare, header, own_peak, peak_memory
from torchvision import datasets, tv_tensors
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms import v2

from datamodules import COCO
from datamodules.coco import MEAN
from datamodules.randomness import Draw

BATCH = 8
STATISTICS = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def reference(folder, ssd, masks=False):
    """As in torchvision's references/detection, with the backend of tensors."""
    root = f"{folder}/coco"
    found = datasets.CocoDetection(f"{root}/train2017", f"{root}/annotations/instances_train2017.json")
    wanted = ("boxes", "labels", "image_id", *(("masks",) if masks else ()))
    found = datasets.wrap_dataset_for_transforms_v2(found, target_keys=wanted)
    fill = {tv_tensors.Image: MEAN, "others": 0}
    distortions = [v2.RandomPhotometricDistort(), v2.RandomZoomOut(fill=fill), v2.RandomIoUCrop()] if ssd else []
    transform = v2.Compose(
        [v2.ToImage(), *distortions, v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True),
         v2.SanitizeBoundingBoxes(), v2.ToPureTensor()]
    )  # fmt: skip
    fixed = (320, 320) if ssd else None
    resize = GeneralizedRCNNTransform(800, 1333, *STATISTICS, fixed_size=fixed).train()
    usable = [
        i
        for i in range(len(found))
        if any(not o["iscrowd"] for o in found._dataset._load_target(found._dataset.ids[i]))
    ]
    return batches(
        len(usable), lambda chosen: resize(*zip(*(transform(*found[usable[i]]) for i in chosen), strict=True))
    )


def ours(folder, ssd, masks=False):
    data = COCO(folder, BATCH, (320, 320) if ssd else 800, "ssd" if ssd else "flip", masks=masks, num_workers=0)
    data.setup("fit")
    fixed = (320, 320) if ssd else None
    prepare = GeneralizedRCNNTransform(800, 1333, *STATISTICS, fixed_size=fixed).train()

    def make(chosen):
        images, targets = data.train_set[Draw(0, 0, chosen)]
        return prepare([image.float() / 255 for image in images], targets)

    return batches(len(data.train_set), make)


def batches(size, make):
    """A function that makes all photographs' batches, in one order."""
    order = np.random.default_rng(0).permutation(size)
    return lambda: [make(order[i : i + BATCH]) for i in range(0, size - BATCH + 1, BATCH)]


KINDS = {"SSDLite, 320 pixels": (True, False), "Faster R-CNN, 800": (False, False), "Mask R-CNN, 800": (False, True)}
ALTERNATIVES = {"torchvision's reference": reference, "datamodules.COCO": ours}
CHOICES = {f"{kind}: {name}": (make, *how) for kind, how in KINDS.items() for name, make in ALTERNATIVES.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--only", choices=CHOICES, help="make the batches once and print the peak memory in MiB")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.only:
        make, *how = CHOICES[options.only]
        make(options.folder, *how)()
        print(own_peak())
        return
    header()
    for kind, how in KINDS.items():
        compare(
            f"{kind}: all photographs once", {n: f(options.folder, *how) for n, f in ALTERNATIVES.items()}, rounds=5
        )
    print("\npeak memory")
    for choice in CHOICES:
        print(f"  {choice:<52} {peak_memory(__file__, choice, options.folder):9.0f} MiB")


if __name__ == "__main__":
    main()
