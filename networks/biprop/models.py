"""Conv-2/4/6/8 and VGG-Small: chains of layers, as biprop's authors released them.

They are dense; `networks.biprop.apply` makes tickets of them. One definition serves MPT-1/32 (activation "relu") and
MPT-1/1 ("sign"). Layers have the names of the release, so that its checkpoints fit.
"""

from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from networks.binarize import Sign
from networks.errors import InputError, check_choice
from networks.registry import register

Activation = Literal["relu", "sign"]
Variant = Literal["lit", "full", "bn"]


def activation_layer(activation: Activation, at_zero: int = 0) -> nn.Module:
    """ReLU for MPT-1/32, sign for MPT-1/1."""
    check_choice("activation", activation, Activation)
    return nn.ReLU() if activation == "relu" else Sign(at_zero)


class _Chain(nn.Module):
    """`convs`, then `linear` on their flattened output; pairs of 3x3 convolutions end in 2x2 max pooling. No biases."""

    def __init__(self, convs: list[nn.Module], linear: list[nn.Module], num_classes: int) -> None:
        super().__init__()
        self.convs, self.linear, self.num_classes = nn.Sequential(*convs), nn.Sequential(*linear), num_classes
        layers = convs + linear
        for before, layer in pairwise(layers):
            if isinstance(before, Sign):
                layer.activation_bits = 1  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.convs(x).flatten(1))


class ConvNet(_Chain):
    """`depth` 3x3 convolutions in pairs and three linear layers (biprop's Section 3.1, after the lottery tickets').

    activation="relu": no batch normalisation anywhere.
    activation="sign": batch normalisation before every sign, pooling before the pair's second one.

    Args:
        depth: 2, 4, 6 or 8 convolutions.
        activation: "relu" (MPT-1/32) or "sign" (MPT-1/1).
        width: multiplies 64, 128, 256, 512 channels and 256 hidden features, each rounded down.
        at_zero: sign of zero, 0 as released, or 1.
        num_classes: outputs.
        in_chans: channels of the images.
        img_size: side of the images in pixels, or (height, width).

    Shape:
        x: (N, in_chans, H, W); returns logits (N, num_classes).

    Raises:
        InputError: images too small for the poolings, an unknown activation, or a width that leaves no channel.
    """

    def __init__(
        self,
        depth: int,
        activation: Activation = "relu",
        width: float = 1.0,
        at_zero: int = 0,
        num_classes: int = 10,
        in_chans: int = 3,
        img_size: int | tuple[int, int] = 32,
    ) -> None:
        stages = depth // 2
        channels = _channels([64 * 2**stage for stage in range(stages)], width)
        hidden = int(256 * width)
        flat = channels[-1] * _pixels(img_size, stages, f"conv{depth}")

        def activate(norm: type[nn.Module], size: int) -> list[nn.Module]:
            act = activation_layer(activation, at_zero)
            return [act] if activation == "relu" else [norm(size), act]

        convs: list[nn.Module] = []
        for cin, cout in zip([in_chans, *channels], channels, strict=False):
            convs += [_conv(cin, cout), *activate(nn.BatchNorm2d, cout), _conv(cout, cout)]
            pool, rest = nn.MaxPool2d(2), activate(nn.BatchNorm2d, cout)
            convs += [*rest, pool] if activation == "relu" else [pool, *rest]
        linear: list[nn.Module] = []
        for fin in (flat, hidden):
            linear += [nn.Linear(fin, hidden, bias=False), *activate(nn.BatchNorm1d, hidden)]
        super().__init__(convs, [*linear, nn.Linear(hidden, num_classes, bias=False)], num_classes)


class VGGSmall(_Chain):
    """VGG-Small: six 3x3 convolutions in pairs and a linear layer (biprop's Tables 1, 2, 8 and 9).

    variant="lit", the class that the release's 1/32 configuration names: batch normalisation behind each pooling only;
    with ReLU it has just two of them, one between the first two convolutions and one at the end.
    variant="full" (released for ReLU) and "bn" (for sign), the same structure: also between the convolutions of a pair,
    with an activation behind each. The 1.25x of the tables is "bn" at width 1.25.
    The last activation is ReLU in all of them: the linear layer reads real numbers.

    Args:
        activation: "relu" (MPT-1/32) or "sign" (MPT-1/1).
        variant: "lit", "full" or "bn".
        width: multiplies 128, 256, 512 channels, each rounded down.
        at_zero: sign of zero, 0 as released, or 1.
        num_classes: outputs.
        in_chans: channels of the images.
        img_size: side of the images in pixels, or (height, width).

    Shape:
        x: (N, in_chans, H, W); returns logits (N, num_classes).

    Raises:
        InputError: images too small for the poolings, an unknown activation or variant, a width that leaves no channel.
    """

    def __init__(
        self,
        activation: Activation = "relu",
        variant: Variant = "lit",
        width: float = 1.0,
        at_zero: int = 0,
        num_classes: int = 10,
        in_chans: int = 3,
        img_size: int | tuple[int, int] = 32,
    ) -> None:
        check_choice("variant", variant, Variant)
        channels = _channels([128, 256, 512], width)
        flat = channels[-1] * _pixels(img_size, 3, "vgg_small")
        few = variant == "lit" and activation == "relu"  # activations
        convs: list[nn.Module] = []
        for stage, (cin, cout) in enumerate(zip([in_chans, *channels], channels, strict=False)):
            convs.append(_conv(cin, cout))
            if variant != "lit":
                convs.append(nn.BatchNorm2d(cout))
            if stage == 0 or not few:
                convs.append(activation_layer(activation, at_zero))
            convs += [_conv(cout, cout), nn.MaxPool2d(2), nn.BatchNorm2d(cout)]
            if stage == 2:
                convs.append(nn.ReLU())
            elif not few:
                convs.append(activation_layer(activation, at_zero))
        super().__init__(convs, [nn.Linear(flat, num_classes, bias=False)], num_classes)


def _conv(cin: int, cout: int) -> nn.Conv2d:
    return nn.Conv2d(cin, cout, 3, padding=1, bias=False)


def _channels(base: list[int], width: float) -> list[int]:
    if not 1 <= base[0] * width < float("inf"):
        raise InputError(f"width={width} is impossible: it multiplies {base[0]} channels and is at least {1 / base[0]}")
    return [int(channels * width) for channels in base]


def _pixels(img_size: int | tuple[int, int], poolings: int, name: str) -> int:
    """Pixels that are left of an image."""
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    if min(height, width) < 2**poolings:
        raise InputError(
            f"{name} halves its input {poolings} times: it needs images of at least "
            f"{2**poolings}x{2**poolings}, got {height}x{width}; take a shallower one or larger images"
        )
    return (height >> poolings) * (width >> poolings)


# fixed_input_size: timm's word for a network whose layers depend on the image size, given as img_size.
_CFG = {"input_size": (3, 32, 32), "num_classes": 10, "fixed_input_size": True}
for _depth in (2, 4, 6, 8):
    register(f"conv{_depth}", ConvNet, _CFG, depth=_depth)
register("vgg_small", VGGSmall, _CFG)
