"""Conv-2/4/6/8 and VGG-Small against the spec's sections 6.1 and 6.2, to the unit."""

import pytest
import timm
import torch
from torch import nn

import networks
from networks import InputError, complexity
from networks.binarize import Sign

WEIGHTS = {"conv2": 4300992, "conv4": 2425024, "conv6": 2261184, "conv8": 5275840}
MACS = {"conv2": 43780608, "conv4": 98306560, "conv6": 153881088, "conv8": 209979904}
BN_CHANNELS = {"conv2": 640, "conv4": 896, "conv6": 1408, "conv8": 2432}
KEPT = {
    0.8: (3440797, 1940023, 1808952, 4220678),
    0.6: (2580597, 1455017, 1356714, 3165508),
    0.5: (2150496, 1212512, 1130592, 2637920),
    0.4: (1720399, 970013, 904478, 2110342),
    0.2: (860200, 485008, 452241, 1055173),
    0.1: (430101, 242505, 226122, 527588),
}
WIDTHS = {
    "conv4": {0.5: 607328, 1.5: 5453088, 2: 9691520},
    "conv6": {0.5: 566368, 1.5: 5084448, 2: 9036160},
    "conv8": {0.5: 1320032, 1.5: 11867424, 2: 21094784},
}


def on_meta(name, **arguments):
    with torch.device("meta"):
        return timm.create_model(name, **arguments)


def apply_on_meta(net, keep_fraction):
    with torch.device("meta"):  # draws nothing
        return networks.biprop.apply(net, keep_fraction)


@pytest.mark.parametrize("name", WEIGHTS)
def test_dense_counts(name):
    report = complexity.count(on_meta(name), (3, 32, 32))
    assert (report.params, report.flops, report.bops) == (WEIGHTS[name], MACS[name], 0)
    signed = complexity.count(on_meta(name, activation="sign"), (3, 32, 32))
    assert signed.params == WEIGHTS[name] + 2 * BN_CHANNELS[name]
    assert signed.flops == MACS[name]  # dense weights are real, so no multiply-add is binary


@pytest.mark.parametrize(("name", "width", "weights"), [(n, w, c) for n in WIDTHS for w, c in WIDTHS[n].items()])
def test_widths(name, width, weights):
    assert sum(p.numel() for p in on_meta(name, width=width).parameters()) == weights


@pytest.mark.parametrize("activation", ["relu", "sign"])
@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("k", KEPT)
def test_kept_weights(index, k, activation):
    name = list(WEIGHTS)[index]
    net = on_meta(name, activation=activation)
    apply_on_meta(net, k)
    report = complexity.count(net, (3, 32, 32))
    assert report.params == report.binary_params == KEPT[k][index]
    assert report.dense_params == WEIGHTS[name]
    first = 1728 * 32 * 32  # sees the image; everything behind a sign is binary
    binary = MACS[name] - first if activation == "sign" else 0
    assert (report.bops, report.flops) == (binary, MACS[name] - binary)


@pytest.mark.parametrize("name", WEIGHTS)
def test_structure(name):
    depth = int(name[-1])

    def kinds(net, *types):
        return [sum(isinstance(m, kind) for m in net.modules()) for kind in types]

    bn = nn.modules.batchnorm._BatchNorm
    assert kinds(on_meta(name), nn.Conv2d, nn.Linear, nn.ReLU, Sign, bn) == [depth, 3, depth + 2, 0, 0]
    signed = on_meta(name, activation="sign")
    assert kinds(signed, nn.Conv2d, nn.Linear, nn.ReLU, Sign, bn) == [depth, 3, 0, depth + 2, depth + 2]
    order = [type(m).__name__ for m in signed.convs[:7]]
    assert order == ["Conv2d", "BatchNorm2d", "Sign", "Conv2d", "MaxPool2d", "BatchNorm2d", "Sign"]


@pytest.mark.parametrize("activation", ["relu", "sign"])
def test_runs_on_digits_and_at_batch_one(activation):
    net = timm.create_model("conv6", activation=activation, in_chans=1, img_size=8).eval()
    assert net(torch.randn(1, 1, 8, 8)).shape == (1, 10)


def values_seen(net, x):
    """The values that reach each convolution and linear layer, by name."""
    seen = {}
    for name, layer in net.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_pre_hook(lambda m, x, name=name: seen.update({name: set(x[0].unique().tolist())}))
    with torch.no_grad():
        net(x)
    return seen


