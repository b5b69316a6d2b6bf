"""The ResNets against the spec's sections 6.3 and 6.4, timm's own networks and a literal forward."""

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

import networks
from networks import InputError, complexity

USUAL, SMALL, WIDE = (64, 128, 256, 512), (16, 32, 64), (64, 192, 384, 768)
# blocks of each stage, channels, inner channels of a bottleneck over its stage's channels (0: basic blocks)
NETWORKS = {
    "cifar_resnet18": ((2, 2, 2, 2), USUAL, 0),
    "cifar_resnet20": ((3, 3, 3), SMALL, 0),
    "cifar_resnet32": ((5, 5, 5), SMALL, 0),
    "cifar_resnet44": ((7, 7, 7), SMALL, 0),
    "cifar_resnet56": ((9, 9, 9), SMALL, 0),
    "cifar_resnet110": ((18, 18, 18), SMALL, 0),
    "imagenet_resnet18": ((2, 2, 2, 2), USUAL, 0),
    "imagenet_resnet34": ((3, 4, 6, 3), USUAL, 0),
    "imagenet_resnet50": ((3, 4, 6, 3), USUAL, 1),
    "imagenet_resnet101": ((3, 4, 23, 3), USUAL, 1),
    "wrn50": ((3, 4, 6, 3), USUAL, 2),
    "wrn34": ((3, 4, 6, 3), WIDE, 0),
}
# n, masked layers, channels of batch normalisation, multiply-adds; the spec gives MACs of three
SPEC = {
    "cifar_resnet18": (11_164_352, 21, 4800, 555_422_720),
    "cifar_resnet20": (270_896, 22, 784, None),
    "cifar_resnet56": (851_504, 58, 2128, None),
    "imagenet_resnet18": (11_678_912, 21, 4800, None),
    "imagenet_resnet34": (21_779_648, 37, 8512, None),
    "imagenet_resnet50": (25_502_912, 54, 26_560, None),
    "imagenet_resnet101": (44_442_816, 105, 52_672, None),
    "wrn50": (68_814_016, 54, 34_112, 11_398e6),
    "wrn34": (48_270_528, 37, 12_544, 7_180e6),
}
KEPT = {
    "cifar_resnet18": {0.2: 2_232_880},
    "imagenet_resnet18": {0.2: 2_335_792},
    "imagenet_resnet34": {0.2: 4_355_946},
    "imagenet_resnet50": {0.3: 7_650_902},
    "imagenet_resnet101": {0.3: 13_332_914},
    "wrn50": {0.2: 13_762_830, 0.3: 20_644_231},
    "wrn34": {0.4: 19_308_229},
}


def input_size(name):
    return (3, 32, 32) if name.startswith("cifar") else (3, 224, 224)


def ticket_on_meta(name, keep_fraction, **arguments):
    with torch.device("meta"):
        net = timm.create_model(name, **arguments)
        return net, networks.biprop.apply(net, keep_fraction)


def literal_layers(name):
    """Weights and output positions of each convolution and of the linear layer, and channels normalised."""
    blocks, channels, bottleneck = NETWORKS[name]
    cifar = name.startswith("cifar")
    side = 32 if cifar else 56
    layers = [(3 * channels[0] * (9 if cifar else 49), 32**2 if cifar else 112**2)]
    normalised, cin = channels[0], channels[0]
    for stage, (count, width) in enumerate(zip(blocks, channels, strict=True)):
        cout = 4 * width if bottleneck else width
        for block in range(count):
            before, side = side**2, side // 2 if stage and not block else side
            here = side**2
            if bottleneck:
                inner = bottleneck * width
                layers += [(cin * inner, before), (inner * inner * 9, here), (inner * cout, here)]
                normalised += 2 * inner + cout
            else:
                layers += [(cin * cout * 9, here), (cout * cout * 9, here)]
                normalised += 2 * cout
            if before != here or cin != cout:
                layers.append((cin * cout, here))
                normalised += cout
            cin = cout
    return [*layers, (cin * (10 if cifar else 1000), 1)], normalised


def test_every_registered_resnet_is_here():
    assert set(timm.list_models(module="resnets")) == NETWORKS.keys()


