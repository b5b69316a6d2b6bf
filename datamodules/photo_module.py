"""What DataModules of photographs share: timm's transforms, normalisation on the device, corrupt files."""

import warnings
from typing import Any, Literal

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform

from datamodules.base import DataModule
from datamodules.photographs import Decode, Photographs, TensorCrop, Transform, as_image, as_tensor
from networks import InputError
from networks.errors import check_choice

Backend = Literal["tensor", "timm"]
Interpolation = Literal["bilinear", "bicubic"]

# Of timm's training transform; its others change the normalisation or what comes out.
AUGMENTATION = {
    "train_crop_mode", "scale", "ratio", "interpolation", "hflip", "vflip", "color_jitter", "color_jitter_prob",
    "grayscale_prob", "gaussian_blur_prob", "auto_augment", "re_prob", "re_mode", "re_count",
}  # fmt: skip


class PhotographModule(DataModule):
    """Photographs cropped and flipped in training, resized and cropped in evaluation, normalised as ImageNet's.

    Args:
        batch_size, image_size, crop_fraction, interpolation, augmentation, backend, skip_corrupt, num_workers: as in
            ImageNet.

    Raises:
        InputError: arguments that cannot work.
    """

    gives = "labels"
    train_set: Photographs
    input_size: tuple[int, int, int]

    def __init__(
        self,
        batch_size: int,
        image_size: int,
        crop_fraction: float,
        interpolation: Interpolation,
        augmentation: dict[str, Any] | None,
        backend: Backend,
        skip_corrupt: bool,
        num_workers: int,
    ) -> None:
        super().__init__(batch_size, num_workers)
        if image_size < 1:
            raise InputError(f"data.image_size={image_size} must be positive")
        if not 0 < crop_fraction <= 1:
            raise InputError(f"data.crop_fraction={crop_fraction} must be more than 0 and at most 1")
        check_choice("data.backend", backend, Backend)
        check_choice("data.interpolation", interpolation, Interpolation)
        self.input_size, self.skip_corrupt = (3, image_size, image_size), skip_corrupt
        timms = self._training_transform(augmentation or {})
        tensor = backend == "tensor" and TensorCrop.can(timms.transforms)
        training = (as_tensor, TensorCrop(timms.transforms)) if tensor else (as_image, timms)
        self._training: tuple[Decode, Transform] = training
        evaluation = create_transform(self.input_size, crop_pct=crop_fraction, interpolation=interpolation)
        self._evaluation: tuple[Decode, Transform] = as_image, evaluation
        std = torch.tensor(IMAGENET_DEFAULT_STD).view(-1, 1, 1)
        self._scale, self._shift = 1 / (255 * std), -torch.tensor(IMAGENET_DEFAULT_MEAN).view(-1, 1, 1) / std

    def _training_transform(self, augmentation: dict[str, Any]) -> Any:
        unknown = sorted(augmentation.keys() - AUGMENTATION)
        if unknown:
            raise InputError(f"data.augmentation has {', '.join(unknown)}; it takes {', '.join(sorted(AUGMENTATION))}")
        arguments = {"color_jitter": None, "interpolation": "bilinear", **augmentation}
        try:
            return create_transform(self.input_size, is_training=True, **arguments)
        except Exception as error:  # timm asserts, looks up and converts
            raise InputError(f"data.augmentation={augmentation}: timm refuses it ({error!r})") from error

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Normalise batches of bytes, on the device; Lightning calls this for every batch."""
        images, labels = batch
        if images.dtype != torch.uint8:
            return batch
        if self._scale.device != images.device:  # once
            self._scale, self._shift = self._scale.to(images.device), self._shift.to(images.device)
        images = images.float().mul_(self._scale).add_(self._shift)
        if self.trainer:  # which has converted inputs, but not bytes, to the dtype of the module
            images = self.trainer.precision_plugin.convert_input(images)
        return images, labels

    def teardown(self, stage: str | None = None) -> None:
        """Say how many photographs were skipped in training, in each process its own."""
        if stage == "fit" and (skipped := self.train_set.skipped()):
            named = f"{', '.join(skipped[:5])}{' and others' if len(skipped) > 5 else ''}"
            of = f"{len(skipped)} of {len(self.train_set)} photographs to train"
            warnings.warn(f"skipped {of}, which cannot be decoded: {named}", stacklevel=2)
