"""The ResNets of biprop's tables, with ReLU (MPT-1/32) or sign activations (MPT-1/1).

They are dense; `networks.biprop.apply` makes tickets of them. They are made of timm's ResNet and have its names;
what differs is the stem for CIFAR's images, the order of the stem's layers, and that no layer has a bias.
"""

from typing import Any, Literal

from timm.models.resnet import BasicBlock, Bottleneck
from timm.models.resnet import ResNet as TimmResNet
from torch import Tensor, nn

from networks.biprop.models import Activation, activation_layer
from networks.errors import InputError, check_choice
from networks.registry import register

Stem = Literal["cifar", "imagenet"]

IMAGENET_CHANNELS = (64, 128, 256, 512)


class SumBlock(BasicBlock):
    """The release's "v2" block: the second batch normalisation stands behind the addition, act(bn(conv + shortcut))."""

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.act1(self.bn1(self.conv1(x)))
        return self.act2(self.bn2(self.conv2(y) + shortcut))


class ResNet(TimmResNet):
    """ResNet for CIFAR's images (a 3x3 stem without pooling) or ImageNet's (7x7 of stride 2, then pooling).

    Blocks are act(bn(conv)), then act(bn(conv) + shortcut); the shortcut is the identity, or a 1x1 convolution and
    batch normalisation where size or channels change. With sign activations all block outputs are signs, the stem pools
    before its activation (the same outputs, other gradients), and the linear layer reads averages of signs.

    Args:
        layers: number of blocks of each stage.
        block: timm's BasicBlock or Bottleneck.
        channels: of each stage; the first one is the stem's too.
        base_width: inner channels of a bottleneck, in 64ths of its stage's channels.
        stem: "cifar" or "imagenet".
        activation: "relu" (MPT-1/32) or "sign" (MPT-1/1).
        version: 2 puts batch normalisation behind the additions, and behind the stem's pooling (released; no row of
            the paper's tables is known to use it). Basic blocks only.
        at_zero: sign of zero, 0 as released, or 1.
        num_classes: outputs.
        in_chans: channels of the images.

    Shape:
        x: (N, in_chans, H, W); returns logits (N, num_classes).

    Raises:
        InputError: an unknown activation or stem, or a version that does not exist.
    """

    def __init__(
        self,
        layers: tuple[int, ...],
        block: type[nn.Module] = BasicBlock,
        channels: tuple[int, ...] = IMAGENET_CHANNELS,
        base_width: int = 64,
        stem: Stem = "imagenet",
        activation: Activation = "relu",
        version: Literal[1, 2] = 1,
        at_zero: int = 0,
        num_classes: int = 1000,
        in_chans: int = 3,
    ) -> None:
        check_choice("stem", stem, Stem)
        if version not in (1, 2) or (version == 2 and block is not BasicBlock):
            raise InputError(f"version is 1, or 2 in a network of basic blocks; got {version}")
        activation_layer(activation, at_zero)  # refuses what it does not know
        small = stem == "cifar"
        # timm's deep stem is the one whose channels can be chosen; its three convolutions are replaced below
        deep: dict[str, Any] = {"stem_type": "deep", "stem_width": channels[0] // 2} if small else {}
        super().__init__(
            SumBlock if version == 2 else block,  # type: ignore[arg-type]
            layers,
            num_classes,
            in_chans,
            channels=channels,
            base_width=base_width,
            **deep,
            act_layer=lambda inplace=True: activation_layer(activation, at_zero),
            zero_init_last=False,
        )
        if small:
            conv = nn.Conv2d(in_chans, channels[0], 3, padding=1, bias=False)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            self.conv1, self.maxpool = conv, nn.Identity()  # type: ignore[assignment]
        self.fc = nn.Linear(self.num_features, num_classes, bias=False)
        if version == 2:
            self.stem = ("conv1", "maxpool", "bn1", "act1")
        elif activation == "sign":
            self.stem = ("conv1", "bn1", "maxpool", "act1")
        else:
            self.stem = ("conv1", "bn1", "act1", "maxpool")
        if activation == "sign":
            for name, layer in self.named_modules():
                if isinstance(layer, nn.Conv2d) and name != "conv1":
                    layer.activation_bits = 1  # type: ignore[assignment]

    def forward_features(self, x: Tensor) -> Tensor:
        stages = [str(info["module"]) for info in self.feature_info[1:]]
        for name in (*self.stem, *stages):
            x = getattr(self, name)(x)
        return x


_CIFAR = {"input_size": (3, 32, 32), "num_classes": 10, "first_conv": "conv1", "classifier": "fc"}
_IMAGENET = {"input_size": (3, 224, 224), "num_classes": 1000, "first_conv": "conv1", "classifier": "fc"}

register("cifar_resnet18", ResNet, _CIFAR, layers=(2, 2, 2, 2), stem="cifar")
for _depth, _blocks in ((20, 3), (32, 5), (44, 7), (56, 9), (110, 18)):
    _layers = (_blocks,) * 3
    register(f"cifar_resnet{_depth}", ResNet, _CIFAR, layers=_layers, channels=(16, 32, 64), stem="cifar")
register("imagenet_resnet18", ResNet, _IMAGENET, layers=(2, 2, 2, 2))
register("imagenet_resnet34", ResNet, _IMAGENET, layers=(3, 4, 6, 3))
register("imagenet_resnet50", ResNet, _IMAGENET, layers=(3, 4, 6, 3), block=Bottleneck)
register("imagenet_resnet101", ResNet, _IMAGENET, layers=(3, 4, 23, 3), block=Bottleneck)
register("wrn50", ResNet, _IMAGENET, layers=(3, 4, 6, 3), block=Bottleneck, base_width=128)
register("wrn34", ResNet, _IMAGENET, layers=(3, 4, 6, 3), channels=(64, 192, 384, 768))
