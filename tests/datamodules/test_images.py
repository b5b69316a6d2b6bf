"""Batched augmentation against torchvision's, image by image."""

import numpy as np
import torch
from torchvision.transforms import functional as TF

from datamodules.images import Images
from datamodules.randomness import Draw

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (40, 3, 8, 6), dtype=np.uint8)
LABELS = RNG.integers(0, 10, 40)
MEAN, STD = (125.0, 120.0, 110.0), (60.0, 62.0, 64.0)


def literal(index, epoch, padding, flip):
    """Pad, crop, flip, to [0, 1], normalise: one image at a time, as torchvision does it."""
    top, left, mirror = Draw(3, epoch, np.array([index])).uniform(3)[0]
    image = torch.tensor(IMAGES[index])
    corner = [int(place * (2 * padding + 1)) for place in (top, left)]
    image = TF.crop(TF.pad(image, [padding] * 4), *corner, 8, 6)
    if flip and mirror < 0.5:
        image = TF.hflip(image)
    return TF.normalize(image / 255, [m / 255 for m in MEAN], [s / 255 for s in STD])


def test_equals_torchvision_image_by_image():
    for padding, flip in [(0, False), (2, False), (0, True), (4, True)]:
        dataset = Images(IMAGES, LABELS, MEAN, STD, padding, flip)
        indices = RNG.permutation(40)[:17]
        inputs, labels = dataset[Draw(3, 5, indices)]
        expected = torch.stack([literal(index, 5, padding, flip) for index in indices])
        assert torch.allclose(inputs, expected, atol=1e-5)
        assert inputs.dtype == torch.float32
        assert labels.tolist() == LABELS[indices].tolist()
    assert np.array_equal(dataset.crops[:, :, 4, 4], IMAGES)  # nothing is changed in place


def test_every_corner_and_both_sides_come_up():
    image = np.arange(1, 1 + 16, dtype=np.uint8).reshape(1, 1, 4, 4)
    dataset = Images(image, np.zeros(1, int), (0.0,), (1.0,), crop_padding=1, flip=True)
    seen = {dataset[Draw(0, epoch, np.array([0]))][0].numpy().tobytes() for epoch in range(400)}
    assert len(seen) == 9 * 2


def test_an_empty_share_is_an_empty_batch():
    inputs, labels = Images(IMAGES, LABELS, MEAN, STD, 4, True)[Draw(0, 0, np.arange(0))]
    assert inputs.shape == (0, 3, 8, 6)
    assert labels.shape == (0,)
