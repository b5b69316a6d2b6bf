"""MobileNetV2 and EfficientNet with epitomes, by surgery on timm's networks, and what NES's tables compare them with.

Replaced are the 1x1 convolutions of inverted residual blocks: the first one shares filters, the last one input
channels, as in the authors' code. Stem, depthwise convolutions, head and classifier stay dense unless said.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import timm
from torch import nn

from networks.epitome.base import Positions
from networks.epitome.surgery import AnyRule, Rule, apply
from networks.errors import InputError, check_choice
from networks.registry import register

Multiplier = float | Sequence[float]
SqueezeExcite = Literal["full", "grouped"]

EXPAND = r"blocks\.[1-6]\.\d+\.conv_pw$"
PROJECT = r"conv_pwl$|blocks\.0\.\d+\.conv_pw$"  # timm calls it so where a block has no expansion
PROJECT_OF_INVERTED = r"conv_pwl$"
HEAD = r"^conv_head$"


def epitome_mobilenetv2(
    multiplier: Multiplier = 0.5,
    head: bool = False,
    positions: Positions = "param",
    num_classes: int = 1000,
    in_chans: int = 3,
    drop_rate: float = 0.0,
) -> nn.Module:
    """MobileNetV2 1.0 whose 16 blocks of expansion 6 have epitomes (NES Tables 2 to 4).

    The block of expansion 1 stays dense.

    Args:
        multiplier: m, epitome channels over those of the weight, (0, 1]; one number, or 16, one for each block (the
            paper's "-A" networks compress front layers more; by how much is not known).
        head: share the head's 1x1 convolution too, with the largest m.
        positions: as in EpitomeConv2d.
        num_classes, in_chans, drop_rate: as timm's.

    Shape:
        x: (B, in_chans, H, W); returns logits (B, num_classes).
    """
    network = _mobilenetv2(num_classes, in_chans, drop_rate)
    return _with_epitomes(network, multiplier, head, 16, PROJECT_OF_INVERTED, positions)


def epitome_mobilenetv2_cifar(
    multiplier: Multiplier = 0.5,
    positions: Positions = "param",
    num_classes: int = 10,
    in_chans: int = 3,
    drop_rate: float = 0.0,
) -> nn.Module:
    """epitome_mobilenetv2 for images of 32x32: stem and second stage have stride 1 (NES Table 6, authors' code)."""
    network = mobilenetv2_cifar(num_classes, in_chans, drop_rate)
    return _with_epitomes(network, multiplier, False, 16, PROJECT_OF_INVERTED, positions)


def mobilenetv2_cifar(num_classes: int = 10, in_chans: int = 3, drop_rate: float = 0.0) -> nn.Module:
    """Dense MobileNetV2 1.0 for images of 32x32: stem and second stage have stride 1."""
    network = _mobilenetv2(num_classes, in_chans, drop_rate)
    for conv in (network.conv_stem, network.blocks[1][0].conv_dw):
        conv.stride = (1, 1)
    return network


def epitome_mobilenetv2_classifier(
    multiplier: float = 0.5,
    positions: Positions = "param",
    num_classes: int = 1000,
    in_chans: int = 3,
    drop_rate: float = 0.0,
) -> nn.Module:
    """Dense MobileNetV2 1.0 whose classifier alone folds its 1280 inputs (NES Table 7)."""
    network = _mobilenetv2(num_classes, in_chans, drop_rate)
    apply(network, [Rule("^classifier$", "in", multiplier)], positions=positions)
    return network


def mobilenetv2_narrow(
    multiplier: float = 0.5, num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.0
) -> nn.Module:
    """MobileNetV2 with the width multiplier on the filters of the blocks' first 1x1 convolutions (NES Table 2, '*').

    In the 16 blocks of expansion 6 the hidden width is round(m * 6 * k), so depthwise and last convolutions shrink
    with it: our reading of the caption.
    """
    if not 0 < multiplier <= 1:
        raise InputError(f"{multiplier=} must be more than 0 and at most 1")
    network = _mobilenetv2(num_classes, in_chans, drop_rate)
    for block in [block for stage in network.blocks[1:] for block in stage]:
        hidden = round(multiplier * block.conv_pw.out_channels)
        block.conv_pw = _conv(block.conv_pw, block.conv_pw.in_channels, hidden)
        block.conv_dw = _conv(block.conv_dw, hidden, hidden, groups=hidden)
        block.conv_pwl = _conv(block.conv_pwl, hidden, block.conv_pwl.out_channels)
        for name in ("bn1", "bn2"):
            norm = getattr(block, name)
            for values in ("weight", "bias"):
                setattr(norm, values, nn.Parameter(getattr(norm, values).detach()[:hidden].clone()))
            for values in ("running_mean", "running_var"):
                setattr(norm, values, getattr(norm, values)[:hidden].clone())
            norm.num_features = hidden
    return network


def epitome_efficientnet(
    variant: Literal["b0", "b1"],
    multiplier: Multiplier = 0.5,
    se: SqueezeExcite = "full",
    head: bool = False,
    positions: Positions = "none",
    num_classes: int = 1000,
    in_chans: int = 3,
    drop_rate: float = 0.2,
) -> nn.Module:
    """EfficientNet whose MBConv blocks have epitomes (NES Table 3); the 77.5 % network is B1 at 224 pixels.

    As released: positions off, TensorFlow's "same" padding, batch normalisation of momentum 0.01, dropout 0.2 and no
    drop-connect.

    Args:
        variant: "b0" or "b1".
        multiplier: m, in (0, 1]; one number, or one for each block (16 in B0, 23 in B1). Released is 0.5.
        se: of squeeze and excitation the "full" convolutions, or "grouped" by the squeezed channels.
        head: share the head's 1x1 convolution too, with the largest m.
        positions: as in EpitomeConv2d.
        num_classes, in_chans, drop_rate: as timm's.

    Shape:
        x: (B, in_chans, H, W); returns logits (B, num_classes).
    """
    check_choice("se", se, SqueezeExcite)
    network: Any = timm.create_model(
        f"tf_efficientnet_{variant}",
        num_classes=num_classes,
        in_chans=in_chans,
        drop_rate=drop_rate,
        bn_momentum=0.01,
    )
    if se == "grouped":
        for block in [block for stage in network.blocks for block in stage]:
            squeezed = block.se.conv_reduce.out_channels
            for name in ("conv_reduce", "conv_expand"):
                conv = getattr(block.se, name)
                setattr(block.se, name, _conv(conv, conv.in_channels, conv.out_channels, groups=squeezed))
    return _with_epitomes(network, multiplier, head, {"b0": 16, "b1": 23}[variant], PROJECT, positions)


def _mobilenetv2(num_classes: int, in_chans: int, drop_rate: float) -> Any:
    """timm's MobileNetV2 1.0."""
    return timm.create_model("mobilenetv2_100", num_classes=num_classes, in_chans=in_chans, drop_rate=drop_rate)


def _with_epitomes(
    network: nn.Module, multiplier: Multiplier, head: bool, blocks: int, project: str, positions: Positions
) -> nn.Module:
    """Epitomes in the blocks' 1x1 convolutions, and with `head` in the head's."""
    each = (multiplier,) * blocks if isinstance(multiplier, float | int) else tuple(multiplier)
    if len(each) != blocks:
        raise InputError(f"multiplier has {len(each)} numbers: give one, or one for each of {blocks} blocks")
    expanding = sum(1 for name, layer in network.named_modules() if name.endswith("conv_pwl"))
    rules: list[AnyRule] = [Rule(EXPAND, "out", each[blocks - expanding :]), Rule(project, "in", each)]
    if head:
        rules.append(Rule(HEAD, "in", max(each)))
    apply(network, rules, positions=positions)
    return network


def _conv(like: nn.Conv2d, channels: int, filters: int, groups: int = 1) -> nn.Conv2d:
    """A convolution as another one, of other width; initialised as timm does for these networks."""
    conv = type(like)(
        channels,
        filters,
        like.kernel_size,  # type: ignore[arg-type]
        like.stride,  # type: ignore[arg-type]
        like.padding,  # type: ignore[arg-type]
        groups=groups,
        bias=like.bias is not None,
    )
    nn.init.normal_(conv.weight, std=math.sqrt(2 / (math.prod(conv.kernel_size) * filters // groups)))
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


_IMAGENET = {"input_size": (3, 224, 224), "num_classes": 1000}
_CIFAR = {"input_size": (3, 32, 32), "num_classes": 10}
register("epitome_mobilenetv2", epitome_mobilenetv2, _IMAGENET)
register("epitome_mobilenetv2_classifier", epitome_mobilenetv2_classifier, _IMAGENET)
register("mobilenetv2_narrow", mobilenetv2_narrow, _IMAGENET)
register("epitome_mobilenetv2_cifar", epitome_mobilenetv2_cifar, _CIFAR)
register("mobilenetv2_cifar", mobilenetv2_cifar, _CIFAR)
for _variant in ("b0", "b1"):
    register(f"epitome_efficientnet_{_variant}", epitome_efficientnet, _IMAGENET, variant=_variant)
