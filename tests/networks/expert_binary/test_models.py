"""ExpertBinaryResNet against the spec's section 4."""

import math

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

import networks
from networks import InputError
from networks.expert_binary import ExpertBinaryResNet, expert_layers
from networks.expert_binary.models import shortcut_layers

FINAL = "deep_1262_2_4_8_8_16"
SMALL = dict(blocks=(1, 1, 1, 1), expansion=1, groups=(1, 2, 4, 8), num_experts=2, shortcut="prelu", num_classes=5)


def on_meta(name, **options):
    with torch.device("meta"):
        return timm.create_model(f"expert_binary_{name}", **options)


@pytest.mark.parametrize(("blocks", "binary"), [("1242", 27), ("1262", 33), ("1282", 39)])
def test_numbers_of_convolutions_and_shapes_of_stages(blocks, binary):
    net = on_meta(f"deep_{blocks}_2_4_4_8_16")
    assert len(expert_layers(net)) == binary
    assert sum(isinstance(layer, nn.Conv2d) for layer in net.modules()) == 12
    shapes = {}
    for name in ("stem", "layer1", "layer2", "layer3", "layer4"):
        net.get_submodule(name).register_forward_hook(lambda *io, name=name: shapes.update({name: io[2].shape[1:]}))
    assert net(torch.empty(1, 3, 224, 224, device="meta")).shape == (1, 1000)
    expected = [(64, 56, 56), (128, 56, 56), (256, 28, 28), (512, 14, 14), (1024, 7, 7)]
    assert list(shapes.values()) == expected
    for info, (channels, height, _) in zip(net.feature_info, expected[1:], strict=True):
        assert shapes[info["module"]][1] == 224 // info["reduction"] == height
        assert info["num_chs"] == channels


