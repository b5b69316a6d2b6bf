"""ReXNet and its relatives: widths, counts to the unit, the block, and timm's network as the reference."""

import math
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction

import pytest
import timm
import torch
from timm.models.rexnet import RexNet
from torch import nn

from networks import InputError
from networks.complexity import count
from networks.rexnet import from_release
from networks.rexnet.bottleneck import InvertedBottleneck

CHANNELS = {  # stem, c_1 ... c_16, penultimate (spec 3.1)
    0.9: (32, "16 26 36 46 56 67 77 87 97 107 117 127 138 148 158 168", 1152),
    1.0: (32, "16 27 38 50 61 72 84 95 106 117 128 140 151 162 174 185", 1280),
    1.1: (35, "18 30 42 55 67 79 92 104 117 129 141 154 166 178 191 203", 1408),
    1.3: (42, "21 35 50 65 79 94 109 123 138 152 167 182 196 211 226 240", 1664),
    1.5: (48, "24 41 58 75 92 108 125 142 159 176 193 210 226 243 260 277", 1920),
    2.0: (64, "32 54 77 100 122 144 167 190 212 234 257 280 302 324 347 370", 2560),
    2.2: (70, "35 60 85 109 134 159 184 208 233 258 283 307 332 357 382 406", 2816),
    3.0: (96, "48 82 116 149 183 217 250 284 318 352 386 419 453 487 520 554", 3840),
}
COSTS = {  # parameters, and multiply-adds in units of 10,000 (spec 4.1)
    ("rexnet", 0.9): (4_091_257, 34769),
    ("rexnet", 1.0): (4_796_873, 39837),
    ("rexnet", 1.1): (5_642_328, 48055),
    ("rexnet", 1.3): (7_557_091, 66223),
    ("rexnet", 1.5): (9_728_593, 87583),
    ("rexnet", 2.0): (16_366_620, 152885),
    ("rexnet", 2.2): (19_485_308, 184251),
    ("rexnet_lite", 1.0): (4_740_056, 40681),
    ("rexnet_lite", 1.5): (8_332_296, 83635),
    ("rexnet_lite", 2.0): (12_966_200, 149825),
}
SHORTCUTS = [3, 5, 7, 8, 9, 10, 11, 13, 14, 15, 16]


def meta(name, **arguments):
    with torch.device("meta"):
        return timm.create_model(name, **arguments)


def blocks(network):
    return [block for block in network.features if isinstance(block, InvertedBottleneck)]


def randomised(network, seed=0):
    """Weights, and statistics of batch normalisation, that make every layer matter."""
    torch.manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
            tensor.uniform_(0.5, 1.5)
        elif tensor.is_floating_point() and tensor.ndim < 2:
            tensor.normal_(std=0.3)
    return network.eval()


@pytest.mark.parametrize("width", CHANNELS)
def test_widths_and_shortcuts(width):
    stem, channels, penultimate = CHANNELS[width]
    net = meta("rexnet", width=width)
    assert net.stem.conv.out_channels == stem
    assert [block.out_channels for block in blocks(net)] == [int(c) for c in channels.split()]
    assert net.num_features == penultimate
    assert [i for i, block in enumerate(blocks(net), 1) if block.use_shortcut] == SHORTCUTS
    assert [i for i, block in enumerate(blocks(net), 1) if block.conv_dw.conv.stride == (2, 2)] == [2, 4, 6, 12]


@pytest.mark.parametrize(
    ("width", "ties"), [("1", [3, 11]), ("0.9", [5]), ("1.5", [13]), ("2", [2, 6, 10, 14]), ("3", [7, 15])]
)
def test_halves_are_rounded_to_even(width, ties):
    """Exactly where the spec says, rounding half up would give another network."""
    w = Fraction(width)
    exact = [w * (16 if w >= 1 else 16 / w) + w * Fraction(180, 16) * i for i in range(16)]
    up = [int((Decimal(c.numerator) / c.denominator).quantize(Decimal(1), ROUND_HALF_UP)) for c in exact]
    ours = [block.out_channels for block in blocks(meta("rexnet", width=float(w)))]
    assert [i for i, (a, b) in enumerate(zip(ours, up, strict=True), 1) if a != b] == ties


