"""The papers' networks: counts to the unit, sizes in time, and what is replaced (specs/epitome.md 7 and 9)."""

import math

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

import networks
from networks import InputError
from networks.complexity import count, output_sizes
from networks.epitome import EpitomeConv1d, EpitomeConv2d, EpitomeLinear, epitome_layers
from networks.epitome.sound import KERNELS, PRESETS, Layer, pad_same


def build(name, **arguments):
    with torch.device("meta"):
        return timm.create_model(name, **arguments)


def figures(name, size, **arguments):
    """Parameters, multiply-adds of convolutions, and of all layers."""
    report = count(build(name, **arguments), size)
    heads = ("classifier", "head")
    return report.params, sum(layer.flops for layer in report.layers if layer.name not in heads), report.flops


MOBILENET = {  # m: parameters, MAdd of convolutions; with the head too; narrow; routing floats
    0.75: (3_076_232, 239_132_544, 2_973_832, 234_114_944, 3_053_144, 234_856_608, 64),
    0.7: (2_991_312, 227_516_800, 2_868_432, 221_495_680, None, None, 64),
    0.5: (2_647_592, 178_770_816, 2_442_792, 168_735_616, 2_601_416, 170_218_944, 64),
    0.35: (2_391_248, 143_029_824, 2_125_008, 129_984_064, 2_330_329, 131_409_670, 96),
    0.18: (2_099_976, 101_924_704, 1_764_616, 85_492_064, 2_023_693, 87_519_635, 192),
}


@pytest.mark.parametrize("m", MOBILENET)
def test_mobilenetv2(m):
    params, conv, head_params, head_conv, narrow_params, narrow_conv, routing = MOBILENET[m]
    size = (3, 224, 224)
    assert figures("epitome_mobilenetv2", size, multiplier=m) == (params, conv, conv + 1_280_000)
    assert figures("epitome_mobilenetv2", size, multiplier=m, head=True)[:2] == (head_params, head_conv)
    assert count(build("epitome_mobilenetv2", multiplier=m), size).routing_floats == routing
    assert count(build("epitome_mobilenetv2", multiplier=m, positions="none"), size).routing_floats == 0
    if narrow_params:
        assert figures("mobilenetv2_narrow", size, multiplier=m)[:2] == (narrow_params, narrow_conv)


def test_mobilenetv2_of_ratio_one_is_the_dense_one():
    dense = (3_504_872, 299_494_272, 300_774_272)
    assert figures("mobilenetv2_100", (3, 224, 224)) == dense
    assert figures("epitome_mobilenetv2", (3, 224, 224), multiplier=1.0) == dense
    assert figures("mobilenetv2_narrow", (3, 224, 224), multiplier=1.0) == dense


def test_multipliers_by_block():
    """The "-A" networks: one multiplier for each of 16 blocks, for both of its convolutions."""
    each = [0.25] * 4 + [0.5] * 12
    layers = epitome_layers(build("epitome_mobilenetv2", multiplier=each))
    assert len(layers) == 32
    blocks = list(dict.fromkeys(name.rpartition(".")[0] for name in layers))
    for block, m in zip(blocks, each, strict=True):
        expand, project = layers[f"{block}.conv_pw"], layers[f"{block}.conv_pwl"]
        assert (expand.share, project.share) == ("out", "in")
        hidden = expand.out_channels
        assert expand.epitome.shape[0] == project.epitome.shape[1] == math.ceil(m * hidden)
    with pytest.raises(InputError, match="16 blocks"):
        build("epitome_mobilenetv2", multiplier=[0.5] * 3)


@pytest.mark.parametrize(
    ("m", "params", "flops"),
    [
        (0.75, 1_808_042, 69_446_144),
        (0.5, 1_379_402, 50_915_840),
        (0.35, 1_123_058, 39_933_440),
        (0.18, 831_786, 27_297_792),
    ],
)
def test_mobilenetv2_for_cifar(m, params, flops):
    assert figures("epitome_mobilenetv2_cifar", (3, 32, 32), multiplier=m)[::2] == (params, flops)
    assert figures("mobilenetv2_cifar", (3, 32, 32))[::2] == (2_236_682, 87_976_448)