@pytest.mark.parametrize(
    ("name", "activation"), [*((name, "sign") for name in NETWORKS), ("cifar_resnet18", "relu"), ("wrn50", "relu")]
)
def test_counts_to_the_unit(name, activation):
    layers, normalised = literal_layers(name)
    n, macs = sum(size for size, _ in layers), sum(size * positions for size, positions in layers)
    if name in SPEC:
        *exact, spec_macs = SPEC[name]
        assert [n, len(layers), normalised] == exact
        assert spec_macs in (None, macs) or abs(spec_macs - macs) <= 0.5e6  # printed to a million
    net, names = ticket_on_meta(name, 0.3, activation=activation)
    assert [net.get_submodule(layer).weight.numel() for layer in names] == [size for size, _ in layers]
    report = complexity.count(net, input_size(name))
    kept = [size - int((1 - 0.3) * size) for size, _ in layers]
    real = macs if activation == "relu" else sum(size * positions for size, positions in (layers[0], layers[-1]))
    assert (report.dense_params, report.params, report.binary_params) == (n, sum(kept), sum(kept))
    assert (report.flops, report.bops) == (real, macs - real)
    assert report.kept_flops + report.kept_bops == sum(k * p for k, (_, p) in zip(kept, layers, strict=True))
    assert report.size_bits == n + sum(kept) + 32 * len(layers) + 64 * normalised
    for k, count in KEPT.get(name, {}).items():
        networks.biprop.set_keep_fraction(net, k)
        assert sum(net.get_submodule(layer).kept for layer in names) == count


def with_statistics(net):
    """Batch normalisation as after training: no mean, variance, scale or shift is trivial."""
    with torch.no_grad():
        for norm in net.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.normal_(0, 0.3)
                norm.running_var.uniform_(0.5, 2)
                if norm.affine:
                    norm.weight.uniform_(0.5, 1.5)
                    norm.bias.normal_(0, 0.3)
    return net.eval()


@pytest.mark.parametrize(
    ("name", "timms"),
    [("imagenet_resnet18", "resnet18"), ("imagenet_resnet50", "resnet50"), ("wrn50", "wide_resnet50_2")],
)
def test_relu_forms_are_timms_networks_without_the_last_bias(name, timms):
    torch.manual_seed(0)
    ours, theirs = with_statistics(timm.create_model(name)), timm.create_model(timms).eval()
    theirs.load_state_dict({**ours.state_dict(), "fc.bias": torch.zeros(1000)})  # strict
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        features = ours.forward_features(x)
        assert torch.equal(features, theirs.forward_features(x))
        logits = ours.forward_head(features)
        assert torch.allclose(logits, theirs.forward_head(features), rtol=1e-5, atol=1e-6)
        assert logits.std() > 0.01