@pytest.mark.parametrize(("name", "width"), COSTS)
def test_costs(name, width):
    report = count(meta(name, width=width), (3, 224, 224))
    assert (report.params, round(report.flops / 1e4)) == COSTS[name, width]


def test_squeezed_widths():
    squeezed = [block.se.fc1.out_channels if block.se else 0 for block in blocks(meta("rexnet"))]
    assert squeezed == [0, 0, 0, 19, 25, 30, 36, 42, 47, 53, 58, 64, 70, 75, 81, 87]


def test_lite_channels():
    channels = [block.out_channels for block in blocks(meta("rexnet_lite"))]
    assert channels == [16, 32, 40, 48, 64, 72, 80, 96, 104, 112, 128, 136, 144, 160, 168, 184]
    fixed = meta("rexnet_lite", width=2.0, fix_head_stem=True)
    assert (fixed.stem.conv.out_channels, fixed.num_features) == (32, 1280)
    assert not any(isinstance(module, nn.SiLU) for module in meta("rexnet_lite").modules())
    assert [module.p for module in meta("rexnet_lite").modules() if isinstance(module, nn.Dropout)][-1:] == [0.2]


@pytest.mark.parametrize(("name", "options"), [("rexnet_lite", {}), ("channel_search_net", {"channels": (8, 8)})])
def test_without_classes_nothing_classifies(name, options):
    assert isinstance(timm.create_model(name, num_classes=0, **options).get_classifier(), nn.Identity)
    classifier = timm.create_model(name, num_classes=7, **options).get_classifier()
    assert getattr(classifier, "out_features", None) == 7 or classifier.out_channels == 7


@pytest.mark.parametrize(
    ("layout", "params", "macs", "depthwise"),
    [("table", 3_399_240, 564_669_040, 13), ("figure", 4_959_490, 428_385_952, 13)],
)
def test_plain(layout, params, macs, depthwise):
    net = meta("rexnet_plain", layout=layout)
    report = count(net, (3, 224, 224))
    assert (report.params, report.flops) == (params, macs)
    assert sum(isinstance(m, nn.Conv2d) and m.groups > 1 for m in net.modules()) == depthwise
    for block in list(net.features)[:13]:
        assert [type(layer.bn.act) for layer in block] == [nn.ReLU6, nn.SiLU]
    assert net.head.drop.p == 0.2


@pytest.mark.parametrize("width", [0.9, 1.0, 1.3, 2.2])
def test_is_timms_function_with_its_gradients(width):
    """Same state_dict, outputs and gradients as timm's network, whose shortcut is a concatenation."""
    theirs = RexNet(width_mult=width, num_classes=7, drop_rate=0.0).double()
    randomised(theirs)
    ours = timm.create_model("rexnet", width=width, num_classes=7, drop_rate=0.0, drop_path_rate=0.0).double()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert len(ours.state_dict()) == 413
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(ours.eval()(x), theirs(x), rtol=1e-9, atol=1e-9)
    for net in (ours, theirs):
        net.train()(x).square().sum().backward()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-7, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize(("stride", "inputs", "outputs"), [(1, 5, 8), (1, 5, 5), (2, 5, 8), (1, 8, 5)])
def test_the_shortcut_reaches_the_first_channels_alone(stride, inputs, outputs):
    block = InvertedBottleneck(inputs, outputs, stride, exp_ratio=6)
    nn.init.zeros_(block.conv_pwl.conv.weight)
    x = torch.randn(2, inputs, 6, 6)
    y = block(x)
    expected = torch.zeros_like(y)
    if stride == 1 and inputs <= outputs:
        expected[:, :inputs] = x
    assert torch.equal(y, expected)


def test_relu6_stands_behind_the_gates():
    """With all of the depthwise output at 12 and gates of a half ReLU6 changes nothing, before them it would halve."""
    block = InvertedBottleneck(2, 2, 2, exp_ratio=1, se_ratio=0.5).eval()
    nn.init.zeros_(block.conv_dw.conv.weight)
    nn.init.constant_(block.conv_dw.bn.bias, 12)
    for layer in (block.se.fc2.weight, block.se.fc2.bias):
        nn.init.zeros_(layer)
    seen = []
    block.conv_pwl.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    block(torch.randn(1, 2, 4, 4))
    assert torch.equal(seen[0], torch.full((1, 2, 2, 2), 6.0))


