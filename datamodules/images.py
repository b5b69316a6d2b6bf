"""Small images, kept in memory and augmented a batch at a time."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from datamodules.randomness import Draw


class Images:
    """Images as bytes, augmented and normalised as whole batches by array operations.

    Args:
        images: (M, C, H, W), uint8.
        labels: (M,), integers.
        mean, std: of each channel, in the units of the pixels.
        crop_padding: crops of the image's size are taken at random from the image padded with so many zeros a side.
        flip: mirror half of the images left to right.
        rotation: degrees; turn each image, after crop and flip, by an angle uniform in +-rotation, see `rotate`.

    `dataset[draw]` gives inputs (N, C, H, W), float32, and labels (N,), int64.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        crop_padding: int = 0,
        flip: bool = False,
        rotation: float = 0.0,
    ) -> None:
        self.labels, self.places, self.flip = labels.astype(np.int64), 2 * crop_padding + 1, flip
        self.rotation = rotation
        padding = [(0, 0), (0, 0), (crop_padding, crop_padding), (crop_padding, crop_padding)]
        size = images.shape[2:]
        # (M, C, places, places, H, W): a view, from which NumPy copies whole rows; torch's indexing goes by elements
        self.crops = np.lib.stride_tricks.sliding_window_view(np.pad(images, padding), size, axis=(2, 3))
        self.scale = 1 / torch.tensor(std).view(-1, 1, 1)
        self.shift = -torch.tensor(mean).view(-1, 1, 1) * self.scale

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Tensor]:
        top, left, mirror, *turn = draw.uniform(4 if self.rotation else 3).T
        corners = ((place * self.places).astype(np.int64) for place in (top, left))
        images = self.crops[draw.indices, :, *corners]
        if self.flip:
            mirrored = mirror < 0.5
            images[mirrored] = images[mirrored][..., ::-1]
        inputs = torch.from_numpy(images).float()
        if self.rotation:
            inputs = rotate(inputs, torch.from_numpy(self.rotation * (2 * turn[0] - 1)))
        return inputs.mul_(self.scale).add_(self.shift), torch.from_numpy(self.labels[draw.indices])


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Turn each image counterclockwise about its centre, as torchvision's RandomRotation: nearest pixel, zero outside.

    The grid is made element by element: F.affine_grid multiplies matrices, whose last bits may depend on the batch.

    Args:
        images: (N, C, H, W), float32.
        degrees: (N,), float64.
    """
    height, width = images.shape[2:]
    angle = degrees.deg2rad().view(-1, 1, 1)
    cos, sin = angle.cos(), angle.sin()
    y, x = (torch.arange(size) - (size - 1) / 2 for size in (height, width))
    y = y.view(-1, 1)
    grid = torch.stack(((cos * x - sin * y) * 2 / width, (sin * x + cos * y) * 2 / height), -1)  # (N, H, W, 2)
    return F.grid_sample(images, grid.float(), "nearest", "zeros", align_corners=False)
