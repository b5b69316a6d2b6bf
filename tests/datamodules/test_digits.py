import pytest
import torch
from pytorch_lightning import Trainer

from datamodules import Digits
from datamodules.batching import device_batch_size
from networks import InputError


@pytest.fixture(scope="module")
def digits():
    data = Digits(batch_size=50)
    data.setup()
    return data


def test_split_is_stratified_complete_and_fixed(digits):
    sizes = [len(part) for part in (digits.train, digits.val, digits.test)]
    assert sizes == [1257, 180, 360]
    images = torch.cat([part.tensors[0] for part in (digits.train, digits.val, digits.test)])
    assert len({image.numpy().tobytes() for image in images}) == 1797  # the source has no two equal images
    counts = torch.stack([part.tensors[1].bincount(minlength=10) / len(part) for part in (digits.train, digits.test)])
    assert (counts[0] - counts[1]).abs().max() < 0.01
    assert digits.test.tensors[1][:6].tolist() == [7, 6, 3, 7, 7, 3]
    assert images.mean().item() == pytest.approx(0, abs=1e-3)
    assert images.std().item() == pytest.approx(1, abs=1e-3)


def test_says_its_sizes_before_reading_and_gives_batches_of_them(digits):
    assert (Digits.num_classes, Digits.input_size, len(Digits.class_names)) == (10, (1, 8, 8), 10)
    images, labels = next(iter(digits.train_dataloader()))
    assert images.shape == (50, *Digits.input_size)
    assert labels.dtype == torch.int64
    assert [len(b[1]) for b in digits.test_dataloader()] == [50] * 7 + [10]
    assert all(
        torch.equal(a[0], b[0]) for a, b in zip(digits.test_dataloader(), digits.predict_dataloader(), strict=True)
    )


def test_batch_size_is_the_total():
    trainer = Trainer(logger=False, accumulate_grad_batches=4, enable_progress_bar=False)
    assert device_batch_size(64, trainer, training=True) == 16
    assert device_batch_size(64, trainer, training=False) == 64
    assert device_batch_size(64, None, training=True) == 64
    with pytest.raises(InputError, match=r"data\.batch_size=30 .* 1 devices x 4 accumulated steps; .* multiple of 4"):
        device_batch_size(30, trainer, training=True)
