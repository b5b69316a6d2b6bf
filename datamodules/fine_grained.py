"""Fine-grained classes of photographs: Food-101, Stanford Cars, FGVC-Aircraft, Flowers-102."""

import os
from typing import Any, Literal

import numpy as np

from datamodules.base import data_root, hold_out
from datamodules.photo_module import Backend, Interpolation, PhotographModule
from datamodules.photographs import Decode, Photographs, Transform
from networks import InputError
from networks.errors import check_choice

Name = Literal["food101", "stanford_cars", "fgvc_aircraft", "flowers102"]

# Of each: torchvision's class, number of classes, official splits that are trained on, and numbers of images.
SETS: dict[str, tuple[str, int, tuple[str, ...], dict[str, int]]] = {
    "food101": ("Food101", 101, ("train",), {"train": 75_750, "test": 25_250}),
    "stanford_cars": ("StanfordCars", 196, ("train",), {"train": 8_144, "test": 8_041}),
    "fgvc_aircraft": ("FGVCAircraft", 100, ("trainval",), {"train": 6_667, "test": 3_333}),
    "flowers102": ("Flowers102", 102, ("train", "val"), {"train": 2_040, "test": 6_149}),
}


class FineGrained(PhotographModule):
    """Photographs of one of four kinds of things, with the official splits, through torchvision.

    Food-101 (Bossard et al. 2014), Stanford Cars (Krause et al. 2013), FGVC-Aircraft by variant (Maji et al. 2013) and
    Oxford Flowers-102 (Nilsback and Zisserman 2008). Where there is a validation split it is trained on too, as the
    field does; validation scores the test images unless `held_out` is given, by which to choose a rate before training
    on all. Crops, flips and evaluation are ImageNet's. What is absent is downloaded, but for Stanford Cars, whose
    public address is gone.

    Args:
        name: "food101", "stanford_cars", "fgvc_aircraft" or "flowers102".
        root: folder that has, or gets, food-101, stanford_cars, fgvc-aircraft-2013b or flowers-102; None means the
            environment variable FRUGAL_DATA, or else data/.
        batch_size: total over all devices and accumulated steps.
        held_out: number of training images, evenly over the classes, that validate instead of training.
        image_size, crop_fraction, interpolation, augmentation, backend, skip_corrupt, num_workers: as in ImageNet.
        check_integrity: refuse another number of images than the published one.

    Raises:
        InputError: arguments that cannot work; files that cannot be had, or that are not the whole set.
    """

    def __init__(
        self,
        name: Name = "food101",
        root: str | None = None,
        batch_size: int = 64,
        held_out: int = 0,
        image_size: int = 224,
        crop_fraction: float = 0.875,
        interpolation: Interpolation = "bicubic",
        augmentation: dict[str, Any] | None = None,
        backend: Backend = "tensor",
        skip_corrupt: bool = False,
        check_integrity: bool = True,
        num_workers: int = 8,
    ) -> None:
        super().__init__(
            batch_size, image_size, crop_fraction, interpolation, augmentation, backend, skip_corrupt, num_workers
        )
        check_choice("data.name", name, Name)
        self.root = data_root(root)
        self.name, self.held_out, self.check_integrity = name, held_out, check_integrity
        self._class, self.num_classes, self._train_splits, self._sizes = SETS[name]

    def prepare_data(self) -> None:
        """Download what is absent."""
        try:
            for split in (*self._train_splits, "test"):
                self._open(split)
        except InputError:
            if self.name == "stanford_cars":
                raise
            self._open("test", download=True)

    def setup(self, stage: str | None = None) -> None:
        if hasattr(self, "train_set"):
            return
        names, labels = self._files("train", self._train_splits)
        test_names, test_labels = self._files("test", ("test",))
        # Flowers-102 had no names in torchvision's earlier versions.
        self.class_names = tuple(map(str, getattr(self._open("test"), "classes", range(self.num_classes))))
        train, val = hold_out(labels, self.held_out, self.num_classes)
        self.train_set = self._photographs(names[train], labels[train], *self._training, self.skip_corrupt)
        self.test_set = self._photographs(test_names, test_labels, *self._evaluation)
        held_out = self._photographs(names[val], labels[val], *self._evaluation)
        self.val_set = held_out if self.held_out else self.test_set

    def _photographs(
        self,
        names: np.ndarray,
        labels: np.ndarray,
        decode: Decode,
        transform: Transform,
        skip_corrupt: bool | None = None,
    ) -> Photographs:
        return Photographs(self.root, names, labels, self.input_size, decode, transform, skip_corrupt)

    def _files(self, what: str, splits: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
        """File names below the root, (M,), and labels (M,)."""
        samples: list[tuple[Any, int]] = []
        for split in splits:
            dataset = self._open(split)
            # torchvision has no public list of files.
            pairs = zip(dataset._image_files, dataset._labels, strict=True) if hasattr(dataset, "_labels") else None
            samples += pairs or dataset._samples
        if self.check_integrity and len(samples) != self._sizes[what]:
            raise InputError(
                f"{self.name} in {self.root} lists {len(samples)} images to {what}, not {self._sizes[what]}: complete "
                "it, or take this part as it is with --data.check_integrity false"
            )
        names = np.array([os.fsencode(os.path.relpath(path, self.root)) for path, _ in samples])
        return names, np.array([label for _, label in samples])

    def _open(self, split: str, download: bool = False) -> Any:
        """torchvision's data set, which knows layout, address and checksums."""
        from torchvision import datasets

        try:
            return getattr(datasets, self._class)(str(self.root), split=split, download=download)
        except Exception as error:  # absent, out of reach, of another layout
            reason = str(error).split("\n")[0]
            fetch = "fetch and unpack it there, or say where it is with --data.root or FRUGAL_DATA"
            if self.name == "stanford_cars":
                fetch = (
                    f"its public address is gone: lay a copy out as torchvision.datasets.{self._class} says, {fetch}"
                )
            raise InputError(f"{self.name} is not in {self.root} ({reason}): {fetch}") from error
