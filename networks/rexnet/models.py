"""ReXNet and its relatives (Han et al., CVPR 2021, arXiv 2007.00992), under timm's names."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import timm
from timm.layers import ClassifierHead, ConvNormAct, create_act_layer
from timm.models import build_model_with_cfg, register_model
from timm.models import rexnet as timms
from torch import Tensor, nn

from networks.errors import InputError, check_choice
from networks.registry import register
from networks.rexnet.bottleneck import Activation, BottleneckNet, InvertedBottleneck, activation_layer
from networks.rexnet.space import stride_blocks

RELEASED = {1.0: "rexnet_100", 1.3: "rexnet_130", 1.5: "rexnet_150", 2.0: "rexnet_200", 3.0: "rexnet_300"}
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)
PLAIN_CHANNELS = (96, 144, 192, 240, 288, 336, 384, 432, 480, 528, 576, 624, 1024)
PLAIN_STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
FIGURE_STRIDES = (2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1)


class ReXNet(timms.RexNet):
    """timm's network with blocks that add their shortcuts in place: the same function and state_dict."""

    def __init__(self, stem_act: Activation | None = None, **options: Any) -> None:
        super().__init__(**options)
        if stem_act:
            self.stem.bn.act = create_act_layer(activation_layer(stem_act), inplace=True)
        for block in self.features[:-1]:
            block.__class__ = InvertedBottleneck


@register_model
def rexnet(
    pretrained: bool = False,
    width: float = 1.0,
    activation: Activation = "silu",
    stem_act: Activation | None = None,
    drop_path_rate: float | None = None,
    **options: Any,
) -> nn.Module:
    """ReXNet of any width multiplier.

    Its 16 blocks have round(w b + w (i - 1) 180 / 16) channels, halves to even, where b is 16, or 16 / w for w < 1;
    stem and first block keep 32 and 16 there.

    Args:
        pretrained: take the authors' ImageNet weights, which timm has for widths 1.0, 1.3, 1.5, 2.0 and 3.0.
        width: w, positive.
        activation: of stem, expansions and the penultimate layer (the paper's nonlinearity table varies it); after
            depthwise convolutions stands ReLU6 always.
        stem_act: of the stem; None as `activation`, as released. The paper's text says relu6.
        drop_path_rate: stochastic depth of the last block, linear from 0 in the first, on blocks with a shortcut.
            None is by width (ours; the authors say none for 1.0, and needed for larger ones): 0 up to 1.0, 0.2 from
            2.0 on, 0.1 between.
        options: timm's, such as num_classes, in_chans, drop_rate (0.2), features_only, out_indices, output_stride.

    Shape:
        x: (B, in_chans, H, W); returns logits (B, num_classes).

    Raises:
        InputError: an unknown activation, a width or rate out of range, no weights of that width.
    """
    if not width > 0:
        raise InputError(f"{width=} must be positive")
    if pretrained and width not in RELEASED:
        raise InputError(f"no weights of ReXNet {width} are released: take a width of {', '.join(map(str, RELEASED))}")
    if drop_path_rate is None:
        drop_path_rate = 0.0 if width <= 1 else 0.1 if width < 2 else 0.2
    variant = RELEASED.get(width, RELEASED[1.0])
    if not 0 <= drop_path_rate < 1:
        raise InputError(f"{drop_path_rate=} must lie in [0, 1)")
    if not options.get("pretrained_cfg"):
        options["pretrained_cfg"] = timm.get_pretrained_cfg(variant)
    return build_model_with_cfg(
        ReXNet,
        variant,
        pretrained,
        feature_cfg={"flatten_sequential": True},
        width_mult=width,
        act_layer=activation_layer(activation),
        stem_act=stem_act,
        drop_path_rate=drop_path_rate,
        **options,
    )


def rexnet_lite(
    width: float = 1.0,
    fix_head_stem: bool = False,
    num_classes: int = 1000,
    in_chans: int = 3,
    drop_rate: float = 0.2,
) -> nn.Module:
    """ReXNet-lite of the authors' README: no squeeze and excitation, ReLU6 everywhere, channels in multiples of 8.

    Args:
        width: multiplier m, positive; block i has m (b + (i - 1) 164 / 15) channels, rounded, b as in `rexnet`.
        fix_head_stem: stem of 32 and penultimate layer of 1280 at every width.
        num_classes, in_chans, drop_rate: as timm's.

    Shape:
        x: (B, in_chans, H, W); returns logits (B, num_classes).
    """
    if not width > 0:
        raise InputError(f"{width=} must be positive")
    first = 16 / width if width < 1 else 16
    channels = [_multiple_of_8(round(width * (first + i * 164 / 15))) for i in range(16)]
    stem = 32 if width < 1 or fix_head_stem else _multiple_of_8(round(32 * width))
    penultimate = int(1280 * width) if width > 1 and not fix_head_stem else 1280
    head = nn.Sequential(
        nn.AdaptiveAvgPool2d(1),
        nn.Conv2d(penultimate, 1024, 1),
        nn.BatchNorm2d(1024),
        nn.ReLU6(),
        nn.Dropout(drop_rate),
        nn.Conv2d(1024, num_classes, 1) if num_classes else nn.Identity(),
        nn.Flatten(),
    )
    return BottleneckNet(
        channels, STRIDES, (1, *(6,) * 15), stem, 2, penultimate, num_classes, in_chans, "relu6", head=head
    )


