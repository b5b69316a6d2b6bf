"""Conv-2/4/6/8, the small networks of the lottery-ticket studies (biprop's Section 3.1).

They are dense; `networks.biprop.apply` makes tickets of them.
"""

from typing import Any, Literal

from timm.models import register_model
from torch import Tensor, nn

from networks.binarize import Sign
from networks.errors import InputError

Activation = Literal["relu", "sign"]

# fixed_input_size: timm's word for a network whose layers depend on the image size, given as img_size.
default_cfgs = {
    f"conv{depth}": {"input_size": (3, 32, 32), "num_classes": 10, "fixed_input_size": True} for depth in (2, 4, 6, 8)
}


class ConvNet(nn.Module):
    """`depth` 3x3 convolutions in pairs, each pair ended by 2x2 max pooling, and three linear layers; no biases.

    activation="relu" (MPT-1/32): no batch normalisation anywhere.
    activation="sign" (MPT-1/1): batch normalisation before every sign, pooling before the pair's second one.

    Args:
        depth: 2, 4, 6 or 8 convolutions.
        activation: "relu" or "sign".
        width: multiplies 64, 128, 256, 512 channels and 256 hidden features, each rounded down.
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
        num_classes: int = 10,
        in_chans: int = 3,
        img_size: int | tuple[int, int] = 32,
    ) -> None:
        super().__init__()
        if activation not in ("relu", "sign"):
            raise InputError(f"activation is 'relu' (MPT-1/32) or 'sign' (MPT-1/1); got {activation!r}")
        if not 1 <= 64 * width < float("inf"):
            raise InputError(f"width={width} is impossible: it multiplies 64 channels and is at least {1 / 64}")
        stages = depth // 2
        height, width_px = (img_size, img_size) if isinstance(img_size, int) else img_size
        if min(height, width_px) < 2**stages:
            raise InputError(
                f"conv{depth} halves its input {stages} times: it needs images of at least "
                f"{2**stages}x{2**stages}, got {height}x{width_px}; take a shallower one or larger images"
            )
        self.num_classes = num_classes
        channels = [int(64 * 2**stage * width) for stage in range(stages)]
        hidden = self.num_features = int(256 * width)
        flat = channels[-1] * (height >> stages) * (width_px >> stages)

        layers: list[nn.Module] = []
        for cin, cout in zip([in_chans, *channels], channels, strict=False):
            layers += [nn.Conv2d(cin, cout, 3, padding=1, bias=False), *_activate(activation, nn.BatchNorm2d, cout)]
            pool = nn.MaxPool2d(2)
            last = nn.Conv2d(cout, cout, 3, padding=1, bias=False)
            if activation == "relu":
                layers += [last, nn.ReLU(), pool]
            else:
                layers += [last, pool, nn.BatchNorm2d(cout), Sign()]
        layers.append(nn.Flatten())  # (N, C, H, W) -> (N, C*H*W)
        for fin in (flat, hidden):
            layers += [nn.Linear(fin, hidden, bias=False), *_activate(activation, nn.BatchNorm1d, hidden)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(hidden, num_classes, bias=False)

        if activation == "sign":
            weighted = [m for m in self.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
            for layer in weighted[1:]:  # the first sees the image
                layer.activation_bits = 1  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


def _activate(activation: Activation, norm: type[nn.Module], channels: int) -> list[nn.Module]:
    return [nn.ReLU()] if activation == "relu" else [norm(channels), Sign()]


# timm hands every entry point arguments that concern pretrained weights, of which these networks have none.
def _create(depth: int, pretrained: bool, kwargs: dict[str, Any]) -> ConvNet:
    if pretrained:
        raise InputError(f"conv{depth} has no pretrained weights")
    for name in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        kwargs.pop(name, None)
    return ConvNet(depth, **kwargs)


@register_model
def conv2(pretrained: bool = False, **kwargs: Any) -> ConvNet:
    """Conv-2: 4 300 992 weights at 3x32x32."""
    return _create(2, pretrained, kwargs)


@register_model
def conv4(pretrained: bool = False, **kwargs: Any) -> ConvNet:
    """Conv-4: 2 425 024 weights at 3x32x32."""
    return _create(4, pretrained, kwargs)


@register_model
def conv6(pretrained: bool = False, **kwargs: Any) -> ConvNet:
    """Conv-6: 2 261 184 weights at 3x32x32."""
    return _create(6, pretrained, kwargs)


@register_model
def conv8(pretrained: bool = False, **kwargs: Any) -> ConvNet:
    """Conv-8: 5 275 840 weights at 3x32x32."""
    return _create(8, pretrained, kwargs)
