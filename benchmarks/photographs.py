"""Training input of ImageNet on one core: python benchmarks/photographs.py FOLDER (the one that has imagenet/)

Batches of 64 photographs, 224 pixels, random crops and flips, bilinear, normalised: timm's loader as it is by default
(bytes by image, normalisation by batch) and with its prefetcher off (floats by image), and `datamodules.ImageNet` with
either backend. The same photographs and the same kind of crops for all, without workers. Decoding alone bounds any
loader.
"""

import argparse
import itertools
import os
import time

import numpy as np
import torch
from timing import compare, header, own_peak, peak_memory
from timm.data import create_dataset, create_loader

from datamodules import ImageNet
from datamodules.photographs import as_image, as_tensor

BATCH, SIZE = 64, (3, 224, 224)


def timms(folder, use_prefetcher, num_workers=0):
    loader = create_loader(
        create_dataset("", os.path.join(folder, "imagenet/train")), SIZE, BATCH, is_training=True,
        num_workers=num_workers, color_jitter=None, interpolation="bilinear", use_prefetcher=use_prefetcher,
        persistent_workers=num_workers > 0, device=torch.device("cpu"),
    )  # fmt: skip
    batches = itertools.chain.from_iterable(loader for _ in itertools.count())
    return lambda: next(batches)[0]


def ours(folder, backend, num_workers=0):
    data = ImageNet(folder, BATCH, check_integrity=False, backend=backend, num_workers=num_workers)
    data.setup()
    loader = data.train_dataloader()
    batches = itertools.chain.from_iterable(loader for _ in itertools.count())
    return lambda: data.on_after_batch_transfer(next(batches), 0)[0]


def decoding(folder, decode):
    data = ImageNet(folder, check_integrity=False)
    data.setup()
    paths = [data.train_set.folder / os.fsdecode(name) for name in data.train_set.names]
    rng = np.random.default_rng(0)
    return lambda: [decode(paths[i]) for i in rng.permutation(len(paths))[:BATCH]]


def rate(next_batch, batches=60):
    """Photographs a second of a loader that prepares the next batches meanwhile."""
    for _ in range(8):
        next_batch()
    start = time.perf_counter()
    for _ in range(batches):
        next_batch()
    return batches * BATCH / (time.perf_counter() - start)


ALTERNATIVES = {
    "timm, by default": lambda folder: timms(folder, True),
    "timm, no prefetcher": lambda folder: timms(folder, False),
    "frugal, backend timm": lambda folder: ours(folder, "timm"),
    "frugal, backend tensor": lambda folder: ours(folder, "tensor"),
    "PIL's decoding alone": lambda folder: decoding(folder, as_image),
    "simplejpeg's decoding alone": lambda folder: decoding(folder, as_tensor),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--only", choices=ALTERNATIVES, help="make a batch and print the peak memory in MiB")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.only:
        run = ALTERNATIVES[options.only](options.folder)
        for _ in range(3):
            run()
        print(own_peak())
        return
    header()
    built = {name: make(options.folder) for name, make in ALTERNATIVES.items()}
    compare(f"a batch of {BATCH} photographs", built, rounds=80)
    print("\nwith one worker, photographs a second")
    print(f"  {'timm, by default':<42} {rate(timms(options.folder, True, num_workers=1)):9.0f}")
    print(f"  {'frugal, backend tensor':<42} {rate(ours(options.folder, 'tensor', num_workers=1)):9.0f}")
    print("\npeak memory")
    for name in ALTERNATIVES:
        print(f"  {name:<42} {peak_memory(__file__, name, options.folder):9.0f} MiB")


if __name__ == "__main__":
    main()
