"""Train several networks of one shape as one: their channels stand side by side, and their convolutions are groups.

A small network leaves a GPU waiting for launches. Seeds of one channel list have equal shapes, so that one network does
the arithmetic of all with as many launches as one.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import BatchNormAct2d, ClassifierHead
from torch import Tensor, nn

from networks.errors import InputError
from networks.rexnet.bottleneck import BottleneckNet, InvertedBottleneck


class Folded(nn.Module):
    """Networks of `channel_search_net` with one channel list, as one network.

    Every network computes what it would alone, in training too: batch normalisation works channel by channel, and what
    mixes channels is grouped. Each sees its own images.

    Args:
        networks: at least one, of one shape; their weights are copied.

    Shape:
        x: (B, S, C, H, W), images of each of S networks; returns logits (B, S, num_classes).

    Raises:
        InputError: networks of other kinds or shapes.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        plain = all(isinstance(net, BottleneckNet) and isinstance(net.head, ClassifierHead) for net in networks)
        if not plain or len(set(map(repr, networks))) != 1:
            raise InputError("only networks of channel_search_net with one channel list can be folded")
        self.count = len(networks)
        self.network: Any = copy.deepcopy(networks[0])
        for path, module in self.network.named_modules():
            parts = [network.get_submodule(path) for network in networks]
            if isinstance(module, nn.Conv2d):
                _fold(module, parts, ("weight",))
                for name in ("groups", "in_channels", "out_channels"):
                    setattr(module, name, self.count * getattr(module, name))
            elif isinstance(module, nn.BatchNorm2d | BatchNormAct2d):
                _fold(module, parts, ("weight", "bias", "running_mean", "running_var"))
                module.num_features *= self.count
            elif isinstance(module, InvertedBottleneck):
                module.folds = self.count
        heads: list[Any] = [network.get_classifier() for network in networks]  # type: ignore[operator]
        self.network.head = nn.Identity()
        self.weight = nn.Parameter(torch.stack([head.weight.detach() for head in heads]))  # (S, classes, width)
        self.bias = nn.Parameter(torch.stack([head.bias.detach() for head in heads]))  # (S, classes)

    def forward(self, x: Tensor) -> Tensor:
        features = self.network.forward_features(x.flatten(1, 2)).mean((2, 3))
        features = features.unflatten(1, (self.count, -1)).transpose(0, 1)  # (S, B, width)
        return torch.baddbmm(self.bias[:, None], features, self.weight.mT).transpose(0, 1)


def _fold(module: nn.Module, parts: list[nn.Module], names: tuple[str, ...]) -> None:
    for name in names:
        joined = torch.cat([getattr(part, name).detach() for part in parts])
        if isinstance(getattr(module, name), nn.Parameter):
            setattr(module, name, nn.Parameter(joined))
        else:
            setattr(module, name, joined)
