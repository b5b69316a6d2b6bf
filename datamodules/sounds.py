"""Sounds, kept as 16-bit samples and cropped a batch at a time."""

import numpy as np
import torch
from torch import Tensor

from datamodules.randomness import Draw

SCALE = 256 / 2**15  # 16-bit samples to +-256, SoundNet's scale


class Sounds:
    """Clips of one length, cropped at random in training or at even distances in evaluation.

    Args:
        clips: (M, T), int16; may be a file that is mapped into memory.
        rows: (n,), which clips belong to this set.
        labels: (n,), integers.
        crop: samples of a crop, at most T.
        training: crop at random; else `crops` crops of each clip.
        gain_db: training multiplies each crop by a gain uniform in +-gain_db decibels.
        shift: where a training crop is the whole clip, begin it anywhere and go on at its start.
        crops: of a clip in evaluation, evenly spaced from its start to its end; one where a crop is the whole clip.

    `dataset[draw]` gives waveforms in +-256, float32, (N, 1, crop), or (N, crops, 1, crop) for several crops, and
    labels (N,), int64.
    """

    def __init__(
        self,
        clips: np.ndarray,
        rows: np.ndarray,
        labels: np.ndarray,
        crop: int,
        training: bool = False,
        gain_db: float = 0.0,
        shift: bool = False,
        crops: int = 1,
    ) -> None:
        self.clips, self.rows, self.labels, self.crop = clips, rows, labels.astype(np.int64), crop
        self.training, self.gain_db, self.shift = training, gain_db, shift
        rest = clips.shape[1] - crop
        self.starts = np.linspace(0, rest, crops).round().astype(int) if rest and crops > 1 else np.array([rest // 2])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Tensor]:
        labels = torch.from_numpy(self.labels[draw.indices])
        return (self._random_crops(draw) if self.training else self._even_crops(draw)), labels

    def _random_crops(self, draw: Draw) -> Tensor:
        length = self.clips.shape[1]
        where, loudness = draw.uniform(2).T
        whole = self.crop == length
        places = (length if self.shift else 1) if whole else length - self.crop + 1
        waves = np.empty((len(draw.indices), 1, self.crop), np.float32)
        for wave, row, start in zip(waves, self.rows[draw.indices], (where * places).astype(int), strict=True):
            clip = self.clips[row]
            if whole:
                wave[0, : length - start], wave[0, length - start :] = clip[start:], clip[:start]
            else:
                wave[0] = clip[start : start + self.crop]
        gain = SCALE * 10 ** ((2 * loudness - 1) * self.gain_db / 20)
        return torch.from_numpy(waves).mul_(torch.from_numpy(gain).float().view(-1, 1, 1))

    def _even_crops(self, draw: Draw) -> Tensor:
        waves = np.empty((len(draw.indices), len(self.starts), 1, self.crop), np.float32)
        for wave, row in zip(waves, self.rows[draw.indices], strict=True):
            clip = self.clips[row]
            for crop, start in zip(wave, self.starts, strict=True):
                crop[0] = clip[start : start + self.crop]
        crops = torch.from_numpy(waves).mul_(SCALE)
        return crops if len(self.starts) > 1 else crops.squeeze(1)
