"""EpitomeConv2d and EpitomeLinear: what their weight is, that all execution forms agree, and the routing map."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck
from torch.nn import functional as F

from networks import InputError
from networks.epitome import EpitomeConv2d, EpitomeLinear, quantize


def make(kind, *args, seed=0, at=None, **options):
    """A layer in double precision with positions `at`, or drawn between its entries, negative ones too."""
    torch.manual_seed(seed)
    layer = kind(*args, **options).double()
    for parameter in (layer.positions, getattr(layer, "routing_map", None)):
        if parameter is not None:
            drawn = 5 * torch.randn_like(parameter) if at is None else torch.as_tensor(at).double()
            parameter.data.copy_(drawn)
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    return layer


def inputs(*shape, seed=1):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def results(layer, x, execution):
    """Output and all gradients under one form of execution."""
    layer.execution = execution
    layer.zero_grad()
    x.grad = None
    y = layer(x)
    (y * torch.arange(y.numel(), dtype=y.dtype).view(y.shape).cos()).sum().backward()
    return [y.detach(), x.grad.clone(), *(p.grad.clone() for p in layer.parameters())]


def agree(layer, x):
    for one, other in zip(results(layer, x, "materialised"), results(layer, x, "reuse"), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def literal_weight(layer):
    """Spec 3.1 for flat epitomes, entry by entry."""
    epitome, positions = layer.epitome.detach(), layer.positions
    positions = torch.zeros(99).double() if positions is None else positions.detach()
    axis, n = layer.axis, layer.epitome.shape[layer.axis]
    slices = []
    for c in range(layer.size[axis]):
        p = float(positions[c // n]) + c % n
        j, f = math.floor(p), p - math.floor(p)
        slices.append((1 - f) * epitome.select(axis, j % n) + f * epitome.select(axis, (j + 1) % n))
    return torch.stack(slices, axis)


FLAT = [
    ("in", 0.5, (6, 4), "param"),
    ("in", 0.3, (7, 4), "param"),  # a truncated block
    ("out", 0.5, (4, 6), "param"),
    ("out", 0.4, (4, 7), "param"),
    ("in", 0.18, (12, 3), "none"),
    ("out", 0.4, (3, 7), "none"),
    ("in", 1.0, (5, 4), "param"),
]


@pytest.mark.parametrize(("share", "m", "channels", "source"), FLAT)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "geometry", [dict(kernel_size=1), dict(kernel_size=3, stride=2, padding=1), dict(kernel_size=(1, 3), dilation=2)]
)
def test_convolution_is_that_of_its_weight_in_every_form(share, m, channels, source, bias, geometry):
    layer = make(EpitomeConv2d, *channels, **geometry, bias=bias, multiplier=m, share=share, positions=source)
    x = inputs(2, channels[0], 9, 8)
    weight = literal_weight(layer)
    torch.testing.assert_close(layer.weight.detach(), weight, rtol=0, atol=1e-12)
    dense = F.conv2d(x, weight, layer.bias, layer.stride, layer.padding, layer.dilation)
    torch.testing.assert_close(layer(x), dense, rtol=1e-10, atol=1e-10)
    agree(layer, x)
    torch.testing.assert_close(layer.materialise()(x), dense, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("share", "m", "features", "source"), FLAT)
def test_linear_is_that_of_its_weight_in_every_form(share, m, features, source):
    layer = make(EpitomeLinear, *features, multiplier=m, share=share, positions=source)
    x = inputs(2, 3, features[0])  # tokens
    dense = F.linear(x, literal_weight(layer), layer.bias)
    torch.testing.assert_close(layer(x), dense, rtol=1e-10, atol=1e-10)
    agree(layer, x)
    torch.testing.assert_close(layer.materialise()(x), dense, rtol=1e-10, atol=1e-10)


@given(
    share=st.sampled_from(["in", "out"]),
    m=st.floats(0.05, 1),
    channels=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    source=st.sampled_from(["none", "param"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=50)
def test_all_forms_agree_on_any_shape(share, m, channels, kernel, stride, padding, dilation, source, seed):
    layer = make(
        EpitomeConv2d, *channels, kernel, stride, padding, dilation,
        multiplier=m, share=share, positions=source, seed=seed,
    )  # fmt: skip
    agree(layer, inputs(2, channels[0], 7, 6, seed=seed))


def test_linear_with_positions_of_zero_folds_its_input():
    layer = make(EpitomeLinear, 6, 4, multiplier=0.5, positions="none")
    x = inputs(5, 6)
    torch.testing.assert_close(layer(x), F.linear(x.view(5, 2, 3).sum(1), layer.epitome, layer.bias))


@pytest.mark.parametrize("share", ["in", "out"])
def test_a_ratio_of_one_is_the_dense_layer(share):
    layer = EpitomeConv2d(5, 4, 3, multiplier=1, share=share)
    x = torch.randn(2, 5, 6, 6)
    assert layer.epitome.shape == (4, 5, 3, 3)
    assert layer(x).equal(F.conv2d(x, layer.epitome, layer.bias))


@pytest.mark.parametrize(
    ("m", "channels", "rows"),
    [(0.7, 10, 7), (0.1, 30, 3), (0.18, 96, 18), (0.5, 7, 4), (1 / 3, 9, 3), (0.75, 144, 108)],
)
def test_channels_round_up_without_the_noise_of_floats(m, channels, rows):
    assert EpitomeLinear(channels, 2, multiplier=m).epitome.shape == (2, rows)


@pytest.mark.parametrize("share", ["in", "out"])
@pytest.mark.parametrize("size", [(3, 4), (2, 5)])
def test_larger_epitomes_are_cut_at_a_position_in_each_block(share, size):
    layer = make(EpitomeConv2d, 8, 6, 2, multiplier=0.25, share=share, epitome_size=size)
    assert layer.positions.shape == (4 if share == "in" else 3, 3)
    n, axis = layer.epitome.shape[layer.axis], layer.axis
    blocks = []
    for p, y, x in layer.positions.detach().tolist():
        block = layer.epitome.detach()
        j, f = math.floor(p), p - math.floor(p)
        block = (1 - f) * block.roll(-j, axis) + f * block.roll(-j - 1, axis)
        for dim, at in ((2, y), (3, x)):
            at = min(max(at, 0), size[dim - 2] - 2)
            j = math.floor(at)
            f = at - j
            block = (1 - f) * block.narrow(dim, j, 2) + (f * block.narrow(dim, j + 1, 2) if f else 0)
        blocks.append(block)
    weight = torch.cat(blocks, axis).narrow(axis, 0, layer.size[axis])
    torch.testing.assert_close(layer.weight.detach(), weight)
    assert n * len(blocks) >= layer.size[axis]
    x = inputs(1, 8, 4, 4)
    torch.testing.assert_close(layer(x), F.conv2d(x, weight, layer.bias))
    layer.execution = "reuse"  # which would be wrong here
    torch.testing.assert_close(layer(x), F.conv2d(x, weight, layer.bias))


def test_the_product_map_of_a_larger_epitome():
    """Spec 13.12: sums of P[u + y, v + x, p^y + y, p^x + x] are the convolution with the window at (p^y, p^x)."""
    layer = make(EpitomeConv2d, 4, 3, 3, multiplier=0.5, epitome_size=(4, 4), bias=False, at=[[0, 1, 0]] * 2)
    x = inputs(1, 4, 6, 6).detach()
    products = torch.einsum("biuv,oihw->bouvhw", x[:, :2] + x[:, 2:], layer.epitome.detach())
    y = sum(products[:, :, dy : dy + 4, dx : dx + 4, 1 + dy, dx] for dy in range(3) for dx in range(3))
    torch.testing.assert_close(layer(x).detach(), y)


SOURCES = ["none", "param", "feature"]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("share", ["in", "out"])
@pytest.mark.parametrize("size", [None, (4, 3)])
@pytest.mark.parametrize("training", [True, False])
def test_gradients_of_convolution(source, share, size, training):
    layer = make(EpitomeConv2d, 3, 4, 3, multiplier=0.4, share=share, positions=source, epitome_size=size)
    if layer.positions is not None:  # outside its bounds a position has the gradient at the bound: not a derivative
        layer.positions.data.uniform_(0.1, 0.9)
    gradients_are_right(layer.train(training), inputs(2, 3, 5, 4))


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("share", ["in", "out"])
def test_gradients_of_linear(source, share):
    layer = make(EpitomeLinear, 5, 4, multiplier=0.4, share=share, positions=source)
    gradients_are_right(layer, inputs(4, 5))


def gradients_are_right(layer, x):
    names = [name for name, _ in layer.named_parameters()]
    values = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    momentum = [module for module in layer.modules() if hasattr(module, "momentum")]
    for module in momentum:
        module.momentum = 0.0

    def run(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert gradcheck(run, (x, *values), atol=1e-6)


# Freezing


@pytest.mark.parametrize("source", ["param", "feature"])
def test_frozen_layers_compute_the_same_and_learn_no_position(source):
    layer = make(EpitomeConv2d, 6, 4, 1, positions=source)
    x = inputs(3, 6, 4, 4)
    y = layer.eval()(x)
    layer.freeze()
    assert layer(x).equal(y)
    assert layer.train()(x).equal(y)
    assert dict(layer.named_parameters()).keys() == {"epitome", "bias"}
    assert "positions" in layer.state_dict()
    assert layer.learner is None


def test_plain_repetition_stays_plain_when_frozen():
    layer = EpitomeLinear(4, 2, positions="none")
    layer.freeze()
    assert layer.state_dict().keys() == {"epitome", "bias"}


# Initialisation, quantisation, coverage


def test_epitomes_begin_with_the_fan_out_of_the_target():
    torch.manual_seed(0)
    epitome = EpitomeConv2d(256, 512, 3, multiplier=0.25, share="out").epitome
    assert epitome.std().item() == pytest.approx(math.sqrt(2 / (512 * 9)), rel=0.01)


def test_positions_may_begin_spread():
    layer = EpitomeLinear(10, 3, multiplier=0.35, init="spread")  # 4 channels, 3 blocks
    torch.testing.assert_close(layer.positions.detach(), torch.tensor([0, 4 / 3, 8 / 3]))


@given(bits=st.integers(1, 8), seed=st.integers(0, 99))
def test_quantised_values_are_within_half_a_step(bits, seed):
    values = torch.randn(7, 5, generator=torch.Generator().manual_seed(seed))
    quantized = quantize(values, bits)
    step = (values.max() - values.min()) / (2**bits - 1)
    assert (quantized - values).abs().max() <= step / 2 * (1 + 1e-5) + 1e-6
    assert len(quantized.unique()) <= 2**bits
    assert quantize(torch.full((3,), 0.7), bits).tolist() == pytest.approx([0.7] * 3)


def test_quantised_layers_compute_with_levels_and_gradients_go_through():
    layer = EpitomeConv2d(6, 4, 1, positions="none", quantize_bits=2, bias=False)
    assert len(layer.weight.unique()) == 4
    plain = EpitomeConv2d(6, 4, 1, positions="none", bias=False)
    plain.epitome.data.copy_(quantize(layer.epitome.detach(), 2))
    x = torch.randn(2, 6, 3, 3)
    for each in (layer, plain):
        each(x).square().sum().backward()
    torch.testing.assert_close(layer.epitome.grad, plain.epitome.grad)


def test_coverage_counts_reads():
    layer = EpitomeConv2d(5, 2, 3, multiplier=0.4, epitome_size=None, positions="param")  # 2 channels: 3 blocks
    assert layer.coverage().equal(torch.tensor([3.0, 2.0]).view(1, 2, 1, 1).expand(2, 2, 3, 3))
    assert layer.reads().tolist() == [3, 2]
    layer.positions.data[1] = 0.25  # the second block reads entries 0 and 1, and 1 and 0
    torch.testing.assert_close(layer.reads(), torch.tensor([3.0, 2.0]))
    layer.positions.data[2] = 1.0  # of the third one entry is left: the other one now
    torch.testing.assert_close(layer.reads(), torch.tensor([2.0, 3.0]))


def test_positions_keep_their_precision_under_autocast():
    layer = EpitomeConv2d(1100, 2, 1, multiplier=0.5, bias=False)
    layer.positions.data.copy_(torch.tensor([500.3, 0.0]))
    weight, x = layer.weight, torch.randn(1, 1100, 2, 2)
    dense = F.conv2d(x, weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.weight.equal(weight)
        for execution in ("materialised", "reuse"):
            layer.execution = execution
            y = layer(x)
            assert y.dtype == torch.bfloat16
            torch.testing.assert_close(y.float(), dense, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: EpitomeConv2d(4, 4, 1, multiplier=1.5), "multiplier=1.5"),
        (lambda: EpitomeConv2d(4, 4, 1, multiplier=0), "multiplier=0"),
        (lambda: EpitomeConv2d(4, 4, 2, epitome_size=(4, 4)), "larger than its weight"),
        (lambda: EpitomeConv2d(4, 4, 3, epitome_size=(2, 4)), "smaller than the kernel"),
        (lambda: EpitomeConv2d(4, 4, 1, share="both"), "share"),
        (lambda: EpitomeConv2d(4, 4, 1, positions="learned"), "positions"),
        (lambda: EpitomeConv2d(4, 4, 1, map_momentum=1), "map_momentum=1"),
        (lambda: EpitomeConv2d(4, 4, 1, quantize_bits=0), "quantize_bits=0"),
        (
            lambda: EpitomeConv2d(8, 4, 1, multiplier=0.1, epitome_size=(2, 2), positions="feature_authors"),
            "channels alone",
        ),
        (lambda: EpitomeLinear(4, 4, execution="fast"), "execution"),
    ],
)
def test_what_cannot_be_is_refused(make, what):
    with pytest.raises(InputError, match=what):
        make()


def test_the_faster_execution_is_chosen():
    wide = EpitomeConv2d(64, 64, 1, positions="none"), torch.randn(2, 64, 5, 5)
    narrow = EpitomeConv2d(64, 18, 1, positions="none"), torch.randn(2, 64, 5, 5)
    last = torch.channels_last
    assert wide[0].reuses(None, wide[1])
    assert wide[0].reuses(None, wide[1].to(memory_format=last))
    assert narrow[0].reuses(None, narrow[1])
    assert not narrow[0].reuses(None, narrow[1].to(memory_format=last))  # 9 saved for each input, in 2 blocks
    assert not wide[0].reuses(torch.zeros(2), wide[1])
    assert EpitomeLinear(64, 64, positions="none").reuses(None, torch.randn(2, 64))
    assert not EpitomeLinear(64, 18, positions="none").reuses(None, torch.randn(2, 64))


@pytest.mark.parametrize("channels", [3, 5, 7, 12])
@pytest.mark.parametrize("execution", ["auto", "materialised"])
def test_another_number_of_channels_is_refused(channels, execution):
    layer = EpitomeConv2d(6, 4, 1, positions="none", execution=execution)
    with pytest.raises(InputError, match=f"takes 6 channels, and the input of .* has {channels}"):
        layer(torch.randn(1, channels, 4, 4))
    with pytest.raises(InputError, match=f"takes 6 channels, and the input of .* has {channels}"):
        EpitomeLinear(6, 64, positions="none", execution=execution)(torch.randn(2, channels))


@pytest.mark.parametrize("execution", ["materialised", "reuse"])
@pytest.mark.parametrize("share", ["in", "out"])
def test_autocast_gives_halves_as_the_ordinary_layers(execution, share):
    conv = EpitomeConv2d(64, 64, 1, share=share, positions="none", execution=execution)
    linear = EpitomeLinear(64, 64, share=share, positions="none", execution=execution)
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(torch.randn(1, 64, 2, 2)).dtype == torch.bfloat16
        assert linear(torch.randn(1, 64)).dtype == torch.bfloat16


def test_offsets_in_space_are_within_their_bounds():
    layer = EpitomeConv2d(8, 6, 2, multiplier=0.25, epitome_size=(3, 4))
    layer.positions.data[:] = torch.tensor([[9.0, 9.0, 9.0], [-1.0, -1.0, -1.0], [0.5, 0.5, 0.5], [0, 0, 0]])
    assert layer.offsets().tolist() == [[9, 1, 2], [-1, 0, 0], [0.5, 0.5, 0.5], [0, 0, 0]]


def test_channels_last_stays_and_gives_the_same():
    for share in ("in", "out"):
        layer = EpitomeConv2d(32, 32, 1, share=share, positions="none", bias=False)
        x = torch.randn(2, 32, 5, 5).to(memory_format=torch.channels_last)
        y = layer(x)
        assert layer.reuses(None, x)
        assert y.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(y, layer(x.contiguous()))
