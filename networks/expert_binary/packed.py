"""Inference from stored bits: what a deployed expert binary network reads, and the exact integers that it computes.

A reference, for ports to other hardware. Bits stand eight to a byte, lowest first, as in networks.bits: 1 for +1.
"""

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from networks.complexity import Cost
from networks.errors import InputError
from networks.expert_binary.layers import ExpertBinaryConv2d
from networks.expert_binary.surgery import expert_layers

CHUNK = 1 << 22  # bytes that are compared at a time
POPCOUNT = torch.tensor([byte.bit_count() for byte in range(256)], dtype=torch.uint8)


def pack(network: nn.Module) -> nn.Module:
    """Copy of a network for inference whose expert binary convolutions have bits for weights; frozen, in eval mode.

    Raises:
        InputError: it has no such layers, or one that is not at step "binary" or mixes its experts.
    """
    layers = expert_layers(network)
    if not layers:
        raise InputError("the network has no expert binary convolution to pack: make them by expert_binary.apply")
    for name, layer in layers.items():
        if layer.step != "binary":
            raise InputError(f"layer {name} is at step {layer.step!r}, with real weights: set_step(network, 'binary')")
        if layer.gate is not None and layer.routing == "mixture":
            raise InputError(f"layer {name} mixes real experts for each input: only routing='winner' can be packed")
    packed = {id(layer): PackedExpertConv2d(layer) for layer in layers.values()}
    return copy.deepcopy(network, packed).eval().requires_grad_(False)


class PackedExpertConv2d(nn.Module):
    """An ExpertBinaryConv2d at step "binary" with N kernels of bits, of which each sample reads one.

    With K taps inside the image and bits for signs, the sum of products is K - 2 popcount(xor(x, w)): what padding adds
    to the image is absent, not a sign. Inference only.

    Args:
        layer: is copied, not kept.

    Attributes:
        kernels: (N, O, ceil(C / G * k * k / 8)), uint8.

    Shape:
        x: (B, C, H, W), real; y: (B, O, H', W').
    """

    kernels: Tensor

    def __init__(self, layer: ExpertBinaryConv2d) -> None:
        super().__init__()
        self.out_channels, self.groups, self.kernel_size = layer.out_channels, layer.groups, layer.kernel_size
        self.stride, self.dilation, self.margins = layer.stride, layer.dilation, layer.margins
        self.fan_in = layer.weight[0, 0].numel()  # bits of one kernel of one output
        self.register_buffer("kernels", _to_bytes(layer.weight.detach().flatten(2) >= 0))
        self.scale = nn.Parameter(layer.scale.detach().clone())
        self.gate, self.rescale = copy.deepcopy(layer.gate), copy.deepcopy(layer.rescale)
        pixel = torch.empty(1, layer.out_channels, 1, 1, device="meta")
        self.cost_of_pixel = layer.deployed_cost(pixel, pixel)  # which asks for the size of the output alone
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        average = x.mean((2, 3), dtype=self.scale.dtype)
        chosen = x.new_zeros(len(x), dtype=torch.int64) if self.gate is None else self.gate(average).argmax(-1)
        y = self.dot(x, chosen) * self.scale.view(-1, 1, 1)
        return y if self.rescale is None else y * self.rescale(average)[:, :, None, None]

    def dot(self, x: Tensor, chosen: Tensor) -> Tensor:
        """Sums of products of signs, (B, O, H', W') int32, of x (B, C, H, W) with the experts chosen (B,) int64."""
        inside = self._patches(torch.ones_like(x[0, : x.shape[1] // self.groups]), 1)
        taps, valid = inside.sum(-1, dtype=torch.int32), _to_bytes(inside)  # (1, L), (1, L, bytes)
        sums = []
        for b in range(len(x)):
            bits = _to_bytes(self._patches(x[b], self.groups))  # (G, L, bytes)
            kernel = self.kernels.index_select(0, chosen[b : b + 1]).view(self.groups, -1, bits.shape[-1])
            differ = [
                _popcount((bits[:, None] ^ outputs[:, :, None]) & valid).sum(-1, dtype=torch.int32)
                for outputs in kernel.split(max(1, CHUNK // bits.numel()), 1)
            ]
            sums.append((taps - 2 * torch.cat(differ, 1)).flatten(0, 1))
        return torch.stack(sums).unflatten(-1, self._size(x))

    def _patches(self, x: Tensor, groups: int) -> Tensor:
        """Bits x >= 0 of (C, H, W) under the kernel at each position, (G, L, K) bool, False outside; L = H' W'."""
        padded = F.pad((x >= 0).to(self.scale.dtype), self.margins)
        columns = F.unfold(padded[None], self.kernel_size, self.dilation, stride=self.stride)
        return columns.view(groups, self.fan_in, -1).transpose(1, 2) > 0

    def _size(self, x: Tensor) -> tuple[int, int]:
        """H', W'."""
        left, right, top, bottom = self.margins
        spare = x.shape[2] + top + bottom - 1, x.shape[3] + left + right - 1
        (kh, kw), (dh, dw), (sh, sw) = self.kernel_size, self.dilation, self.stride
        return (spare[0] - dh * (kh - 1)) // sh + 1, (spare[1] - dw * (kw - 1)) // sw + 1

    def deployed_cost(self, x: Tensor, y: Tensor) -> Cost:
        """That of the layer: what it counts is deployed like this."""
        bops = y.numel() // self.out_channels * (self.cost_of_pixel.bops or 0)
        return replace(self.cost_of_pixel, bops=bops, kept_bops=bops)


def _to_bytes(bits: Tensor) -> Tensor:
    """(..., K) bool -> (..., ceil(K / 8)) uint8, filled up with 0."""
    bits = F.pad(bits.to(torch.uint8), (0, -bits.shape[-1] % 8)).unflatten(-1, (-1, 8))
    return (bits << torch.arange(8, dtype=torch.uint8, device=bits.device)).sum(-1, dtype=torch.uint8)


def _popcount(data: Tensor) -> Tensor:
    """Number of ones in each byte, uint8."""
    return POPCOUNT.to(data.device).index_select(0, data.flatten().int()).view_as(data)