@pytest.mark.parametrize(
    ("ratio", "params", "fc"), [(2, 2_864_872, 640_000), (4, 2_544_872, 320_000), (8, 2_384_872, 160_000)]
)
def test_the_classifier(ratio, params, fc):
    got = figures("epitome_mobilenetv2_classifier", (3, 224, 224), multiplier=1 / ratio)
    assert got == (params, 299_494_272, 299_494_272 + fc)


@pytest.mark.parametrize(
    ("variant", "se", "head", "params", "flops"),
    [
        ("b0", "full", False, 3_920_292, 226_581_216),
        ("b0", "full", True, 3_715_492, 216_546_016),
        ("b0", "grouped", False, 3_311_012, 225_971_936),
        ("b0", "grouped", True, 3_106_212, 215_936_736),
        ("b1", "full", False, 5_463_496, 327_226_336),
        ("b1", "full", True, 5_258_696, 317_191_136),
    ],
)
def test_efficientnet(variant, se, head, params, flops):
    got = figures(f"epitome_efficientnet_{variant}", (3, 224, 224), se=se, head=head)
    assert got[::2] == (params, flops)


def test_efficientnet_is_built_as_released():
    net = build("epitome_efficientnet_b0", se="grouped")
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.momentum, norm.eps) for norm in norms} == {(0.01, 1e-3)}
    assert net.drop_rate == 0.2
    assert {layer.source for layer in epitome_layers(net).values()} == {"none"}
    assert epitome_layers(net)["blocks.0.0.conv_pw"].share == "in"  # where there is no expansion
    se = net.blocks[1][0].se
    assert se.conv_reduce.groups == se.conv_expand.groups == se.conv_reduce.out_channels == 4


@pytest.mark.parametrize("name", ["epitome_mobilenetv2", "epitome_efficientnet_b0"])
def test_the_counted_cost_of_a_layer(name):
    """Spec 13.24: epitome entries times output places; the weight that is made costs as the dense one."""
    net = build(name)
    layers, sizes = epitome_layers(net), output_sizes(net, (3, 64, 64))
    rows = {row.name: row for row in count(net, (3, 64, 64)).layers}
    for path, layer in layers.items():
        places = math.prod(sizes[path][1:])
        assert rows[path].flops == layer.epitome.numel() * places
        assert rows[path].dense_params == layer.in_channels * layer.out_channels
        weight = layer.weight
        dense = count(layer.materialise(), (layer.in_channels, *sizes[path][1:]))
        assert dense.flops == weight.numel() * places


def test_overhead_is_apart():
    inner = EpitomeConv2d(8, 6, 1, multiplier=0.25, positions="none"), EpitomeConv2d(8, 6, 1, multiplier=0.25)
    outer = [EpitomeConv2d(8, 6, 1, multiplier=0.5, share="out", positions=p) for p in ("none", "param")]
    got = [count(nn.Sequential(layer), (8, 5, 4)).overhead_flops for layer in (*inner, *outer)]
    assert got == [20 * (8 - 2), 2 * 20 * 8, 0, 2 * 20 * 6]


def test_stored_bits():
    layer = EpitomeConv2d(8, 6, 1, multiplier=0.5, bias=False)
    report = count(nn.Sequential(layer), (8, 4, 4))
    assert (report.params, report.dense_params, report.routing_floats) == (24, 48, 2)
    assert report.size_bits == 32 * (24 + 2)
    layer.quantize_bits = 8
    assert count(nn.Sequential(layer), (8, 4, 4)).size_bits == 8 * 24 + 64 + 32 * 2


# Sound

WEIGHTS = [1024, 16_384, 32_768, 65_536, 131_072, 524_288, 2_097_152, 11_476_992]
MADDS = [56_448_000, 225_804_288, 112_918_528, 56_492_032, 28_311_552, 28_311_552, 29_360_128, 45_907_968]
LENGTHS = [184, 156, 142, 135, 259, 515, 1027, 1408]
ROWS = {"ws25": [1, 16, 16, 32, 32, 64, 128, 256], "ws45": [1, 16, 16, 32, 32, 64, 64, 128]}
CLIP = (1, 110_250)  # 5 s of 22,050 Hz


