"""The embedded default: scikit-learn's handwritten digits."""

import numpy as np

from datamodules.base import DataModule
from datamodules.images import Images

PIXEL_MEAN, PIXEL_STD = 4.884, 6.017  # of all 1797 images, whose pixels go from 0 to 16


class Digits(DataModule):
    """1797 real handwritten digits, 8x8 pixels, grey (UCI, by way of sklearn.datasets.load_digits).

    The data set ships inside scikit-learn: nothing is downloaded. The split is fixed and stratified: 1257 images to
    train, 180 to validate, 360 to test; `predict` runs over the test images.

    Args:
        batch_size: total over all devices and accumulated steps.
        num_workers: processes that prepare batches, for each device.

    Batches: images (N, 1, 8, 8), normalised; labels (N,), 0 to 9.
    """

    num_classes, gives = 10, "labels"
    input_size = (1, 8, 8)
    class_names = tuple("0123456789")

    def __init__(self, batch_size: int = 32, num_workers: int = 0) -> None:
        super().__init__(batch_size, num_workers)

    def setup(self, stage: str | None = None) -> None:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        pixels, labels = load_digits(return_X_y=True)
        images = pixels.astype(np.uint8).reshape(-1, 1, 8, 8)
        rest, test = train_test_split(range(len(labels)), test_size=360, stratify=labels, random_state=0)
        train, val = train_test_split(rest, test_size=180, stratify=labels[rest], random_state=0)
        self.train_set, self.val_set, self.test_set = (
            Images(images[part], labels[part], (PIXEL_MEAN,), (PIXEL_STD,)) for part in (train, val, test)
        )
