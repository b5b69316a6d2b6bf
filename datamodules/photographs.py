"""Photographs in files: read, decoded and transformed for each batch."""

import os
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.transforms.v2 import functional

from datamodules.randomness import Draw
from networks import InputError

TRIES = 20  # as timm
Decode = Callable[[Path], Any]
Transform = Callable[[Any], Tensor]


class CorruptError(InputError):
    """A file that is there and cannot be decoded."""


class Photographs:
    """Photographs in files, decoded and transformed when a batch asks for them.

    Args:
        folder: where they are.
        names: (M,), bytes, of the files in it.
        labels: (M,), integers.
        size: (3, H, W).
        decode: from a path to an RGB image, such as `as_image` and `as_tensor`.
        transform: from that to a tensor of the size, and of its `dtype`, float32 if it says none; may draw from the
            global CPU generators of Python, NumPy and torch, which are seeded by the draw for each image, and left as
            they were.
        skip_corrupt: take the next photograph for one that cannot be decoded, as timm does, with a warning for each;
            None where that is no choice.

    `dataset[draw]` gives inputs (N, 3, H, W) and labels (N,), int64.

    Raises:
        InputError: a file that cannot be read, or not decoded; if the latter are skipped, 20 in a row.
    """

    def __init__(
        self,
        folder: Path,
        names: np.ndarray,  # no list of str: to count references is to write, and would copy it into every worker
        labels: np.ndarray,
        size: tuple[int, int, int],
        decode: Decode,
        transform: Transform,
        skip_corrupt: bool | None = None,
    ) -> None:
        self.folder, self.names, self.labels = folder, names, labels.astype(np.int64)
        self.size, self.decode, self.transform, self.skip_corrupt = size, decode, transform, skip_corrupt
        # A flag for each, that workers set and the main process reads; a counter would have to be locked.
        self._skipped = torch.zeros(len(names), dtype=torch.bool).share_memory_() if skip_corrupt else None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Tensor]:
        images = torch.empty(len(draw.indices), *self.size, dtype=getattr(self.transform, "dtype", torch.float32))
        labels = torch.empty(len(draw.indices), dtype=torch.int64)
        # A seed for each generator: NumPy's and torch's are one algorithm, and would give the same bits.
        seeds = (draw.uniform(3) * 2**32).astype(np.int64).tolist()
        with _generators_restored():
            for place, (index, (of_python, of_numpy, of_torch)) in enumerate(zip(draw.indices, seeds, strict=True)):
                image, label = self._read(int(index))
                random.seed(of_python)
                np.random.seed(of_numpy)  # noqa: NPY002
                torch.default_generator.manual_seed(of_torch)  # torch.manual_seed would seed GPUs too
                images[place], labels[place] = self.transform(image), label
        return images, labels

    def _read(self, index: int) -> tuple[Any, int]:
        """The decoded photograph and its label, or those of the next that can be decoded."""
        for following in range(index, index + TRIES):
            i = following % len(self)
            path = self.folder / os.fsdecode(self.names[i])
            try:
                return self.decode(path), int(self.labels[i])
            except CorruptError as error:
                if self._skipped is None:
                    choice = "" if self.skip_corrupt is None else ", or skip it with --data.skip_corrupt true"
                    raise InputError(f"{error}: unpack it again from the data set's archive{choice}") from error
                if not self._skipped[i]:
                    self._skipped[i] = True
                    warnings.warn(f"skipped: {error}", stacklevel=2)
        raise InputError(f"{TRIES} photographs in a row cannot be decoded, the last {path}: unpack the archive again")

    def skipped(self) -> list[str]:
        """Names of the photographs that have been skipped so far, by any worker of this process."""
        return [] if self._skipped is None else [os.fsdecode(name) for name in self.names[self._skipped.numpy()]]


def as_image(path: Path) -> Image.Image:
    """Decode a photograph of any format and colours by PIL, to RGB.

    Raises:
        CorruptError: it cannot be decoded.
        InputError: it cannot be read.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")  # some are grey, CMYK or have a palette
    except Exception as error:  # damaged bytes can raise anything
        if isinstance(error, OSError) and error.errno:  # of the system; PIL's have no number
            raise InputError(
                f"{path} cannot be read ({error.strerror}): the disk, the network or the rights"
            ) from error
        raise CorruptError(f"{path} cannot be decoded ({error})") from error


def as_tensor(path: Path) -> Tensor:
    """As `as_image`, to bytes (3, H, W), uint8: the same, but of CMYK, where they may differ by 1.

    Intact JPEG files go past PIL, in three quarters of its time.

    Raises:
        CorruptError, InputError: as `as_image`.
    """
    try:
        pixels = simplejpeg.decode_jpeg(path.read_bytes(), "RGB")
    except (OSError, ValueError):  # no file, no JPEG, CMYK, damaged: PIL takes it, or knows why not
        pixels = np.array(as_image(path))
    return torch.from_numpy(pixels).permute(2, 0, 1)


class TensorCrop:
    """timm's training crop and flips of bytes (3, H, W), uint8, to bytes; the same draws from the same generators.

    Args:
        steps: of timm's training transform; what normalises is left out.
    """

    dtype = torch.uint8

    def __init__(self, steps: Sequence[Any]) -> None:
        self.crop, *self.flips = steps[:-2]

    @staticmethod
    def can(steps: Sequence[Any]) -> bool:
        """Whether a transform of timm's does no more than bilinear crops, flips and normalisation.

        (PyTorch's bicubic differs from PIL's by up to 18 of 255.)
        """
        crop, *others, _, _ = steps
        flips = transforms.RandomHorizontalFlip | transforms.RandomVerticalFlip
        bilinear = crop.interpolation == transforms.InterpolationMode.BILINEAR
        return bilinear and all(isinstance(step, flips) for step in others)

    def __call__(self, image: Tensor) -> Tensor:
        box = self.crop.get_params(image, self.crop.scale, self.crop.ratio)
        image = functional.resized_crop(image, *box, list(self.crop.size), self.crop.interpolation, antialias=True)
        for flip in self.flips:
            image = flip(image)
        return image


@contextmanager
def _generators_restored() -> Iterator[None]:
    """The states of the global CPU generators of Python, NumPy and torch are afterwards what they were."""
    of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)  # noqa: NPY002