def test_soundnet8():
    net = build("soundnet8")
    report = count(net, (1, 441_000))  # 20 s
    assert report.output_size == (1401, 4)
    assert report.params == 14_352_713
    assert sum(p.numel() for p in net.parameters() if p.ndim == 3) == 14_345_216
    with pytest.raises(InputError, match="4 frames of 110250 samples, and its last layer needs 8"):
        count(net, CLIP)
    with pytest.raises(InputError, match="4 frames of 110250 samples"):
        net(torch.empty(1, *CLIP, device="meta"))
    assert count(build("soundnet8", num_classes=50), CLIP).output_size == (50,)


def test_the_uncompressed_network_of_wsnet():
    net = build("soundnet8_esc50")
    sizes = output_sizes(net, CLIP)
    convs = [f"layers.conv{i}.conv" for i in range(1, 9)]
    assert [sizes[name][1] for name in convs] == [55_125, 13_782, 3446, 862, 216, 54, 14, 4]
    assert [sizes[f"layers.conv{i}"][1] for i in range(1, 9)] == [27_563, 6891, 1723, 431, 108, 27, 7, 4]
    rows = {row.name: row for row in count(net, CLIP).layers}
    assert [rows[name].flops for name in convs] == MADDS
    assert sum(MADDS) == 583_554_048
    assert [net.get_submodule(name).weight.numel() for name in convs] == WEIGHTS
    assert sum(WEIGHTS) == 14_345_216
    assert rows["head"].params == 70_100


@pytest.mark.parametrize(
    ("preset", "weights", "trained", "wrapped", "product_maps"),
    [("ws25", 542_424, 626_256, 399_930_368, 125_387_216), ("ws45", 296_472, 380_304, 390_521_856, 122_350_992)],
)
def test_wsnet_presets(preset, weights, trained, wrapped, product_maps):
    net = build(f"wsnet_esc50_{preset}")
    layers = epitome_layers(net)
    assert [layer.epitome.shape[1] for layer in layers.values()] == LENGTHS
    assert [layer.epitome.shape[0] for layer in layers.values()] == ROWS[preset]
    assert sum(layer.epitome.numel() for layer in layers.values()) == weights
    assert sum(p.numel() for p in net.parameters()) == trained
    report = count(net, CLIP)
    assert report.params == trained - 3433
    assert report.routing_floats == 3433
    rows = {row.name: row for row in report.layers}
    assert sum(rows[name].flops for name in layers) == wrapped
    # with product maps: T * L* * M*, T without padding
    samples = [110_250, 27_563, 6891, 1723, 431, 108, 27, 7]
    assert sum(t * layer.epitome.numel() for t, layer in zip(samples, layers.values(), strict=True)) == product_maps
    fixed = count(build(f"wsnet_esc50_{preset}", positions="none"), CLIP)
    assert (fixed.params, fixed.routing_floats) == (report.params, 0)


def test_presets_go_by_their_numbers_too():
    strides, repeats = PRESETS["ws45"]
    named, given = build("wsnet_esc50_ws45"), build("wsnet_esc50", strides=strides, repeats=repeats)
    assert {k: v.shape for k, v in named.state_dict().items()} == {k: v.shape for k, v in given.state_dict().items()}
    weights = [4, 2496, 2272, 4320, 8288, 32_960, 65_728, 180_224]
    assert [layer.epitome.numel() for layer in epitome_layers(named).values()][1:] == weights[1:]
    with pytest.raises(InputError, match="3 values of sampling_stride for 8 layers"):
        build("wsnet_esc50", strides=(1, 2, 3))