@pytest.mark.parametrize("ticket", [False, True])
@pytest.mark.parametrize(
    ("name", "arguments", "real"),
    [
        ("conv2", {}, {"convs.0"}),
        ("vgg_small", {"variant": "lit"}, {"convs.0", "linear.0"}),
        ("vgg_small", {"variant": "bn"}, {"convs.0", "linear.0"}),
    ],
)
def test_layers_behind_a_sign_see_only_signs_and_say_so(name, arguments, real, ticket):
    torch.manual_seed(0)
    net = timm.create_model(name, activation="sign", width=0.25, img_size=8, **arguments)
    if ticket:
        networks.biprop.apply(net, 0.4)
    seen = values_seen(net, torch.randn(4, 3, 8, 8))
    binary = {name for name, layer in net.named_modules() if getattr(layer, "activation_bits", 32) == 1}
    assert seen.keys() - real == binary
    assert all(seen[name] <= {-1, 0, 1} for name in binary)
    assert not any(seen[name] <= {-1, 0, 1} for name in real)


def test_at_zero_makes_activations_strictly_binary():
    """Behind a convolution of signs with +-alpha, sums of zero are common (spec 4)."""
    for at_zero, expected in ((0, {-1, 0, 1}), (1, {-1, 1})):
        torch.manual_seed(0)
        net = timm.create_model("vgg_small", activation="sign", at_zero=at_zero, width=0.25, img_size=8)
        networks.biprop.apply(net, 0.4)
        seen = values_seen(net, torch.randn(16, 3, 8, 8))
        assert seen["convs.8"] == expected  # its input is the sign of sums of +-alpha
    net = timm.create_model("conv2", activation="sign", at_zero=1)
    assert {layer.at_zero for layer in net.modules() if isinstance(layer, Sign)} == {1}


# VGG-Small. C convolution, B batch normalisation, R ReLU, S sign, P pooling, F linear; spec 6.2.
V32_LIT, V32_FULL = ("relu", "lit", 1), ("relu", "full", 1)
V11_LIT, V11_BN, V11_WIDE = ("sign", "lit", 1), ("sign", "bn", 1), ("sign", "bn", 1.25)
LAYERS = {
    V32_LIT: "CRCPB CCPB CCPBR F",
    V32_FULL: "CBRCPBR CBRCPBR CBRCPBR F",
    V11_LIT: "CSCPBS CSCPBS CSCPBR F",
    V11_BN: "CBSCPBS CBSCPBS CBSCPBR F",
    V11_WIDE: "CBSCPBS CBSCPBS CBSCPBR F",
}
VGG_SIZES = (3456, 147456, 294912, 589824, 1179648, 2359296, 81920)
VGG_KEPT = (173, 7373, 14746, 29492, 58983, 117965, 4096)  # at k = 0.05
VGG_POSITIONS = (1024, 1024, 256, 256, 64, 64, 1)


def vgg_small(variant, **arguments):
    activation, kind, width = variant
    return on_meta("vgg_small", activation=activation, variant=kind, width=width, **arguments)


@pytest.mark.parametrize("variant", LAYERS)
def test_layers_of_vgg_small_in_their_order(variant):
    net = vgg_small(variant)
    letters = {nn.Conv2d: "C", nn.BatchNorm2d: "B", nn.ReLU: "R", Sign: "S", nn.MaxPool2d: "P", nn.Linear: "F"}
    assert "".join(letters[type(layer)] for layer in [*net.convs, *net.linear]) == LAYERS[variant].replace(" ", "")
    convs = [layer for layer in net.convs if isinstance(layer, nn.Conv2d)]
    c = [int(channels * variant[2]) for channels in (128, 256, 512)]
    geometry = [(m.in_channels, m.out_channels, m.kernel_size, m.stride, m.padding, m.groups, m.bias) for m in convs]
    pairs = [(3, c[0]), (c[0], c[0]), (c[0], c[1]), (c[1], c[1]), (c[1], c[2]), (c[2], c[2])]
    assert geometry == [(*pair, (3, 3), (1, 1), (1, 1), 1, None) for pair in pairs]
    assert {(m.kernel_size, m.stride, m.padding) for m in net.convs if isinstance(m, nn.MaxPool2d)} == {(2, 2, 0)}
    assert (net.linear[0].in_features, net.linear[0].bias) == (c[2] * 16, None)


