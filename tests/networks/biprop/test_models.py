"""Conv-2/4/6/8 against the spec's section 6.1, to the unit."""

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
    networks.biprop.apply(net, keep_fraction=k)
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


def test_sign_layers_see_only_signs():
    net = timm.create_model("conv2", activation="sign", img_size=8)
    seen = {}
    for name, layer in net.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_pre_hook(lambda m, x, name=name: seen.update({name: x[0].unique().tolist()}))
    net(torch.randn(4, 3, 8, 8))
    binary = [name for name, layer in net.named_modules() if getattr(layer, "activation_bits", 32) == 1]
    assert list(seen)[1:] == binary
    assert all(set(seen[name]) <= {-1.0, 0.0, 1.0} for name in binary)


def test_bad_arguments_get_one_line():
    with pytest.raises(InputError, match=r"conv8 halves its input 4 times: .* at least 16x16, got 8x8"):
        timm.create_model("conv8", img_size=8)
    with pytest.raises(InputError, match=r"activation is 'relu' .* got 'tanh'"):
        timm.create_model("conv2", activation="tanh")
    with pytest.raises(InputError, match=r"width=0.01 is impossible"):
        timm.create_model("conv2", width=0.01)
    with pytest.raises(InputError, match="no pretrained weights"):
        timm.create_model("conv2", pretrained=True)
