"""Masks and signs as bits, packed eight to a byte, lowest bit first."""

import numpy as np
import torch
from torch import Tensor


def pack(bits: Tensor) -> Tensor:
    """Bool tensor of any shape -> (ceil(n / 8),) uint8 on the CPU, in row-major order."""
    return torch.from_numpy(np.packbits(bits.detach().cpu().flatten().numpy(), bitorder="little"))


def unpack(packed: Tensor, n: int) -> Tensor:
    """(ceil(n / 8),) uint8 -> (n,) bool on the CPU."""
    return torch.from_numpy(np.unpackbits(packed.cpu().numpy(), count=n, bitorder="little").astype(bool))


def random_signs(seed: int, n: int) -> Tensor:
    """(n,) fair signs, int8, that are the same on every machine: bits of Philox (Salmon et al., SC 2011).

    A seed thus stands for the signs of a layer in a file; a framework's normal generator keeps no such promise.
    """
    words = np.random.Philox(key=seed).random_raw(-(-n // 64)).astype("<u8")
    return unpack(torch.from_numpy(words.view(np.uint8)), n).to(torch.int8) * 2 - 1
