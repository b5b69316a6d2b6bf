"""The embedded default: scikit-learn's handwritten digits."""

import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset

from datamodules.batching import device_batch_size

PIXEL_MEAN, PIXEL_STD = 4.884, 6.017  # of all 1797 images, whose pixels go from 0 to 16


class Digits(LightningDataModule):
    """1797 real handwritten digits, 8x8 pixels, grey (UCI, by way of sklearn.datasets.load_digits).

    The data set ships inside scikit-learn: nothing is downloaded. The split is fixed and stratified: 1257 images to
    train, 180 to validate, 360 to test; `predict` runs over the test images.

    Args:
        batch_size: total over all devices and accumulated steps.

    Batches: images (N, 1, 8, 8), normalised; labels (N,), 0 to 9.
    """

    num_classes = 10
    input_size = (1, 8, 8)
    class_names = tuple("0123456789")

    def __init__(self, batch_size: int = 32) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str | None = None) -> None:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        pixels, labels = load_digits(return_X_y=True)
        images = torch.tensor((pixels - PIXEL_MEAN) / PIXEL_STD, dtype=torch.float32).view(-1, 1, 8, 8)
        targets = torch.tensor(labels)
        rest, test = train_test_split(range(len(labels)), test_size=360, stratify=labels, random_state=0)
        train, val = train_test_split(rest, test_size=180, stratify=labels[rest], random_state=0)
        self.train, self.val, self.test = (TensorDataset(images[i], targets[i]) for i in (train, val, test))

    def train_dataloader(self) -> DataLoader:
        batch_size = device_batch_size(self.batch_size, self.trainer, training=True)
        return DataLoader(self.train, batch_size=batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return self._evaluation(self.val)

    def test_dataloader(self) -> DataLoader:
        return self._evaluation(self.test)

    def predict_dataloader(self) -> DataLoader:
        return self._evaluation(self.test)

    def _evaluation(self, images: TensorDataset) -> DataLoader:
        return DataLoader(images, batch_size=device_batch_size(self.batch_size, self.trainer, training=False))
