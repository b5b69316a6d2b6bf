"""CIFAR-10 and CIFAR-100."""

import pickle
from pathlib import Path
from typing import Any, Literal

import numpy as np

from datamodules.base import DataModule, data_root, hold_out
from datamodules.images import Images
from networks import InputError

MEAN = {10: (0.491, 0.482, 0.447), 100: (0.5071, 0.4865, 0.4409)}  # of the channels; CIFAR-10's as biprop released them
STD = {10: (0.247, 0.243, 0.262), 100: (0.2673, 0.2564, 0.2762)}


class CIFAR(DataModule):
    """60,000 photographs of 32x32 pixels in 10 or 100 classes (Krizhevsky 2009); 50,000 to train, 10,000 to test.

    In training: a random crop from the image padded with 4 zeros a side, a flip, and a rotation where it is asked for.
    Images stay in memory as bytes, and batches are augmented as a whole. Validation scores the test images, as the
    field does, so that the best epoch is chosen on them: quote the last one, or give `held_out`. The public archive is
    downloaded where it is absent.

    Args:
        root: folder that has, or gets, cifar-10-batches-py or cifar-100-python; None means the environment variable
            FRUGAL_DATA, or else data/.
        classes: 10, or 100 (the fine labels).
        batch_size: total over all devices and accumulated steps.
        held_out: number of training images, evenly over the classes, that validate instead of training.
        rotation: degrees, 0 to 180; each training image is turned by an angle uniform in +-rotation, black outside.
        check_integrity: compare the files with the published checksums.
        num_workers: processes that prepare batches, for each device.

    Raises:
        InputError: files that cannot be had, that are damaged, or that have labels outside the classes; a rotation
            that is negative or above 180.
    """

    input_size = (3, 32, 32)
    gives = "labels"

    def __init__(
        self,
        root: str | None = None,
        classes: Literal[10, 100] = 10,
        batch_size: int = 128,
        held_out: int = 0,
        rotation: float = 0.0,
        check_integrity: bool = True,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers)
        if classes not in MEAN:
            raise InputError(f"data.classes={classes}: there are CIFAR-10 and CIFAR-100")
        if not 0 <= rotation <= 180:
            raise InputError(f"data.rotation={rotation} degrees must lie in 0 to 180")
        self.root = data_root(root)
        self.num_classes, self.held_out, self.check_integrity = classes, held_out, check_integrity
        self.rotation, self.checked = rotation, False

    @property
    def _source(self) -> Any:
        """torchvision's class, which knows names, checksums and address of the files."""
        from torchvision import datasets

        return datasets.CIFAR10 if self.num_classes == 10 else datasets.CIFAR100

    def prepare_data(self) -> None:
        """Download what is absent, and compare checksums."""
        from torchvision.datasets.utils import check_integrity, download_and_extract_archive

        source = self._source
        folder = self.root / source.base_folder
        files = dict([*source.train_list, *source.test_list, (source.meta["filename"], source.meta["md5"])])
        if not all((folder / name).is_file() for name in files):
            try:
                download_and_extract_archive(source.url, str(self.root), md5=source.tgz_md5)
            except (OSError, RuntimeError) as error:
                raise InputError(
                    f"CIFAR-{self.num_classes} is not in {folder} and could not be downloaded ({error}): fetch "
                    f"{source.url} and unpack it in {self.root}, or say where it is with --data.root or FRUGAL_DATA"
                ) from error
        if self.check_integrity and not self.checked:
            damaged = [name for name, md5 in files.items() if not check_integrity(str(folder / name), md5)]
            if damaged:
                raise InputError(
                    f"{', '.join(damaged)} in {folder}: not the published files (their MD5 differs); remove the folder "
                    "to download them again, or take this copy as it is with --data.check_integrity false"
                )
        self.checked = True

    def setup(self, stage: str | None = None) -> None:
        if hasattr(self, "train_set"):  # the command has looked at it before it made room for a run
            return
        source = self._source
        (names,) = self._load(source.meta["filename"], source.meta["key"].encode())
        self.class_names = tuple(name.decode() for name in names)
        images, labels = self._read([name for name, _ in source.train_list])
        test_images, test_labels = self._read([name for name, _ in source.test_list])
        mean, std = (tuple(255 * value for value in of[self.num_classes]) for of in (MEAN, STD))
        train, val = hold_out(labels, self.held_out, self.num_classes)
        self.train_set = Images(
            images[train], labels[train], mean, std, crop_padding=4, flip=True, rotation=self.rotation
        )
        self.test_set = Images(test_images, test_labels, mean, std)
        self.val_set = Images(images[val], labels[val], mean, std) if self.held_out else self.test_set

    def _read(self, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Images (M, 3, 32, 32), uint8, and labels (M,) of batch files."""
        images, labels = [], []
        for name in names:
            data, classes = self._load(name, b"data", b"labels" if self.num_classes == 10 else b"fine_labels")
            classes = np.asarray(classes)
            shape, dtype = getattr(data, "shape", None), getattr(data, "dtype", None)
            if dtype != np.uint8 or shape != (*classes.shape, 3 * 32 * 32) or classes.dtype.kind != "i":
                raise InputError(f"{self._path(name)} does not hold {3 * 32 * 32} bytes and a label for each image")
            wrong = classes[(classes < 0) | (classes >= self.num_classes)]
            if len(wrong):
                raise InputError(f"{self._path(name)} has label {wrong[0]}, outside 0 to {self.num_classes - 1}")
            images.append(data.reshape(-1, *self.input_size))
            labels.append(classes)
        return np.concatenate(images), np.concatenate(labels)

    def _path(self, name: str) -> Path:
        return self.root / self._source.base_folder / name

    def _load(self, name: str, *keys: bytes) -> list[Any]:
        try:
            with open(self._path(name), "rb") as file:
                content = _ArraysOnly(file, encoding="bytes").load()
            return [content[key] for key in keys]
        except Exception as error:  # damaged bytes can raise anything
            raise InputError(
                f"{self._path(name)} is cut short or not a CIFAR batch ({error or type(error).__name__}): "
                "remove the folder to download it again"
            ) from error


class _ArraysOnly(pickle.Unpickler):
    """Reads the pickles in which CIFAR is published: arrays, lists and strings, and no other code."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}
        if (module, name) in allowed:
            return super().find_class(module, name)
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.empty(0).__reduce__()[0]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")
