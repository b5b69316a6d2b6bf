"""EpitomeConv1d: WSNet at offsets of 0, its integral map, learned offsets, and all forms of execution."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.nn import functional as F

from networks import InputError
from networks.epitome import EpitomeConv1d, integral_map_conv1d


def make(*args, seed=0, spread=0.0, **options):
    torch.manual_seed(seed)
    layer = EpitomeConv1d(*args, **options).double()
    layer.epitome.data.normal_()
    if layer.positions is not None:
        layer.positions.data.normal_().mul_(spread)
    return layer


def inputs(*shape, seed=1):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def literal_weight(layer):
    """K[n, c, l] = blend of Phi[c mod M*] at t_n + l, entry by entry (spec 4.2)."""
    phi, (length,) = layer.epitome.detach(), layer.kernel_size
    rows, columns = phi.shape
    weight = torch.empty(layer.out_channels, layer.in_channels, length, dtype=phi.dtype)
    for n in range(layer.out_channels):
        t = n * layer.sampling_stride + (0 if layer.positions is None else layer.positions[n].item())
        t = min(max(t, 0), columns - length)
        for c in range(layer.in_channels):
            for i in range(length):
                j = math.floor(t)
                above = phi[c % rows, j + i + 1] if t > j else 0
                weight[n, c, i] = (1 - (t - j)) * phi[c % rows, j + i] + (t - j) * above
    return weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_offsets_it_is_wsnet_bit_for_bit(dtype):
    learned = EpitomeConv1d(5, 7, 4, 2, 1, sampling_stride=3, repeats=2).to(dtype)
    fixed = EpitomeConv1d(5, 7, 4, 2, 1, sampling_stride=3, repeats=2, positions="none").to(dtype)
    fixed.load_state_dict({name: p for name, p in learned.state_dict().items() if name != "positions"})
    windows = learned.epitome.unfold(1, 4, 3).permute(1, 0, 2)  # (N, M*, L)
    weight = torch.cat([windows, windows], 1)[:, :5]
    assert learned.weight.equal(weight)
    assert fixed.weight.equal(weight)
    x = torch.randn(2, 5, 20, dtype=dtype)
    torch.testing.assert_close(learned(x), fixed(x))  # the same weight in another layout may be summed in another order
    assert fixed.positions is None


@pytest.mark.parametrize("repeats", [1, 2, 3, 6])
@pytest.mark.parametrize("channels", [6, 7])
def test_offsets_interpolate_and_repeats_fold(repeats, channels):
    layer = make(channels, 5, 4, 2, 3, 2, sampling_stride=2, repeats=repeats, spread=3.0)
    weight = literal_weight(layer)
    torch.testing.assert_close(layer.weight.detach(), weight)
    x = inputs(2, channels, 23)
    dense = F.conv1d(x, weight, layer.bias, 2, 3, 2)
    for execution in ("materialised", "reuse", "auto"):
        layer.execution = execution
        torch.testing.assert_close(layer(x), dense)
    torch.testing.assert_close(layer.materialise()(x), dense)


@given(
    channels=st.integers(1, 9),
    filters=st.integers(1, 7),
    length=st.integers(1, 5),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    sampling_stride=st.integers(1, 5),
    repeats=st.integers(1, 9),
    seed=st.integers(0, 99),
)
@settings(max_examples=60)
def test_forms_and_gradients_agree_on_any_shape(
    channels, filters, length, stride, padding, dilation, sampling_stride, repeats, seed
):
    try:
        layer = make(
            channels, filters, length, stride, padding, dilation,
            sampling_stride=sampling_stride, repeats=min(repeats, channels), spread=2.0, seed=seed,
        )  # fmt: skip
    except InputError as error:
        assert "larger than its weight" in str(error)  # noqa: PT017
        return
    x = inputs(2, channels, 12, seed=seed)
    forms = []
    for execution in ("materialised", "reuse"):
        layer.execution = execution
        layer.zero_grad()
        x.grad = None
        y = layer(x)
        (y * torch.arange(y.numel(), dtype=y.dtype).view(y.shape).cos()).sum().backward()
        forms.append([y.detach(), x.grad.clone(), *(p.grad.clone() for p in layer.parameters())])
    for one, other in zip(*forms, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_the_integral_map_is_the_convolution(stride):
    """Spec 13.11: M=8, C=2, L=6, N=5, S=3, so L* = 18."""
    layer = make(8, 5, 6, stride, bias=False, sampling_stride=3, repeats=2, positions="none")
    assert layer.epitome.shape == (4, 18)
    x = inputs(2, 8, 40).detach()
    y = integral_map_conv1d(x[:, :4] + x[:, 4:], layer.epitome.detach(), 5, 6, 3, stride)
    torch.testing.assert_close(y, layer(x).detach(), rtol=0, atol=1e-12)


def test_every_offset_has_a_gradient_at_the_start():
    """Spec 13.6: also those of the first and the last filter, which begin on the bounds."""
    layer = make(3, 6, 4, sampling_stride=2)
    layer(inputs(2, 3, 15)).square().sum().backward()
    assert (layer.positions.grad != 0).all()
    assert layer.positions.shape == (6,)


@pytest.mark.parametrize("source", ["none", "param", "feature"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shrink", [1.0, 1.4])
def test_gradients(source, training, shrink, monkeypatch):
    layer = make(3, 4, 3, 2, 1, sampling_stride=2, repeats=2, shrink=shrink, positions=source).train(training)
    if layer.positions is not None:
        layer.positions.data.copy_(torch.tensor([0.3, 0.2, -0.4, -0.6]))
    names = [name for name, _ in layer.named_parameters()]
    values = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    if layer.learner is not None:
        layer.learner.norm1.momentum = 0.0
        starts = torch.tensor([0.6, 1.3, 2.4, 2.6]).double()  # where no offset crosses an integer or a bound
        monkeypatch.setattr(EpitomeConv1d, "starts", property(lambda self: starts))
        layer.learner.conv2.weight.data.mul_(0.01)

    def run(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert gradcheck(run, (inputs(2, 3, 9), *values), atol=1e-6)


def test_a_learner_begins_near_wsnet_and_reaches_all_of_the_filter():
    layer = make(3, 4, 3, sampling_stride=2, positions="feature")
    assert layer.last == 6
    offsets = layer._from_learner(torch.tensor([0.0, 50.0, -50.0, 0.1]))
    torch.testing.assert_close(
        offsets, torch.tensor([0.0, 6.0, -6.0, 6 * (2 * torch.tensor(0.1).sigmoid().item() - 1)])
    )


def test_shrunk_filters_begin_evenly_spread():
    """Spec 9: L*' = max(L, ceil(L* / rho)), t_n = n * (L*' - L) / (N - 1)."""
    layer = make(4, 7, 4, sampling_stride=3, shrink=2.0, positions="none")
    assert layer.epitome.shape == (4, 11)  # 22 / 2
    torch.testing.assert_close(layer.starts, (torch.arange(7) * 7 / 6).double())
    with torch.no_grad():
        ramp = torch.arange(11.0).double().expand(4, 11)
        layer.epitome.copy_(ramp)  # so that a window's first entry is where it begins
    torch.testing.assert_close(layer.weight[:, 0, 0].detach(), layer.starts)
    assert EpitomeConv1d(4, 7, 4, sampling_stride=3, shrink=4).epitome.shape == (4, 6)
    shortest = EpitomeConv1d(4, 7, 4, sampling_stride=3, shrink=100)
    assert shortest.epitome.shape == (4, 4)
    assert shortest.weight.equal(shortest.epitome.expand(7, 4, 4))


def test_offsets_are_those_within_the_bounds():
    layer = make(3, 3, 4, sampling_stride=2)
    layer.positions.data.copy_(torch.tensor([-1.0, 0.5, 9.0]))
    assert layer.offsets().tolist() == [0, 0.5, 0]
    layer.freeze()
    assert layer.offsets().tolist() == [0, 0.5, 0]
    assert [name for name, _ in layer.named_parameters()] == ["epitome", "bias"]


@pytest.mark.parametrize("shrink", [1.0, 1.5])
def test_halves_do_not_move_the_windows(shrink):
    layer = EpitomeConv1d(4, 600, 2, sampling_stride=1, shrink=shrink)
    layer.epitome.data.uniform_(-1, 1)
    weight, starts = layer.weight.detach(), layer.starts
    layer.bfloat16()
    assert layer.starts.equal(starts)
    torch.testing.assert_close(layer.weight.detach().float(), weight, rtol=0.02, atol=0.01)


def test_another_number_of_channels_is_refused():
    with pytest.raises(InputError, match=r"takes 6 channels, and the input of .* has 4"):
        EpitomeConv1d(6, 4, 4, repeats=2)(torch.randn(1, 4, 9))


def test_coverage_counts_the_filters_and_repeats_that_read_an_entry():
    layer = make(4, 3, 4, sampling_stride=2, repeats=2, positions="none")  # windows at 0, 2, 4 of 8
    assert layer.reads().tolist() == [2, 2, 4, 4, 4, 4, 2, 2]


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"sampling_stride": 0}, "sampling_stride=0"),
        ({"repeats": 5}, "repeats=5"),
        ({"repeats": 0}, "repeats=0"),
        ({"shrink": 0.5}, "shrink=0.5"),
        ({"sampling_stride": 9}, "larger than its weight"),
        ({"positions": "feature_authors"}, "feature_authors"),
    ],
)
def test_what_cannot_be_is_refused(options, what):
    with pytest.raises(InputError, match=what):
        EpitomeConv1d(4, 4, 3, **options)
