"""Batched augmentation against torchvision's, image by image."""

import numpy as np
import torch
from torchvision.transforms import functional as TF

from datamodules.images import Images, rotate
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


def turned(images, degrees):
    """One angle for all."""
    return rotate(images, torch.full((len(images),), degrees, dtype=torch.float64))


def test_quarter_turns_are_exact_and_none_changes_nothing():
    square = torch.from_numpy(RNG.integers(0, 256, (5, 3, 9, 9))).float()
    for size in (8, 9):
        images = square[..., :size, :size]
        for quarters in range(-2, 3):
            assert torch.equal(turned(images, 90.0 * quarters), images.rot90(quarters, (2, 3)))
    images = torch.from_numpy(IMAGES).float()
    assert torch.equal(turned(images, 0.0), images)
    assert torch.equal(turned(images, 180.0), images.flip(2, 3))


def test_rotation_equals_torchvisions():
    """Up to pixels whose source lies half-way between two, within float32's rounding: fewer than 1 in 1000."""
    images = torch.from_numpy(IMAGES).float()
    images = torch.nn.functional.interpolate(images, (28, 20), mode="bilinear", antialias=True)
    for degrees in (-180, -77.7, -45, -15, -3.3, 0, 7, 14.9, 30, 60, 123):
        differs = turned(images, float(degrees)) != TF.rotate(images, degrees)
        assert differs.float().mean() < 1e-3


def test_each_image_turns_by_its_own_angle_after_crop_and_flip_and_before_normalisation():
    plain, dataset = (Images(IMAGES, LABELS, MEAN, STD, 2, True, rotation) for rotation in (0.0, 40.0))
    indices = RNG.permutation(40)[:17]
    draw = Draw(3, 5, indices)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (MEAN, STD))
    degrees = 40 * (2 * draw.uniform(4)[:, 3] - 1)
    pixels = (plain[draw][0] * std + mean).round()
    one_by_one = torch.cat([turned(image[None], angle) for image, angle in zip(pixels, degrees, strict=True)])
    inputs, labels = dataset[draw]
    assert torch.allclose(inputs, (one_by_one - mean) / std, atol=1e-5)
    assert labels.tolist() == LABELS[indices].tolist()
    assert len(set(degrees)) == 17
    assert np.abs(degrees).max() <= 40


def test_rotation_does_not_depend_on_the_batch_and_changes_no_other_draw():
    dataset = Images(IMAGES, LABELS, MEAN, STD, 2, True, 25.0)
    whole = dataset[Draw(3, 5, np.arange(40))][0]
    for indices in (np.array([7]), np.arange(39, -1, -1), RNG.permutation(40)[:13]):
        assert torch.equal(dataset[Draw(3, 5, indices)][0], whole[indices])
    assert not torch.equal(dataset[Draw(3, 6, np.arange(40))][0], whole)
    draw = Draw(3, 5, np.arange(40))
    assert np.array_equal(draw.uniform(4)[:, :3], draw.uniform(3))
    assert dataset[Draw(0, 0, np.arange(0))][0].shape == (0, 3, 8, 6)


def test_angles_fill_their_range_and_what_comes_in_is_black():
    white = Images(np.full((1000, 3, 8, 8), 255, np.uint8), np.zeros(1000, int), MEAN, STD, rotation=45.0)
    draw = Draw(0, 0, np.arange(1000))
    black, whole = ((torch.tensor([value]) - torch.tensor(MEAN)) / torch.tensor(STD) for value in (0.0, 255.0))
    inputs = white[draw][0]
    corners, centre = inputs[..., 0, 0], inputs[..., 4, 4]
    is_black = (corners - black).abs().amax(1) < 1e-5
    assert ((corners - whole).abs().amax(1) < 1e-5).logical_or(is_black).all()  # nothing between: nearest pixel
    assert ((centre - whole).abs() < 1e-5).all()
    angles = 45 * (2 * draw.uniform(4)[:, 3] - 1)
    assert is_black[np.abs(angles) > 15].all()
    assert not is_black[np.abs(angles) < 5].any()
    assert np.histogram(angles, 9, (-45, 45))[0].min() > 70