def disturb(module):
    """Statistics and slopes that are not those of initialisation."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5) if name.endswith("var") else tensor.normal_()
    return module.double().eval()


def norm_of(norm, x):
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("activation", ["prelu", "relu"])
def test_units_add_to_their_own_skips_and_the_first_to_the_shortcut_of_the_raw_input(deep, activation):
    net = disturb(ExpertBinaryResNet(**SMALL, deep=deep, activation=activation, norm_eps=1e-4, rescale=True))
    x = torch.randn(3, 64, 7, 7, dtype=torch.float64) + torch.randn(3, 64, 1, 1, dtype=torch.float64)
    for block, skip in ((net.layer2[0], net.layer2[0].shortcut(x)), (net.layer1[0], x)):
        h = x
        for unit in block.units:
            y = unit.conv(norm_of(unit.norm, h))
            y = F.prelu(y, unit.act.weight) if activation == "prelu" else y.relu()
            h = skip = skip + y
        assert torch.equal(block(x), h)
    with torch.no_grad():
        features = net.layer4(net.layer3(net.layer2(net.layer1(x))))
        net.stem = nn.Identity()
        assert torch.equal(net.forward_features(x), features)
        assert torch.allclose(net(x), F.linear(features.mean((2, 3)), net.fc.weight, net.fc.bias), rtol=1e-12)
    assert {layer.eps for name, layer in net.named_modules() if name.endswith(".norm")} == {1e-4}
    assert net.layer2[0].shortcut[2].eps == 1e-5


def test_the_gate_sees_the_average_of_the_norms_output_which_is_the_norm_of_the_average():
    net = disturb(ExpertBinaryResNet(**SMALL))
    unit, seen = net.layer2[0].units[0], []
    unit.conv.gate.register_forward_hook(lambda _, averages, phi: seen.extend([*averages, phi]))
    x = torch.randn(9, 64, 6, 6, dtype=torch.float64) + torch.randn(9, 64, 1, 1, dtype=torch.float64)
    average = norm_of(unit.norm, x.mean((2, 3)))
    weight = unit.conv.gate.weight
    unit.conv.gate.bias.data = -weight @ average.mean(0)  # so that there are samples for both experts
    unit(x)
    assert torch.allclose(seen[0], average, rtol=0, atol=1e-12)
    winners = (average @ weight.T + unit.conv.gate.bias).argmax(1)
    assert torch.equal(seen[1], F.one_hot(winners, 2).double())
    assert len(winners.unique()) == 2


@pytest.mark.parametrize(
    ("variant", "layers"),
    [
        ("plain", ["Conv2d 8 12", "BatchNorm2d 12"]),
        ("plain_prelu", ["Conv2d 8 12", "BatchNorm2d 12", "PReLU 12"]),
        ("linear", ["Conv2d 8 2", "BatchNorm2d 2", "Conv2d 2 12", "BatchNorm2d 12"]),
        ("relu", ["Conv2d 8 2", "BatchNorm2d 2", "ReLU", "Conv2d 2 12", "BatchNorm2d 12", "ReLU"]),
        ("prelu", ["Conv2d 8 2", "BatchNorm2d 2", "PReLU 2", "Conv2d 2 12", "BatchNorm2d 12", "PReLU 12"]),
    ],
)
def test_shortcuts_average_what_is_there_and_then_follow_table_9(variant, layers):
    pool, *rest = shortcut_layers(8, 12, 2, variant, 4)
    names = ("in_channels", "out_channels", "num_features", "num_parameters")
    described = [" ".join([type(m).__name__, *(str(getattr(m, n)) for n in names if hasattr(m, n))]) for m in rest]
    assert described == layers
    assert all(m.kernel_size == m.stride == (1, 1) for m in rest if isinstance(m, nn.Conv2d))
    # Odd sizes keep their last row and column, averaged over what they have.
    expected = [[3, 5, 6.5], [13, 15, 16.5], [20.5, 22.5, 24]]
    assert pool(torch.arange(25.0).view(1, 1, 5, 5)).tolist() == [[expected]]
    assert [type(m) for m in shortcut_layers(8, 12, 1, variant, 4)] == [type(m) for m in rest]


def test_stems():
    x = torch.randn(2, 3, 14, 18, dtype=torch.float64)

    def layer(x, layers, stride, conv=0):
        weight = layers[conv].weight
        return norm_of(layers[conv + 1], F.conv2d(x, weight, None, stride, weight.shape[-1] // 2)).relu()

    stem = disturb(ExpertBinaryResNet(**SMALL, stem="dabnn").stem)
    h = layer(x, stem.first, 2)
    branch = layer(layer(h, stem.branch, 1), stem.branch, 2, conv=3)
    expected = layer(torch.cat([branch, F.max_pool2d(h, 3, 2, 1)], 1), stem.last, 1)
    assert torch.equal(stem(x), expected)
    assert expected.shape == (2, 64, 4, 5)
    stem = disturb(ExpertBinaryResNet(**SMALL, stem="resnet").stem)
    assert stem[0].kernel_size == (7, 7)
    assert torch.equal(stem(x), F.max_pool2d(layer(x, stem, 2), 3, 2, 1))
    stem = disturb(ExpertBinaryResNet(**SMALL, stem="cifar").stem)
    assert stem[0].kernel_size == (3, 3)
    assert torch.equal(stem(x), layer(x, stem, 1))


def test_initialisation():
    torch.manual_seed(0)
    net = ExpertBinaryResNet(**SMALL, stem="resnet")
    for conv in (net.stem[0], net.layer4[0].shortcut[1], net.layer4[0].shortcut[4]):
        fan_out = conv.out_channels * conv.kernel_size[0] ** 2
        assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.03)
        assert abs(conv.weight).max() > 2.5 * math.sqrt(2 / fan_out)  # normal, not uniform
    slopes = {name: m.weight.tolist() for name, m in net.named_modules() if isinstance(m, nn.PReLU)}
    assert slopes["layer3.0.units.1.act"] == [0.25] * 256
    assert len(slopes) == 4 * 3 + 3 * 2
    assert all(value == 0.25 for values in slopes.values() for value in values)


@pytest.mark.parametrize("size", [40, 33])
def test_any_size_of_image_fits(size):
    net = ExpertBinaryResNet(**SMALL, in_chans=1).eval()
    with torch.no_grad():
        assert net(torch.randn(2, 1, size, size + 3)).shape == (2, 5)


def test_the_final_network_is_the_default():
    with torch.device("meta"):
        nets = [ExpertBinaryResNet(), *(timm.create_model(f"expert_binary_{name}") for name in ("resnet", FINAL))]
    assert len({str(net) for net in nets}) == 1
    assert len({str([(n, p.shape, p.requires_grad) for n, p in net.named_parameters()]) for net in nets}) == 1
    assert {layer.step for layer in expert_layers(nets[2]).values()} == {"binary"}


def test_options_of_create_model_reach_every_layer_and_leave_the_constellation():
    options = dict(
        num_experts=3, temperature=2.5, gate_grad="sigmoid", gate_bias=False, rescale=True, step="one_expert"
    )
    other = dict(stem="cifar", shortcut="linear", activation="relu", norm_eps=1e-4)
    with torch.device("meta"):
        net = networks.create(f"expert_binary_{FINAL}", (1, 32, 32), 100, {**options, **other})
    for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
        for unit in (unit for block in stage for unit in block.units):
            conv, gate = unit.conv, unit.conv.gate
            assert (conv.num_experts, gate.temperature, gate.gradient, gate.bias) == (3, 2.5, "sigmoid", None)
            assert (conv.step, gate.weight.requires_grad) == ("one_expert", False)
            assert isinstance(unit.act, nn.ReLU)
            assert unit.norm.eps == 1e-4
            assert conv.rescale is not None
    assert len(expert_layers(net)) == 33
    assert (net.stem[0].in_channels, net.stem[0].stride) == (1, (1, 1))
    assert not any(isinstance(m, nn.PReLU) for m in net.modules())
    assert (net.num_classes, net.fc.out_features, net.feature_info[0]["reduction"]) == (100, 100, 1)
    with torch.device("meta"), pytest.raises(InputError, match=r"built with .* 'groups'"):
        networks.create(f"expert_binary_{FINAL}", (3, 224, 224), args={"groups": (1, 2, 4, 8)})  # the name says them
    mixture = on_meta(FINAL, routing="mixture")
    assert {layer.gate.routing for layer in expert_layers(mixture).values()} == {"mixture"}


@pytest.mark.parametrize(
    ("options", "stem", "shortcut"),
    [
        (dict(), "dabnn", "prelu"),
        (dict(deep=False), "resnet", "prelu"),
        (dict(expansion=1), "dabnn", "plain"),
        (dict(expansion=(1, 1, 1, 1), deep=False, shortcut="relu"), "resnet", "relu"),
        (dict(expansion=(1, 1, 1, 2), deep=False, stem="dabnn"), "dabnn", "prelu"),
    ],
)
def test_stem_and_shortcut_follow_from_the_constellation_unless_given(options, stem, shortcut):
    with torch.device("meta"):
        net = ExpertBinaryResNet(**options)
        assert str(net) == str(ExpertBinaryResNet(**{**options, "stem": stem, "shortcut": shortcut}))
        assert str(net.layer2[0].shortcut) == str(
            shortcut_layers(net.feature_info[0]["num_chs"], net.feature_info[1]["num_chs"], 2, shortcut, 4)
        )
    assert hasattr(net.stem, "branch") == (stem == "dabnn")


def test_the_classifier_can_be_exchanged_and_left_out():
    net = ExpertBinaryResNet(**{**SMALL, "num_classes": 0}).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(net(x), net.forward_features(x).mean((2, 3)))
    net.reset_classifier(7)
    assert net.get_classifier().weight.shape == (7, 512)
    assert net(x).shape == (2, 7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(groups=(4, 8, 8, 3)), "groups=3 do not divide .* 512 -> 1024"),
        (dict(groups=(128, 8, 8, 16)), "groups=128 do not divide .* 64 -> 128"),  # the stem has 64 channels
        (dict(num_experts=0), "num_experts=0"),
        (dict(temperature=-1), "temperature=-1"),
        (dict(gate_grad="tanh"), "gate_grad is one of"),
        (dict(routing="soft"), "routing is one of"),
        (dict(step="stage1"), "step is one of"),
        (dict(stem="vgg"), "stem is one of dabnn, resnet, cifar; got 'vgg'"),
        (dict(shortcut="none"), "shortcut is one of plain, .*; got 'none'"),
        (dict(activation="tanh"), "activation is one of prelu, relu; got 'tanh'"),
        (dict(shortcut_reduction=3), "shortcut_reduction=3 does not divide .* 64 channels"),
        (dict(shortcut_reduction=0), "shortcut_reduction=0"),
        (dict(blocks=(1, 2, 6)), r"blocks=\(1, 2, 6\).* each of four stages"),
        (dict(blocks=(1, 2, 0, 2)), "without blocks"),
        (dict(groups=(4, 8)), r"groups=\(4, 8\) have a number for each of four stages"),
        (dict(expansion=(2, 2)), r"expansion=\(2, 2\).* each of four stages"),
        (dict(expansion=0.01), "without blocks or channels"),
        (dict(expansion=1 / 16, groups=(1, 1, 1, 1), rescale=True), "rescale has 4 // 8 hidden channels"),
    ],
)
def test_options_that_cannot_work_are_named(options, message):
    with torch.device("meta"), pytest.raises(InputError, match=message):
        ExpertBinaryResNet(**options)
