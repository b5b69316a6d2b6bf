"""Positions that a layer computes from its own input (NES's indexing learner)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class IndexLearner(nn.Module):
    """conv 3, stride 2 -> BN -> ReLU6 -> conv 1 -> average over space and batch: a vector z for each forward.

    That is the authors' released learner without its last normalisation. With it (`last_norm`, the released form) the
    mean over the axes that it normalises leaves nothing but its bias: z does not depend on the input, and no gradient
    reaches the convolutions. The learner is used in training alone, see `EpitomeLayer`.

    Args:
        channels: I, of the layer's input.
        positions: length of z.
        dims: spatial axes of the input: 1, 2, or 0 of linear layers, where of the 3x3 weights one would see data, and
            the first convolution is 1x1.
        depthwise: a depthwise first convolution: 9 I instead of 9 I^2 weights. Ours.
        last_norm: the authors' second normalisation.

    Shape:
        x: (B, I, H, W), of linear layers (B, I, 1, 1), or (B, I, T).
        Returns z (positions,), or with `last_norm` z / ||z||.
    """

    def __init__(
        self, channels: int, positions: int, dims: int, depthwise: bool = False, last_norm: bool = False
    ) -> None:
        super().__init__()
        conv: type[nn.Conv1d] | type[nn.Conv2d] = nn.Conv1d if dims == 1 else nn.Conv2d
        norm: type[nn.BatchNorm1d] | type[nn.BatchNorm2d] = nn.BatchNorm1d if dims == 1 else nn.BatchNorm2d
        self.conv1 = conv(channels, channels, 3 if dims else 1, 2, bias=False, groups=channels if depthwise else 1)
        self.norm1 = norm(channels)
        self.conv2 = conv(channels, positions, 1, bias=False)
        self.norm2 = norm(positions) if last_norm else None

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.conv1.kernel_size[0]
        missing = [max(kernel - size, 0) for size in x.shape[:1:-1]]  # of the last axis first, as F.pad wants it
        if any(missing):
            x = F.pad(x, [side for size in missing for side in (0, size)])
        z = self.conv2(F.relu6(self.norm1(self.conv1(x))))
        if self.norm2 is not None:
            z = self.norm2(z)
        z = z.to(self.conv2.weight.dtype).mean((0, *range(2, z.ndim)))  # autocast's halves cannot hold positions
        return z if self.norm2 is None else z / torch.linalg.vector_norm(z)
