"""The ResNets of "High-Capacity Expert Binary Networks" (EBN), with the constellations of its tables.

Names read as the paper's: N0N1N2N3-E-G0:G1:G2:G3 are blocks per stage, expansion and groups per stage.
`expert_binary_deep_*` has the 1x1 unit behind every block, which the paper's names do not tell.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from networks.errors import InputError, check_choice
from networks.expert_binary.layers import ExpertBinaryConv2d, GateGrad, Routing, Step
from networks.registry import register

Stem = Literal["dabnn", "resnet", "cifar"]
Shortcut = Literal["plain", "plain_prelu", "linear", "relu", "prelu"]
Activation = Literal["prelu", "relu"]

STEM_CHANNELS = 64  # whatever the expansion is


def conv_norm_act(c: int, o: int, kernel_size: int, stride: int, act: nn.Module | None) -> list[nn.Module]:
    """A real convolution, batch normalisation and activation; Kaiming-normal over fan-out, as released."""
    conv = nn.Conv2d(c, o, kernel_size, stride, kernel_size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return [conv, nn.BatchNorm2d(o), *([act] if act else [])]


class DaBNNStem(nn.Module):
    """The stem of daBNN (Zhang et al., ACM MM 2019): stride 4 for 0.04 instead of 0.12 G multiply-adds."""

    def __init__(self, in_chans: int, channels: int = STEM_CHANNELS) -> None:
        super().__init__()
        half, quarter = channels // 2, channels // 4
        self.first = nn.Sequential(*conv_norm_act(in_chans, half, 3, 2, nn.ReLU()))
        self.branch = nn.Sequential(
            *conv_norm_act(half, quarter, 1, 1, nn.ReLU()), *conv_norm_act(quarter, half, 3, 2, nn.ReLU())
        )
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.last = nn.Sequential(*conv_norm_act(channels, channels, 1, 1, nn.ReLU()))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(torch.cat([self.branch(x), self.pool(x)], 1))


def stem_layers(stem: Stem, in_chans: int) -> nn.Module:
    """Real stem, (B, in_chans, H, W) -> (B, 64, H / 4, W / 4), or (B, 64, H, W) for "cifar"."""
    check_choice("stem", stem, Stem)
    if stem == "dabnn":
        return DaBNNStem(in_chans)
    if stem == "resnet":
        return nn.Sequential(*conv_norm_act(in_chans, STEM_CHANNELS, 7, 2, nn.ReLU()), nn.MaxPool2d(3, 2, 1))
    return nn.Sequential(*conv_norm_act(in_chans, STEM_CHANNELS, 3, 1, nn.ReLU()))


def shortcut_layers(c: int, o: int, stride: int, variant: Shortcut, reduction: int) -> nn.Sequential:
    """Real shortcut of a block that changes size or channels (EBN Table 9), an average pooling first.

    Args:
        variant: "plain" conv1x1, BN, as Bi-Real Net and the release ("None" in the table; "plain_prelu" adds the PReLU
            of the paper's Fig. 4a); else two conv1x1 with C / reduction channels between them: "linear", "relu" or
            "prelu" (final). Each convolution has batch normalisation; where the paper has it in the first two of these
            is not stated.
        reduction: r.
    """
    check_choice("shortcut", variant, Shortcut)
    pool = [nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)] if stride > 1 else []
    if variant in ("plain", "plain_prelu"):
        return nn.Sequential(*pool, *conv_norm_act(c, o, 1, 1, nn.PReLU(o) if variant == "plain_prelu" else None))
    if reduction < 1 or c % reduction:
        raise InputError(f"shortcut_reduction={reduction} does not divide a shortcut's {c} channels")

    def act(channels: int) -> nn.Module | None:
        return {"linear": None, "relu": nn.ReLU(), "prelu": nn.PReLU(channels)}[variant]

    narrow = c // reduction
    return nn.Sequential(*pool, *conv_norm_act(c, narrow, 1, 1, act(narrow)), *conv_norm_act(narrow, o, 1, 1, act(o)))


class Unit(nn.Module):
    """BN -> sign -> binary convolution * alpha (* rescale) -> PReLU: what every skip of a block goes around."""

    def __init__(self, conv: ExpertBinaryConv2d, activation: Activation, norm_eps: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(conv.in_channels, eps=norm_eps)
        self.conv = conv
        self.act = nn.PReLU(conv.out_channels) if activation == "prelu" else nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(self.norm(x)))


class Block(nn.Module):
    """Two 3x3 units, and in a deep block a 1x1 unit without groups, each with its own skip.

    The shortcut takes the raw input of the block, before any normalisation.
    """

    def __init__(self, units: Sequence[Unit], shortcut: nn.Module | None) -> None:
        super().__init__()
        self.units = nn.ModuleList(units)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        skip = x if self.shortcut is None else self.shortcut(x)
        for unit in self.units:
            x = skip = unit(x) + skip
        return x


class ExpertBinaryResNet(nn.Module):
    """ResNet of expert binary convolutions (EBN Section 4); stem, shortcuts and classifier are real.

    Args:
        blocks: N0N1N2N3, of each stage.
        expansion: E, one number, or one for each stage; stage i has int(64 * 2^i * E) channels, the stem always 64.
        groups: G of each stage's 3x3 convolutions, the first one included.
        num_experts: N of every binary convolution.
        deep: whether each block ends with the 1x1 unit that lets groups exchange information.
        stem: "dabnn", "resnet" (7x7) or "cifar" (3x3 of stride 1); None is "dabnn" in a deep network, else "resnet".
            Which table has which is not stated.
        shortcut: see shortcut_layers; None is "plain" where all expansions are 1, else "prelu".
        shortcut_reduction: r of the shortcut's decomposition.
        rescale, temperature, gate_grad, gate_bias, routing: as in ExpertBinaryConv2d.
        activation: "prelu", one slope per channel, or "relu".
        norm_eps: of the batch normalisation before binary convolutions; the authors' packed checkpoint has 1e-4.
        step: see ExpertBinaryConv2d.set_step.
        num_classes: outputs; 0 gives pooled features.
        in_chans: channels of the images.

    Shape:
        x: (B, in_chans, H, W); returns logits (B, num_classes).

    Raises:
        InputError: groups that do not divide channels, a reduction that does not, an option that is not in its list.
    """

    def __init__(
        self,
        blocks: Sequence[int] = (1, 2, 6, 2),
        expansion: float | Sequence[float] = 2,
        groups: Sequence[int] = (4, 8, 8, 16),
        num_experts: int = 4,
        deep: bool = True,
        stem: Stem | None = None,
        shortcut: Shortcut | None = None,
        shortcut_reduction: int = 4,
        rescale: bool = False,
        temperature: float = 1.0,
        gate_grad: GateGrad = "softmax",
        gate_bias: bool = True,
        routing: Routing = "winner",
        activation: Activation = "prelu",
        norm_eps: float = 1e-5,
        step: Step = "binary",
        num_classes: int = 1000,
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        expansions = tuple(expansion) if isinstance(expansion, Sequence) else (expansion,) * 4
        if not len(blocks) == len(expansions) == len(groups) == 4:
            raise InputError(f"{blocks=}, {expansion=} and {groups=} have a number for each of four stages")
        check_choice("activation", activation, Activation)
        channels = [int(64 * 2**i * e) for i, e in enumerate(expansions)]
        if min(channels) < 1 or min(blocks) < 1:
            raise InputError(f"{blocks=} and {expansion=} leave a stage without blocks or channels")
        stem = stem or ("dabnn" if deep else "resnet")
        shortcut = shortcut or ("plain" if set(expansions) == {1} else "prelu")
        options: dict[str, Any] = dict(
            num_experts=num_experts,
            temperature=temperature,
            gate_grad=gate_grad,
            gate_bias=gate_bias,
            routing=routing,
            rescale=rescale,
        )

        def unit(c: int, o: int, kernel_size: int, stride: int, groups: int) -> Unit:
            conv = ExpertBinaryConv2d(c, o, kernel_size, stride, kernel_size // 2, groups=groups, **options)
            conv.set_step(step)
            return Unit(conv, activation, norm_eps)

        def block(c: int, o: int, stride: int, groups: int) -> Block:
            units = [unit(c, o, 3, stride, groups), unit(o, o, 3, 1, groups)]
            if deep:
                units.append(unit(o, o, 1, 1, 1))
            changes = stride > 1 or c != o
            return Block(units, shortcut_layers(c, o, stride, shortcut, shortcut_reduction) if changes else None)

        self.stem = stem_layers(stem, in_chans)
        c, reduction = STEM_CHANNELS, 1 if stem == "cifar" else 4
        self.feature_info = []  # as timm has it
        for i, (count, o, g) in enumerate(zip(blocks, channels, groups, strict=True)):
            stride = 1 if i == 0 else 2
            layers = [block(c if j == 0 else o, o, stride if j == 0 else 1, g) for j in range(count)]
            self.add_module(f"layer{i + 1}", nn.Sequential(*layers))
            c, reduction = o, reduction * stride
            self.feature_info.append({"num_chs": o, "reduction": reduction, "module": f"layer{i + 1}"})
        self.num_features = c
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.reset_classifier(num_classes)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        """Output of the last stage, (B, C, H, W)."""
        x = self.stem(x)
        for info in self.feature_info:
            x = getattr(self, str(info["module"]))(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.global_pool(self.forward_features(x)).flatten(1))


_CFG = {"input_size": (3, 224, 224), "num_classes": 1000, "classifier": "fc"}

# Constellations of the paper: blocks, expansion, groups.
BASIC = [  # Tables 1-3 and the two lower curves of Fig. 2(a): no 1x1 unit
    *((blocks, 1, (1, 1, 1, 1)) for blocks in ((2, 2, 2, 2), (1, 1, 3, 3), (1, 1, 4, 2), (1, 1, 2, 4))),
    ((2, 2, 2, 2), 2, (4, 4, 4, 4)),
    ((2, 2, 2, 2), 4, (16, 16, 16, 16)),
    # Of Fig. 2(a) only the number of blocks is known: starting from 2222 they are added to stage 3, then 4, in turn.
    *((blocks, 1, (1, 1, 1, 1)) for blocks in ((2, 2, 4, 4), (2, 2, 5, 4), (2, 2, 5, 5), (2, 2, 7, 7), (2, 2, 8, 7))),
    *(
        (blocks, 2, (4, 4, 4, 4))
        for blocks in ((2, 2, 1, 2), (2, 2, 3, 2), (2, 2, 3, 3), (2, 2, 4, 4), (2, 2, 5, 5), (2, 2, 7, 7))
    ),
]
DEEP = [  # Tables 4-6 and Fig. 2: with the 1x1 unit
    *(
        ((1, n, m, 2), 2, groups)
        for n, m in ((1, 4), (1, 6), (1, 8), (2, 4))
        for groups in ((4, 4, 8, 16), (4, 8, 8, 16), (4, 4, 16, 16), (4, 8, 16, 32))
    ),
    ((1, 2, 6, 2), 2, (4, 8, 8, 16)),  # the final network
    *(((1, 2, n, 2), 2, (4, 4, 16, 32)) for n in (4, 6, 8)),
    *(((1, 2, n, 2), 2, (4, 4, 8, 16)) for n in (6, 8)),
    ((1, 2, 8, 4), 2, (4, 4, 8, 16)),
]


def constellation(blocks: Sequence[int], expansion: float, groups: Sequence[int], deep: bool) -> str:
    """timm name of a network of the paper, such as "expert_binary_deep_1262_2_4_8_8_16"."""
    numbers = "".join(map(str, blocks)), expansion, *(groups if set(groups) != {1} else ())
    return "_".join(("expert_binary_deep" if deep else "expert_binary", *map(str, numbers)))


register("expert_binary_resnet", ExpertBinaryResNet, _CFG)
for _deep, _networks in ((False, BASIC), (True, DEEP)):
    for _blocks, _expansion, _groups in _networks:
        register(
            constellation(_blocks, _expansion, _groups, _deep),
            ExpertBinaryResNet,
            _CFG,
            blocks=_blocks,
            expansion=_expansion,
            groups=_groups,
            deep=_deep,
        )