@pytest.mark.parametrize(
    ("variant", "activations", "norms"),
    [(V32_LIT, (2, 0), 3), (V32_FULL, (6, 0), 6), (V11_LIT, (1, 5), 3), (V11_BN, (1, 5), 6), (V11_WIDE, (1, 5), 6)],
)
def test_activations_and_norms_of_vgg_small(variant, activations, norms):
    modules = list(vgg_small(variant).modules())
    assert tuple(sum(isinstance(m, kind) for m in modules) for kind in (nn.ReLU, Sign)) == activations
    assert sum(isinstance(m, nn.BatchNorm2d) for m in modules) == norms


@pytest.mark.parametrize(
    ("variant", "n", "channels", "macs", "kept"),
    [
        (V32_LIT, 4656512, 896, 607600640, {0.05: 232828, 0.25: 1164128}),
        (V32_FULL, 4656512, 1792, 607600640, {0.05: 232828}),
        (V11_LIT, 4656512, 896, 607600640, {0.25: 1164128}),
        (V11_BN, 4656512, 1792, 607600640, {0.05: 232828, 0.25: 1164128}),
        (V11_WIDE, 7249120, 2240, 948244480, {0.25: 1812280}),
    ],
)
def test_counts_of_vgg_small(variant, n, channels, macs, kept):
    dense = complexity.count(vgg_small(variant), (3, 32, 32))
    assert (dense.params, dense.flops, dense.bops) == (n + 2 * channels, macs, 0)
    for k, count in kept.items():
        net = vgg_small(variant)
        assert len(apply_on_meta(net, k)) == 7
        report = complexity.count(net, (3, 32, 32))
        assert (report.dense_params, report.params, report.binary_params) == (n, count, count)
        assert report.flops + report.bops == macs
        assert report.size_bits == n + count + 7 * 32 + channels * 64


@pytest.mark.parametrize("variant", [V32_LIT, V11_LIT, V11_BN])
def test_layers_of_a_vgg_small_ticket_to_the_unit(variant):
    net = vgg_small(variant)
    names = apply_on_meta(net, 0.05)
    rows = {row.name: row for row in complexity.count(net, (3, 32, 32)).layers}
    layers = [rows[name] for name in names]
    assert tuple(row.dense_params for row in layers) == VGG_SIZES
    assert tuple(row.params for row in layers) == VGG_KEPT
    # The first layer reads the image and the last one ReLU: only what stands between can be binary.
    binary = [variant[0] == "sign" and 0 < i < 6 for i in range(7)]
    for row, n, kept, positions, one_bit in zip(layers, VGG_SIZES, VGG_KEPT, VGG_POSITIONS, binary, strict=True):
        ops = (0, n * positions) if one_bit else (n * positions, 0)
        kept_ops = (0, kept * positions) if one_bit else (kept * positions, 0)
        assert (row.flops, row.bops) == ops
        assert (row.kept_flops, row.kept_bops) == kept_ops


def test_vgg_small_takes_other_images_and_classes():
    net = timm.create_model("vgg_small", width=0.1, in_chans=1, img_size=(8, 16), num_classes=3).eval()
    assert [layer.out_channels for layer in net.convs if isinstance(layer, nn.Conv2d)] == [12, 12, 25, 25, 51, 51]
    assert net(torch.randn(1, 1, 8, 16)).shape == (1, 3)


def test_bad_arguments_get_one_line():
    with pytest.raises(InputError, match=r"conv8 halves its input 4 times: .* at least 16x16, got 8x8"):
        timm.create_model("conv8", img_size=8)
    with pytest.raises(InputError, match="activation is one of relu, sign; got 'tanh'"):
        timm.create_model("conv2", activation="tanh")
    with pytest.raises(InputError, match=r"width=0.01 is impossible"):
        timm.create_model("conv2", width=0.01)
    with pytest.raises(InputError, match="no pretrained weights"):
        timm.create_model("conv2", pretrained=True)
    with pytest.raises(InputError, match=r"vgg_small halves its input 3 times: .* at least 8x8, got 4x32"):
        timm.create_model("vgg_small", img_size=(4, 32))
    with pytest.raises(InputError, match="activation is one of relu, sign; got 'tanh'"):
        timm.create_model("vgg_small", activation="tanh", variant="bn")
    with pytest.raises(InputError, match="variant is one of lit, full, bn; got 'wide'"):
        timm.create_model("vgg_small", variant="wide")
    with pytest.raises(InputError, match=r"width=0.001 is impossible: it multiplies 128 channels"):
        timm.create_model("vgg_small", width=0.001)
    with pytest.raises(InputError, match="at_zero is 0 or 1, got 2"):
        timm.create_model("vgg_small", activation="sign", at_zero=2)