@pytest.mark.parametrize("width", [0.9, 1.0])
def test_pyramid_taps(width):
    net = timm.create_model("rexnet", width=width, features_only=True, out_indices=(1, 2, 3, 4)).eval()
    channels = [int(c) for c in CHANNELS[width][1].split()]
    assert net.feature_info.channels() == [channels[i - 1] for i in (3, 5, 11, 16)]
    with torch.no_grad():
        assert [64 // y.shape[-1] for y in net(torch.randn(1, 3, 64, 64))] == [4, 8, 16, 32]


@pytest.mark.parametrize("activation", ["relu6", "leaky_relu", "elu", "softplus", "silu"])
def test_nonlinearity_rows_cost_the_same(activation):
    net = meta("rexnet", activation=activation)
    assert count(net, (3, 224, 224)).params == 4_796_873
    kinds = [type(conv.bn.act).__name__.lower() for conv in (net.stem, net.features[3].conv_exp, net.features[16])]
    assert kinds == [activation.replace("_", "")] * 3
    assert all(isinstance(block.act_dw, nn.ReLU6) for block in blocks(net))


def test_the_stem_may_have_its_own_activation():
    """The paper's text says ReLU6; released is SiLU."""
    net = meta("rexnet", stem_act="relu6")
    kinds = [type(conv.bn.act) for conv in (net.stem, net.features[3].conv_exp, net.features[16])]
    assert kinds == [nn.ReLU6, nn.SiLU, nn.SiLU]
    assert net.state_dict().keys() == meta("rexnet").state_dict().keys()


def test_rates_that_are_none():
    with pytest.raises(InputError, match=r"drop_path_rate=1.0 must lie in \[0, 1\)"):
        meta("rexnet", drop_path_rate=1.0)


def test_drop_path_by_width_and_on_shortcuts_alone():
    def rate(width, block):
        path = blocks(meta("rexnet", width=width))[block - 1].drop_path
        return path.drop_prob if path else 0.0

    assert [rate(width, 16) for width in (0.9, 1.0, 1.3, 2.0, 3.0)] == [0, 0, 0.1, 0.2, 0.2]
    assert math.isclose(rate(2.0, 7), 0.2 * 6 / 15)
    net = timm.create_model("rexnet", drop_path_rate=0.9, drop_rate=0.0, num_classes=3).train()
    x = torch.randn(1, 16, 8, 8)
    for block in blocks(net):
        block.eval()
        block.drop_path = block.drop_path and block.drop_path.train()
        x = torch.randn(4, block.in_channels, 8, 8)
        with torch.no_grad():
            differ = any(not torch.equal(block(x), block(x)) for _ in range(20))
        assert differ == block.use_shortcut


def released(network):
    """The tensors of our network as the authors' file has them: their names, and a convolution for the classifier."""
    state = {}
    for i, (name, tensor) in enumerate(network.state_dict().items()):
        classifier = name.startswith("head.fc")
        their = f"output.1.{name.rpartition('.')[2]}" if classifier else f"features.{i}"
        state[their] = tensor[:, :, None, None] if name == "head.fc.weight" else tensor
    return state


def test_released_weights():
    source = randomised(timm.create_model("rexnet", width=0.9, num_classes=5))
    network = timm.create_model("rexnet", width=0.9, num_classes=5).eval()
    network.load_state_dict(from_release(released(source), network))
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(network(x), source(x))
    with pytest.raises(InputError, match="another width"):
        from_release(released(source), meta("rexnet", num_classes=5))
    with pytest.raises(InputError, match="another network"):
        from_release(released(source), meta("rexnet_lite"))


def test_weights_that_nobody_released():
    with pytest.raises(InputError, match=r"ReXNet 0\.9 .*1\.0, 1\.3"):
        timm.create_model("rexnet", width=0.9, pretrained=True)
    with pytest.raises(InputError, match="activation is one of"):
        timm.create_model("rexnet", activation="swoosh")
    with pytest.raises(InputError, match="width=0"):
        timm.create_model("rexnet", width=0)
