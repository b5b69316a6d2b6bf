"""Training input of CIFAR on one core: python benchmarks/cifar_input.py

Random crop from the padded image, flip and normalisation, in batches of 128: torchvision's transforms image by image,
what a user would write without us; the same on tensors (transforms.v2); and the batched arrays of `datamodules.CIFAR`.
"""

import argparse

import numpy as np
import torch
from PIL import Image
from timing import compare, header, own_peak, peak_memory
from torchvision import transforms
from torchvision.transforms import v2

from datamodules.batches import Batches, Order
from datamodules.images import Images

MEAN, STD = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)
BATCH, SIZE = 128, 50_000


def torchvision_pil(images, order):
    pipeline = transforms.Compose([
        transforms.RandomCrop(32, padding=4),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ])  # fmt: skip
    pixels = images.transpose(0, 2, 3, 1)
    return lambda: torch.stack([pipeline(Image.fromarray(pixels[i])) for i in order])


def torchvision_v2(images, order):
    pipeline = v2.Compose([
        v2.RandomCrop(32, padding=4),
        v2.RandomHorizontalFlip(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(MEAN, STD),
    ])  # fmt: skip
    tensors = torch.from_numpy(images)
    return lambda: torch.stack([pipeline(tensors[i]) for i in order])


def frugal(images, order):
    scaled = (tuple(255 * value for value in values) for values in (MEAN, STD))
    dataset = Images(images, np.zeros(len(images), int), *scaled, crop_padding=4, flip=True)
    batches = iter(Batches(dataset, Order(len(images), BATCH, True, seed=0)))
    return lambda: next(batches)[0]


ALTERNATIVES = {"torchvision, PIL": torchvision_pil, "torchvision.v2, tensors": torchvision_v2, "frugal": frugal}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="make a batch of one alternative and print the peak memory in MiB")
    only = parser.parse_args().only
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (SIZE, 3, 32, 32), dtype=np.uint8)
    order = rng.permutation(SIZE)[:BATCH]
    if only:
        print((ALTERNATIVES[only](images, order)(), own_peak())[1])
        return
    header()
    compare(f"a batch of {BATCH}", {name: make(images, order) for name, make in ALTERNATIVES.items()}, rounds=30)
    print(f"\npeak memory with {SIZE:,} images")
    for name in ALTERNATIVES:
        print(f"  {name:<42} {peak_memory(__file__, name):9.0f} MiB")


if __name__ == "__main__":
    main()