def rexnet_plain(
    layout: Literal["table", "figure"] = "table",
    stem_act: Activation = "silu",
    num_classes: int = 1000,
    in_chans: int = 3,
    drop_rate: float = 0.2,
) -> nn.Module:
    """ReXNet (plain): MobileNetV1's blocks, without shortcuts, with widths on a line of slope 48.

    The paper's figure and table contradict each other; see docs/rexnet.md.

    Args:
        layout: "table" has MobileNetV1's strides, which give the parameters and operations of the paper's table (our
            reading); "figure" has the strides, the second width of 114 and the layer of 1280 that the figure shows.
        stem_act: of the stem; unconfirmed.
        num_classes, in_chans, drop_rate: as timm's; the dropout is unconfirmed.

    Shape:
        x: (B, in_chans, H, W); returns logits (B, num_classes).
    """
    check_choice("layout", layout, Literal["table", "figure"])
    channels, strides = list(PLAIN_CHANNELS), PLAIN_STRIDES
    if layout == "figure":
        channels[1], strides = 114, FIGURE_STRIDES
    return PlainNet(channels, strides, layout == "figure", stem_act, num_classes, in_chans, drop_rate)


def channel_search_net(
    channels: Sequence[int],
    stem: int = 32,
    first: int = 16,
    strided: Sequence[int] | None = None,
    expansion: int = 6,
    penultimate: int = 1024,
    activation: Activation = "relu6",
    outer_activation: Activation = "relu6",
    num_classes: int = 100,
    in_chans: int = 3,
) -> nn.Module:
    """The network for 32x32 images whose blocks' channels are searched (paper, Table 1).

    It fits the costs that the paper prints and was confirmed by no text or code: hence the arguments.

    Args:
        channels: c_1 ... c_d of the searched blocks, which must not decrease.
        stem: channels of the first convolution, 3x3 of stride 1.
        first: channels of a block of expansion 1 before the searched ones; 0 leaves it out.
        strided: numbers of the blocks of stride 2, from 1; None is d // 3 + 1 and 2 (d // 3) + 1.
        expansion: of the searched blocks.
        penultimate: channels of the last 1x1 convolution.
        activation: after the expansions.
        outer_activation: of stem and last convolution.
        num_classes, in_chans: as timm's.

    Shape:
        x: (B, in_chans, 32, 32); returns logits (B, num_classes).

    Raises:
        InputError: channels that decrease or are not positive, blocks that are not there.
    """
    channels, strided = list(channels), stride_blocks(len(channels)) if strided is None else strided
    if not channels or channels[0] < 1 or any(after < before for before, after in pairwise(channels)):
        raise InputError(f"channels={channels} must be positive and must not decrease")
    if not set(strided) <= set(range(1, len(channels) + 1)):
        raise InputError(f"strided={list(strided)} names blocks outside 1 to {len(channels)}")
    strides = [2 if block in strided else 1 for block in range(1, len(channels) + 1)]
    expansions = [expansion] * len(channels)
    if first:
        channels, strides, expansions = [first, *channels], [1, *strides], [1, *expansions]
    return BottleneckNet(
        channels, strides, expansions, stem, 1, penultimate, num_classes, in_chans, activation, outer_activation
    )


class PlainNet(nn.Module):
    """Depthwise 3x3, BN, ReLU6, 1x1, BN, SiLU, over and over."""

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        penultimate: bool,
        stem_act: Activation,
        num_classes: int,
        in_chans: int,
        drop_rate: float,
    ) -> None:
        super().__init__()
        self.stem = ConvNormAct(in_chans, 32, 3, stride=2, act_layer=activation_layer(stem_act))
        blocks: list[nn.Module] = []
        for (before, after), stride in zip(pairwise([32, *channels]), strides, strict=True):
            depthwise = ConvNormAct(before, before, 3, stride, groups=before, act_layer=nn.ReLU6)
            blocks.append(nn.Sequential(depthwise, ConvNormAct(before, after, act_layer=nn.SiLU)))
        if penultimate:
            blocks.append(ConvNormAct(channels[-1], 1280, act_layer=nn.SiLU))
        self.num_classes, self.num_features = num_classes, 1280 if penultimate else channels[-1]
        self.features = nn.Sequential(*blocks)
        self.head = ClassifierHead(self.num_features, num_classes, drop_rate=drop_rate)
        timms.efficientnet_init_weights(self)

    def forward_features(self, x: Tensor) -> Tensor:
        """Feature maps before the head, (B, num_features, H, W)."""
        return self.features(self.stem(x))

    def get_classifier(self) -> nn.Module:
        """The layer that gives the scores."""
        return self.head.fc

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.forward_features(x))


def _multiple_of_8(channels: int) -> int:
    """The nearest multiple of 8 that takes away no more than a tenth."""
    nearest = max(8, (channels + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * channels else nearest + 8


_IMAGENET = {"input_size": (3, 224, 224), "num_classes": 1000}
register("rexnet_lite", rexnet_lite, _IMAGENET)
register("rexnet_plain", rexnet_plain, _IMAGENET)
register("channel_search_net", channel_search_net, {"input_size": (3, 32, 32), "num_classes": 100})
