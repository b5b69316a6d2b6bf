"""The inverted bottleneck with a partial shortcut, and networks of it with any widths."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from timm.layers import ClassifierHead, ConvNormAct
from timm.models import rexnet as timms
from torch import Tensor, nn

from networks.errors import check_choice

Activation = Literal["silu", "relu6", "leaky_relu", "elu", "softplus", "relu", "hard_swish"]


def activation_layer(name: Activation) -> str | type[nn.Module]:
    """What timm's layers take for an activation: a name, or a class where it has no name."""
    check_choice("activation", name, Activation)
    return nn.Softplus if name == "softplus" else name


class InvertedBottleneck(timms.LinearBottleneck):
    """timm's block of ReXNet, whose shortcut is added in place to the first channels, and whose ReLU6 is in place.

    1x1 convolution that expands, depthwise 3x3, squeeze and excitation, ReLU6, 1x1 convolution that projects. The
    shortcut is there where the stride is 1 and channels do not decrease; the other channels pass unchanged.
    """

    folds = 1  # networks that stand side by side in its channels, see Folded

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H', W')."""
        shortcut = x
        if self.conv_exp is not None:
            x = self.conv_exp(x)
        x = self.conv_dw(x)
        if self.se is not None:
            x = self.se(x)
        x = self.conv_pwl(self.act_dw(x))
        if self.use_shortcut:
            if self.drop_path is not None:
                x = self.drop_path(x)
            if self.folds == 1:
                x[:, : self.in_channels] += shortcut
            else:
                x.unflatten(1, (self.folds, -1))[:, :, : self.in_channels] += shortcut.unflatten(1, (self.folds, -1))
        return x


class BottleneckNet(nn.Module):
    """Stem of 3x3, inverted bottlenecks of any widths, a 1x1 convolution and a head; initialised as timm's ReXNet.

    Args:
        channels: of the blocks' outputs.
        strides, expansions: of the blocks.
        stem, stem_stride: channels and stride of the first convolution.
        penultimate: channels of the 1x1 convolution.
        num_classes, in_chans: of head and stem.
        activation: after the blocks' expansions; after depthwise convolutions stands ReLU6.
        outer_activation: of stem and penultimate layer; None as `activation`.
        head: from (B, penultimate, H, W) to (B, num_classes); None is average pooling and a linear layer.

    Shape:
        x: (B, in_chans, H, W); returns logits (B, num_classes).
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        expansions: Sequence[int],
        stem: int,
        stem_stride: int,
        penultimate: int,
        num_classes: int,
        in_chans: int,
        activation: Activation,
        outer_activation: Activation | None = None,
        head: nn.Module | None = None,
    ) -> None:
        super().__init__()
        inner, outer = activation_layer(activation), activation_layer(outer_activation or activation)
        self.stem = ConvNormAct(in_chans, stem, 3, stem_stride, act_layer=outer)
        blocks = [
            InvertedBottleneck(before, after, stride, exp_ratio=expansion, act_layer=inner)  # type: ignore[arg-type]
            for (before, after), stride, expansion in zip(pairwise([stem, *channels]), strides, expansions, strict=True)
        ]
        self.features = nn.Sequential(*blocks, ConvNormAct(channels[-1], penultimate, act_layer=outer))
        self.num_classes, self.num_features = num_classes, penultimate
        self.head = head or ClassifierHead(penultimate, num_classes)
        timms.efficientnet_init_weights(self)

    def forward_features(self, x: Tensor) -> Tensor:
        """Feature maps of the penultimate layer, (B, penultimate, H, W)."""
        return self.features(self.stem(x))

    def get_classifier(self) -> nn.Module:
        """The layer that gives the scores; the identity where there are no classes."""
        if not self.num_classes:
            return nn.Identity()
        return [layer for layer in self.head.modules() if isinstance(layer, nn.Linear | nn.Conv2d)][-1]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.forward_features(x))
