"""Masks and signs as packed bits, eight to a byte, lowest bit first."""

import numpy as np
import torch
from torch import Tensor


def pack(bits: Tensor) -> Tensor:
    """Bool tensor of any shape -> (ceil(n / 8),) uint8 on the CPU, in row-major order."""
    return torch.from_numpy(np.packbits(bits.detach().cpu().flatten().numpy(), bitorder="little"))


def unpack(packed: Tensor, n: int) -> Tensor:
    """(ceil(n / 8),) uint8 -> (n,) bool on the CPU."""
    return torch.from_numpy(np.unpackbits(packed.cpu().numpy(), count=n, bitorder="little").astype(bool))
