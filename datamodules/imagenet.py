"""ImageNet."""

import os
from typing import Any

import numpy as np
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console
from rich.progress import track
from timm.data import ImageNetInfo

from datamodules.base import data_root
from datamodules.photo_module import Backend, Interpolation, PhotographModule
from datamodules.photographs import Decode, Photographs, Transform
from networks import InputError

IMAGES = {"train": 1_281_167, "val": 50_000}
SUFFIXES = (b".jpeg", b".jpg", b".png")


class ImageNet(PhotographModule):
    """ImageNet-1k (Russakovsky et al. 2015): 1,281,167 photographs to train and 50,000 to validate, in 1000 classes.

    They lie in <root>/imagenet/train/<synset>/*.JPEG and <root>/imagenet/val/<synset>/*.JPEG. A label is the place of
    the synset among all 1000, so that a part of the folders has the labels of the whole. In training: a random crop of
    0.08 to 1 of the area with sides 3:4 to 4:3, resized, and a flip. In evaluation: the short side resized to
    image_size / crop_fraction, and the centre. Both are timm's, normalised by ImageNet's mean and deviation.
    Validation and test score the same images, as the field does: the labels of ImageNet's own test set are not public.

    Args:
        root: folder that has imagenet/; None means the environment variable FRUGAL_DATA, or else data/.
        batch_size: total over all devices and accumulated steps.
        image_size: side of the square that the network gets, pixels.
        crop_fraction: side of the centre crop over the short side of the resized image, in evaluation; (0, 1].
        interpolation: in evaluation; in training it is bilinear unless `augmentation` has one.
        augmentation: more arguments of timm's training transform, such as {"auto_augment": "rand-m9-mstd0.5"}.
        backend: of training: "tensor" decodes to tensors of bytes, which it crops and resizes: timm's crops, and pixels
            that differ from timm's by at most 2 of 255, in two thirds of the time. "timm" is timm's transform on PIL's
            images; it also does what goes beyond bilinear crops and flips, whatever is said here.
        skip_corrupt: train on the next photograph in place of one that cannot be decoded, and name and count those.
            Evaluation refuses them always, for a score over other images is no ImageNet score.
        check_integrity: refuse another number of classes or images than the published one.
        num_workers: processes that prepare batches, for each device; they live as long as the run.

    Batches: images (N, 3, image_size, image_size), normalised; labels (N,), 0 to 999. In training of backend "tensor"
    workers send bytes, a quarter of the size, and `on_after_batch_transfer` normalises them: loops without Lightning
    have to call it.

    Raises:
        InputError: arguments that cannot work; in `setup`, folders that are absent, incomplete or not ImageNet's; in a
            batch, a file that cannot be decoded.
    """

    num_classes = 1000

    def __init__(
        self,
        root: str | None = None,
        batch_size: int = 256,
        image_size: int = 224,
        crop_fraction: float = 0.875,
        interpolation: Interpolation = "bilinear",
        augmentation: dict[str, Any] | None = None,
        backend: Backend = "tensor",
        skip_corrupt: bool = False,
        check_integrity: bool = True,
        num_workers: int = 8,
    ) -> None:
        super().__init__(
            batch_size, image_size, crop_fraction, interpolation, augmentation, backend, skip_corrupt, num_workers
        )
        self.folder = data_root(root) / "imagenet"
        self.check_integrity = check_integrity
        info = ImageNetInfo()
        self.labels = {synset: label for label, synset in enumerate(info.label_names())}
        # With the synset, for two classes are called "crane".
        self.class_names = tuple(f"{name} {info.label_name_to_description(name)}" for name in info.label_names())

    def setup(self, stage: str | None = None) -> None:
        """List the files, once; the many to train only where training needs them."""
        if not hasattr(self, "val_set"):
            self.val_set = self.test_set = self._list("val", *self._evaluation)
        if stage in ("fit", None) and not hasattr(self, "train_set"):
            self.train_set = self._list("train", *self._training, self.skip_corrupt)

    def _list(self, split: str, decode: Decode, transform: Transform, skip_corrupt: bool | None = None) -> Photographs:
        folder = self.folder / split
        classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()) if folder.is_dir() else []
        for name in classes:
            if name not in self.labels:
                raise InputError(f"{folder / name} is not named by one of ImageNet's 1000 synsets: move it elsewhere")
        names: list[bytes] = []
        labels: list[int] = []
        silent = rank_zero_only.rank > 0  # type: ignore[attr-defined]
        for name in track(classes, f"listing {split}", console=Console(stderr=True), transient=True, disable=silent):
            files = sorted(os.listdir(os.fsencode(folder / name)))
            files = [os.path.join(os.fsencode(name), file) for file in files if file.lower().endswith(SUFFIXES)]
            names += files
            labels += [self.labels[name]] * len(files)
        if not names:
            raise InputError(
                f"no ImageNet in {folder}: register at image-net.org, fetch ILSVRC2012_img_train.tar and "
                "ILSVRC2012_img_val.tar, and unpack each class's images into a folder named by its synset, "
                f"{self.folder}/train/n01440764/*.JPEG and val likewise (its labels are in the development kit), "
                "or say with --data.root or FRUGAL_DATA where imagenet/ is"
            )
        if self.check_integrity and (len(classes), len(names)) != (self.num_classes, IMAGES[split]):
            raise InputError(
                f"{folder} has {len(classes)} classes and {len(names)} images, not {self.num_classes} and "
                f"{IMAGES[split]}: complete it, or take this part as it is with --data.check_integrity false"
            )
        return Photographs(folder, np.array(names), np.array(labels), self.input_size, decode, transform, skip_corrupt)
