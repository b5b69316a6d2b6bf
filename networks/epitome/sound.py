"""SoundNet-8, WSNet's form of it for 5 s clips, and that with condensed filters."""

import math

from torch import Tensor, nn
from torch.nn import functional as F

from networks.epitome.base import Positions
from networks.epitome.surgery import WindowRule, apply
from networks.errors import InputError
from networks.registry import register

FILTERS = (16, 32, 64, 128, 256, 512, 1024, 1401)  # the last: 1000 objects and 401 scenes
KERNELS = (64, 32, 16, 8, 4, 4, 4, 8)
# Per layer S and C. Ours, on what is remembered of the paper: its own could not be confirmed.
PRESETS = {
    "ws25": ((8, 4, 2, 1, 1, 1, 1, 1), (1, 1, 2, 2, 4, 4, 4, 4)),
    "ws45": ((8, 4, 2, 1, 1, 1, 1, 1), (1, 1, 2, 2, 4, 4, 8, 8)),
}


def initialise(network: nn.Module) -> None:
    """SoundNet's: weights N(0, 0.01), biases 0; of batch normalisation N(1, 0.02) and 0."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv1d):
            nn.init.normal_(layer.weight, 0, 0.01)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        elif isinstance(layer, nn.BatchNorm1d):
            nn.init.normal_(layer.weight, 1, 0.02)


class SoundNet8(nn.Module):
    """SoundNet-8 (Aytar, Vondrick & Torralba, NIPS 2016, arXiv 1610.09001) for waveforms of 22,050 Hz in +-256.

    Convolution of stride 2, batch normalisation, ReLU, and max pooling in places.

    Args:
        num_classes: 1401 is the network as released, whose last layer gives objects and scenes for every frame of some
            seconds; any other number its fine-tuning: a last convolution of kernel 4, stride 1, averaged over frames.
        in_chans: 1.

    Shape:
        x: (B, 1, T); returns (B, 1401, frames), or logits (B, num_classes).

    Raises:
        InputError: sound that is too short for the last layer.
    """

    def __init__(self, num_classes: int = 1401, in_chans: int = 1) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_chans
        for kernel, filters, pool in zip(KERNELS[:7], FILTERS, (8, 8, 1, 1, 4, 1, 1), strict=False):
            layers += [nn.Conv1d(channels, filters, kernel, 2, kernel // 2), nn.BatchNorm1d(filters), nn.ReLU()]
            if pool > 1:
                layers.append(nn.MaxPool1d(pool))
            channels = filters
        self.features = nn.Sequential(*layers)
        self.released = num_classes == FILTERS[-1]
        kernel, stride = (8, 2) if self.released else (4, 1)
        self.conv8 = nn.Conv1d(channels, num_classes, kernel, stride)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        samples, x = x.shape[-1], self.features(x)
        if x.shape[-1] < self.conv8.kernel_size[0]:
            raise InputError(
                f"SoundNet-8 has {x.shape[-1]} frames of {samples} samples, and its last layer needs "
                f"{self.conv8.kernel_size[0]}: give longer sound" + (", or num_classes" if self.released else "")
            )
        x = self.conv8(x)
        return x if self.released else x.mean(-1)


def pad_same(x: Tensor, kernel_size: int) -> Tensor:
    """Pad time with zeros so that windows of stride 2 give ceil(T / 2) outputs; an odd zero goes to the right."""
    samples = x.shape[-1]
    total = max((math.ceil(samples / 2) - 1) * 2 + kernel_size - samples, 0)
    return F.pad(x, (total // 2, total - total // 2))


class Layer(nn.Module):
    """Convolution of stride 2, batch normalisation, ReLU and max pooling of stride 2, with size-preserving padding."""

    def __init__(self, channels: int, filters: int, kernel_size: int, pool: int | None) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, filters, kernel_size, 2)
        self.norm = nn.BatchNorm1d(filters)
        self.kernel_size, self.pool = kernel_size, pool

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(pad_same(x, self.kernel_size)))
        if self.pool is not None:  # before ReLU, with the same result: half the work
            x = F.max_pool1d(x, self.pool, 2, (self.pool - 2) // 2, ceil_mode=True)
        return F.relu(x)


class SoundNet8ESC50(nn.Module):
    """SoundNet-8 for 5 s clips, which WSNet compresses: its kernels and filters, and more poolings.

    Poolings of stride 2 stand behind all layers but the last, with kernels of 8 behind the first four and of 4 behind
    the others; then come the mean over time and a linear layer. Pooling and padding are remembered, and the head is
    ours: WSNet's text could not be read.

    Args:
        num_classes: outputs; 0 gives pooled features.
        in_chans: 1 for mono.

    Shape:
        x: (B, in_chans, T), T >= 1, waveforms in +-256; returns logits (B, num_classes).
    """

    def __init__(self, num_classes: int = 50, in_chans: int = 1) -> None:
        super().__init__()
        pools = (8, 8, 8, 8, 4, 4, 4, None)
        channels = (in_chans, *FILTERS)
        self.layers = nn.ModuleDict(
            {
                f"conv{i + 1}": Layer(channels[i], filters, kernel, pool)
                for i, (filters, kernel, pool) in enumerate(zip(FILTERS, KERNELS, pools, strict=True))
            }
        )
        self.head = nn.Linear(FILTERS[-1], num_classes) if num_classes else nn.Identity()
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers.values():
            x = layer(x)
        return self.head(x.mean(-1))


def wsnet_esc50(
    strides: tuple[int, ...] = PRESETS["ws25"][0],
    repeats: tuple[int, ...] = PRESETS["ws25"][1],
    shrink: float = 1.0,
    positions: Positions = "param",
    quantize_bits: int | None = None,
    num_classes: int = 50,
    in_chans: int = 1,
) -> nn.Module:
    """SoundNet8ESC50 with condensed filters: WSNet, or with learned offsets NES (its Tables 1 and 5).

    `wsnet_esc50_ws25` and `wsnet_esc50_ws45` have our presets for WSNet's 25x and 45x: 542,424 and 296,472 instead of
    14,345,216 weights.

    Args:
        strides: S of the eight convolutions.
        repeats: C of the eight convolutions.
        shrink: rho, by which condensed filters are shorter still (NES Table 5; our rule).
        positions: "param" learns where filters begin, "none" leaves them where WSNet has them; see EpitomeConv1d.
        quantize_bits: compute with condensed filters on 2^bits levels: 8 for WSNet's quantised rows.
        num_classes, in_chans: as in SoundNet8ESC50.

    Raises:
        InputError: not one stride and one number of repeats for each convolution, or such as cannot be.
    """
    network = SoundNet8ESC50(num_classes, in_chans)
    rule = WindowRule(r"conv\d\.conv$", tuple(strides), tuple(repeats), shrink)
    apply(network, [rule], positions=positions, quantize_bits=quantize_bits)
    return network


_CFG = {"input_size": (1, 110_250), "num_classes": 50}
register("soundnet8", SoundNet8, {"input_size": (1, 441_000), "num_classes": FILTERS[-1]})
register("soundnet8_esc50", SoundNet8ESC50, _CFG)
register("wsnet_esc50", wsnet_esc50, _CFG)
for _name, (_strides, _repeats) in PRESETS.items():
    register(f"wsnet_esc50_{_name}", wsnet_esc50, _CFG, strides=_strides, repeats=_repeats)
