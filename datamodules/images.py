"""Small images, kept in memory and augmented a batch at a time."""

import numpy as np
import torch
from torch import Tensor

from datamodules.randomness import Draw


class Images:
    """Images as bytes, augmented and normalised as whole batches by array operations.

    Args:
        images: (M, C, H, W), uint8.
        labels: (M,), integers.
        mean, std: of each channel, in the units of the pixels.
        crop_padding: crops of the image's size are taken at random from the image padded with so many zeros a side.
        flip: mirror half of the images left to right.

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
    ) -> None:
        self.labels, self.places, self.flip = labels.astype(np.int64), 2 * crop_padding + 1, flip
        padding = [(0, 0), (0, 0), (crop_padding, crop_padding), (crop_padding, crop_padding)]
        size = images.shape[2:]
        # (M, C, places, places, H, W): a view, from which NumPy copies whole rows; torch's indexing goes by elements
        self.crops = np.lib.stride_tricks.sliding_window_view(np.pad(images, padding), size, axis=(2, 3))
        self.scale = 1 / torch.tensor(std).view(-1, 1, 1)
        self.shift = -torch.tensor(mean).view(-1, 1, 1) * self.scale

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Tensor]:
        top, left, mirror = draw.uniform(3).T
        corners = ((place * self.places).astype(np.int64) for place in (top, left))
        images = self.crops[draw.indices, :, *corners]
        if self.flip:
            mirrored = mirror < 0.5
            images[mirrored] = images[mirrored][..., ::-1]
        return torch.from_numpy(images).float().mul_(self.scale).add_(self.shift), torch.from_numpy(
            self.labels[draw.indices]
        )