def test_shrunk_further():
    """NES Table 5: rho = 2 and 3.16."""

    def weights(**arguments):
        return sum(layer.epitome.numel() for layer in epitome_layers(build(**arguments)).values())

    assert weights(name="wsnet_esc50_ws25", shrink=2.0) == 271_340
    assert weights(name="wsnet_esc50_ws25", shrink=3.16) == 171_792
    assert weights(name="wsnet_esc50_ws45", shrink=3.16) == 93_904
    shrunk = epitome_layers(build("wsnet_esc50_ws25", shrink=3.16)).values()
    assert [layer.epitome.shape[1] for layer in shrunk] == [64, 50, 45, 43, 82, 163, 325, 446]


def test_quantised_rows_store_a_quarter():
    eight, full = (count(build("wsnet_esc50_ws25", quantize_bits=bits), CLIP) for bits in (8, None))
    assert full.size_bits - eight.size_bits == 24 * 542_424 - 8 * 64


@pytest.mark.parametrize("samples", [1, 2, 7, 8, 63, 64, 101, 1000])
@pytest.mark.parametrize("kernel_size", [4, 8, 64])
def test_padding_keeps_half_the_size(samples, kernel_size):
    """Output ceil(T / 2), total padding max((out - 1) * 2 + k - T, 0), the left half rounded down."""
    x = torch.arange(1.0, samples + 1).view(1, 1, -1)
    padded = pad_same(x, kernel_size)
    out = math.ceil(samples / 2)
    total = max((out - 1) * 2 + kernel_size - samples, 0)
    assert padded.shape[-1] == samples + total
    assert padded[0, 0, : total // 2].eq(0).all()
    assert padded[0, 0, total // 2].item() == 1
    assert F.conv1d(padded, torch.ones(1, 1, kernel_size), stride=2).shape[-1] == out


@pytest.mark.parametrize("samples", [1, 2, 5, 15, 16, 17, 99, 100])
@pytest.mark.parametrize("pool", [8, 4])
def test_pooling_is_of_ReLU_with_minus_infinity_around(samples, pool):  # noqa: N802
    torch.manual_seed(samples)
    layer = Layer(2, 3, 4, pool).double()
    x = torch.randn(2, 2, samples, dtype=torch.float64)
    y = F.relu(layer.norm(layer.conv(pad_same(x, 4))))
    total = max((math.ceil(y.shape[-1] / 2) - 1) * 2 + pool - y.shape[-1], 0)
    y = F.max_pool1d(F.pad(y, (total // 2, total - total // 2), value=-math.inf), pool, 2)
    layer.norm.running_mean.zero_()
    torch.testing.assert_close(layer(x), y)


def test_sound_networks_begin_as_soundnet():
    torch.manual_seed(0)
    net = timm.create_model("wsnet_esc50_ws25")
    last = epitome_layers(net)["layers.conv8.conv"]
    assert last.epitome.std().item() == pytest.approx(0.01, rel=0.01)
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm1d)]
    scales = torch.cat([norm.weight for norm in norms])
    assert scales.mean().item() == pytest.approx(1, abs=0.002)
    assert scales.std().item() == pytest.approx(0.02, rel=0.1)
    assert all(norm.bias.eq(0).all() for norm in norms)
    assert all(layer.bias.eq(0).all() for layer in epitome_layers(net).values())
    assert net(torch.randn(2, *CLIP)[..., :5000]).shape == (2, 50)
    assert tuple(KERNELS) == (64, 32, 16, 8, 4, 4, 4, 8)


def test_networks_say_which_layers_they_replaced():
    kinds = {type(layer) for layer in epitome_layers(build("epitome_mobilenetv2_classifier")).values()}
    assert kinds == {EpitomeLinear}
    assert {type(layer) for layer in epitome_layers(build("wsnet_esc50")).values()} == {EpitomeConv1d}


def test_an_image_network_refuses_sound():
    with pytest.raises(InputError, match="does not accept an input of 1x110250"):
        count(networks.create("epitome_mobilenetv2", CLIP, 50), CLIP)
    with pytest.raises(InputError, match="does not accept an input of 3x32x32"):
        count(networks.create("wsnet_esc50", (3, 32, 32), 50), (3, 32, 32))
