import numpy as np
import pytest
import torch

from datamodules import Digits


@pytest.fixture(scope="module")
def digits():
    data = Digits(batch_size=50)
    data.setup()
    return data


def test_split_is_stratified_complete_and_fixed(digits):
    parts = digits.train_set, digits.val_set, digits.test_set
    assert [len(part) for part in parts] == [1257, 180, 360]
    images = np.concatenate([part.crops[:, :, 0, 0] for part in parts])
    assert len({image.tobytes() for image in images}) == 1797  # the source has no two equal images
    train, _, test = (np.bincount(part.labels, minlength=10) / len(part) for part in parts)
    assert np.abs(train - test).max() < 0.01
    assert digits.test_set.labels[:6].tolist() == [7, 6, 3, 7, 7, 3]


def test_inputs_are_normalised(digits):
    loaders = digits.val_dataloader(), digits.test_dataloader(), digits.train_dataloader()
    images = torch.cat([images for loader in loaders for images, _ in loader])
    assert images.mean().item() == pytest.approx(0, abs=5e-3)
    assert images.std().item() == pytest.approx(1, abs=5e-3)


def test_says_its_sizes_before_reading_and_gives_batches_of_them(digits):
    assert (Digits.num_classes, Digits.input_size, len(Digits.class_names)) == (10, (1, 8, 8), 10)
    images, labels = next(iter(digits.train_dataloader()))
    assert images.shape == (50, *Digits.input_size)
    assert labels.dtype == torch.int64
    assert [len(b[1]) for b in digits.test_dataloader()] == [50] * 7 + [10]
    assert all(
        torch.equal(a[0], b[0]) for a, b in zip(digits.test_dataloader(), digits.predict_dataloader(), strict=True)
    )