def literal_forward(net, x, cifar, act, version):
    """A network of basic blocks, spelled out."""

    def conv(name, x, stride=1):
        weight = net.get_submodule(name).weight
        return F.conv2d(x, weight, None, stride, padding=weight.shape[-1] // 2)

    def bn(name, x):
        norm = net.get_submodule(name)
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=1e-5)

    x = conv("conv1", x, stride=1 if cifar else 2)
    if cifar:
        x = act(bn("bn1", x))
    elif version == 2:
        x = act(bn("bn1", F.max_pool2d(x, 3, 2, 1)))
    elif act is torch.sign:
        x = act(F.max_pool2d(bn("bn1", x), 3, 2, 1))
    else:
        x = F.max_pool2d(act(bn("bn1", x)), 3, 2, 1)
    names = dict(net.named_modules())
    for block in [name for name in names if name.startswith("layer") and name.count(".") == 1]:
        stride = 2 if block.endswith(".0") and not block.startswith("layer1") else 1
        shortcut = x
        if f"{block}.downsample" in names:
            shortcut = bn(f"{block}.downsample.1", conv(f"{block}.downsample.0", x, stride))
        y = conv(f"{block}.conv2", act(bn(f"{block}.bn1", conv(f"{block}.conv1", x, stride))))
        x = act(bn(f"{block}.bn2", y) + shortcut) if version == 1 else act(bn(f"{block}.bn2", y + shortcut))
    return x.mean((2, 3)) @ net.fc.weight.T


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("activation", ["relu", "sign"])
@pytest.mark.parametrize("name", ["cifar_resnet18", "cifar_resnet20", "imagenet_resnet18"])
def test_outputs_equal_the_literal_forward(name, activation, version):
    torch.manual_seed(0)
    net = with_statistics(timm.create_model(name, activation=activation, version=version)).double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)  # in float64, where rounding moves no sign
    with torch.no_grad():
        expected = literal_forward(net, x, "cifar" in name, {"relu": F.relu, "sign": torch.sign}[activation], version)
        assert expected.std() > 0.01
        assert torch.allclose(net(x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("arguments", "order"),
    [
        ({"activation": "relu"}, ["conv1", "bn1", "act1", "maxpool"]),
        ({"activation": "sign"}, ["conv1", "bn1", "maxpool", "act1"]),
        ({"activation": "relu", "version": 2}, ["conv1", "maxpool", "bn1", "act1"]),
        ({"activation": "sign", "version": 2}, ["conv1", "maxpool", "bn1", "act1"]),
    ],
)
def test_order_of_the_stem(arguments, order):
    with torch.device("meta"):
        net, called = timm.create_model("imagenet_resnet18", **arguments), []
    for name in order:
        net.get_submodule(name).register_forward_hook(lambda *_, name=name: called.append(name))
    assert net.forward_features(torch.empty(1, 3, 64, 64, device="meta")).shape == (1, 512, 2, 2)
    assert called == order


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("cifar_resnet18", {}),
        ("cifar_resnet20", {"version": 2}),
        ("imagenet_resnet18", {}),
        ("imagenet_resnet50", {}),
        ("imagenet_resnet18", {"version": 2}),
    ],
)
def test_inner_layers_see_signs_and_the_last_one_their_averages(name, arguments):
    torch.manual_seed(0)
    net = timm.create_model(name, activation="sign", **arguments)
    names, seen = networks.biprop.apply(net, 0.3), {}
    for layer in names:
        net.get_submodule(layer).register_forward_pre_hook(lambda m, x, layer=layer: seen.update({layer: x[0]}))
    with torch.no_grad():
        net(torch.randn(2, 3, 64, 64))
    binary = [layer for layer in names if net.get_submodule(layer).activation_bits == 1]
    assert binary == names[1:-1]
    assert seen.keys() == set(names)
    assert any("downsample" in layer for layer in binary)
    assert all(set(seen[layer].unique().tolist()) <= {-1, 0, 1} for layer in binary)
    averages, positions = seen["fc"], (64 // 2 ** (5 if "imagenet" in name else len(NETWORKS[name][0]) - 1)) ** 2
    assert torch.equal(averages * positions, (averages * positions).round())  # powers of two: exact
    assert not set(averages.unique().tolist()) <= {-1, 0, 1}


@pytest.mark.parametrize(("at_zero", "value"), [(0, 0), (1, 1)])
@pytest.mark.parametrize("name", ["cifar_resnet20", "imagenet_resnet18"])
def test_sign_of_zero(name, at_zero, value):
    net = timm.create_model(name, activation="sign", at_zero=at_zero).eval()
    with torch.no_grad():
        net.conv1.weight.zero_()
        net.layer1[0].conv1.weight.zero_()
    seen = {}
    for layer in ("layer1.0.conv1", "layer1.0.conv2"):
        net.get_submodule(layer).register_forward_pre_hook(lambda m, x, layer=layer: seen.update({layer: x[0]}))
    net(torch.randn(1, 3, 32, 32))
    assert [set(x.unique().tolist()) for x in seen.values()] == [{value}] * 2


def test_bad_arguments_get_one_line():
    with pytest.raises(InputError, match="version is 1, or 2 in a network of basic blocks; got 3"):
        timm.create_model("cifar_resnet18", version=3)
    with pytest.raises(InputError, match="version is 1, or 2 in a network of basic blocks; got 2"):
        timm.create_model("imagenet_resnet50", version=2)
    with pytest.raises(InputError, match="activation is one of relu, sign; got 'tanh'"):
        timm.create_model("wrn34", activation="tanh")
    with pytest.raises(InputError, match="at_zero is 0 or 1, got 2"):
        timm.create_model("cifar_resnet20", activation="sign", at_zero=2)
    with pytest.raises(InputError, match="wrn50 has no pretrained weights"):
        timm.create_model("wrn50", pretrained=True)
