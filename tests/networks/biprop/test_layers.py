"""SubnetConv2d and SubnetLinear against the spec's hand case and a literal version of the release."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from networks import InputError
from networks.biprop import SubnetConv2d, SubnetLinear
from networks.biprop import layers as layers_module
from networks.biprop.selection import keep_mask
from networks.bits import random_signs

WEIGHT = [0.5, -1, 0.25, 2, -0.125, 1.5, -0.75, -3]
SCORES = [0.3, -0.9, 0.1, 0.05, -0.4, 0.4, 0.2, -0.6]


def hand_layer(keep_fraction, **options):
    layer = SubnetConv2d(1, 2, 2, keep_fraction=keep_fraction, **options)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(WEIGHT).view(2, 1, 2, 2))
        layer.scores.copy_(torch.tensor(SCORES).view(2, 1, 2, 2))
    return layer


class LiteralMask(torch.autograd.Function):
    """The selection as published: sort |S|, cut, and pass the gradient straight through."""

    @staticmethod
    def forward(ctx, magnitude, k):
        out = magnitude.clone()
        _, order = magnitude.flatten().sort(stable=True)
        j = int((1 - k) * magnitude.numel())
        flat = out.flatten()
        flat[order[:j]] = 0
        flat[order[j:]] = 1
        return flat.view(magnitude.shape)

    @staticmethod
    def backward(ctx, grad):
        return grad, None


def literal_weight(scores, weight, k):
    """V with the chain of derivatives written out: dV/dM = W, dM/d|S| = 1, d|S|/dS = sign(S)."""
    mask = LiteralMask.apply(scores.abs(), k)
    gain = (weight.abs() * mask.detach()).sum() / mask.detach().sum()
    value = gain * weight.sign() * mask.detach()
    return value.detach() + (mask * weight - (mask * weight).detach())


@pytest.mark.parametrize(
    ("k", "options", "expected"),
    [
        (0.5, {}, [0, -1.40625, 0, 0, -1.40625, 1.40625, 0, -1.40625]),
        (0.25, {}, [0, -2, 0, 0, 0, 0, 0, -2]),
        (0.75, {}, [6.875 / 6 * s for s in (1, -1, 0, 0, -1, 1, -1, -1)]),
        (0.6, {}, [1.225 * s for s in (1, -1, 0, 0, -1, 1, 0, -1)]),
        (0.6, {"gain_count": "floor_kn"}, [1.53125 * s for s in (1, -1, 0, 0, -1, 1, 0, -1)]),
        (0.2, {}, [0, -2, 0, 0, 0, 0, 0, -2]),
        (0.2, {"gain_count": "floor_kn"}, [0, -4, 0, 0, 0, 0, 0, -4]),
        (0.25, {"binarize": "none"}, [0, -1, 0, 0, 0, 0, 0, -3]),
        (1.0, {}, [9.125 / 8 * s for s in (1, -1, 1, 1, -1, 1, -1, -1)]),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_hand_case(k, options, expected, training):
    layer = hand_layer(k, **options).train(training)
    value = layer.effective_weight()
    assert value.flatten().tolist() == pytest.approx(expected, rel=1e-6)
    value.backward(torch.arange(1.0, 9).view(2, 1, 2, 2))
    assert layer.scores.grad.flatten().tolist() == [0.5, 2, 0.75, 8, 0.625, 9, -5.25, 24]
    assert layer.weight.grad is None


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("arguments", [dict(groups=1), dict(groups=4), dict(kernel_size=1, stride=2), dict(dilation=2)])
def test_outputs_and_gradients_equal_the_literal_version(arguments, training):
    torch.manual_seed(0)
    layer = SubnetConv2d(8, 12, **{"kernel_size": 3, "padding": 1, "keep_fraction": 0.3, **arguments}).train(training)
    x = torch.randn(2, 8, 9, 9, requires_grad=True)
    y = layer(x)
    upstream = torch.randn_like(y)
    grads = torch.autograd.grad(y, (x, layer.scores), upstream)
    value = literal_weight(layer.scores, layer.weight, 0.3)
    expected = F.conv2d(x, value, None, layer.stride, layer.padding, layer.dilation, layer.groups)
    expected_grads = torch.autograd.grad(expected, (x, layer.scores), upstream)
    assert torch.allclose(y, expected, rtol=1e-5, atol=1e-6)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert torch.allclose(grad, expected_grad, rtol=1e-5, atol=1e-6)


def test_score_gradient_is_bitwise_g_times_w_times_sign():
    torch.manual_seed(0)
    layer = SubnetLinear(50, 40, keep_fraction=0.2)
    upstream = torch.randn(40, 50)
    layer.effective_weight().backward(upstream)
    assert torch.equal(layer.scores.grad, upstream * layer.weight * layer.scores.sign())
    chain = upstream * layer.weight.sign() * layer.weight.abs() * layer.scores.sign()  # in the release's order
    assert torch.equal(layer.scores.grad, chain.detach())


def test_ablation_without_magnitudes_is_bitwise_g_times_the_two_signs():
    torch.manual_seed(0)
    layer = SubnetLinear(50, 40, keep_fraction=0.2)
    ablation = SubnetLinear(50, 40, keep_fraction=0.2, score_gradient="sign")
    ablation.load_state_dict(layer.state_dict())
    upstream = torch.randn(40, 50)
    value = ablation.effective_weight()
    assert torch.equal(value, layer.effective_weight())
    value.backward(upstream)
    assert torch.equal(ablation.scores.grad, upstream * layer.weight.sign() * layer.scores.sign())


def test_a_score_of_zero_gets_no_gradient():
    for score_gradient in ("weight", "sign"):
        layer = hand_layer(0.5, score_gradient=score_gradient)
        layer.scores.data[1] = torch.tensor([[0.0, -0.0], [1, -1]])
        layer.effective_weight().sum().backward()
        assert [g != 0 for g in layer.scores.grad.flatten().tolist()] == [True] * 4 + [False, False, True, True]


def test_gradient_is_straight_through_and_no_derivative():
    layer = hand_layer(0.5)
    before = layer.effective_weight().sum()
    before.backward()
    assert layer.scores.grad[0, 0, 0, 0] == 0.5
    with torch.no_grad():
        layer.scores[0, 0, 0, 0] += 1e-3  # changes no rank: the true derivative is zero
    assert layer.effective_weight().sum() == before


@pytest.mark.parametrize("k", [0.05, 0.5, 0.8])
def test_three_values_of_which_the_gain_is_the_mean_magnitude(k):
    torch.manual_seed(0)
    layer = SubnetConv2d(16, 32, 3, keep_fraction=k)
    value = layer.effective_weight()
    assert len(value.unique()) == 3
    assert int(value.count_nonzero()) == layer.kept == int(layer.mask().sum())
    assert torch.allclose(value.abs().max(), layer.weight[value != 0].abs().mean(), rtol=1e-6)


def test_invariances_of_the_effective_weight():
    torch.manual_seed(0)
    layer = SubnetLinear(30, 20, keep_fraction=0.4)
    value = layer.effective_weight().detach()
    for change in (torch.neg, lambda s: 3 * s, lambda s: s.abs().exp() - 1):
        other = copy.deepcopy(layer)
        other.scores.data = change(layer.scores.data)
        assert torch.equal(other.effective_weight(), value)
    scaled = copy.deepcopy(layer)
    scaled.weight.data *= 4
    assert torch.equal(scaled.effective_weight(), 4 * value)
    flipped = copy.deepcopy(layer)
    flipped.weight.data[3, 5] *= -1
    expected = value.clone()
    expected[3, 5] *= -1
    assert torch.equal(flipped.effective_weight(), expected)


def test_constant_magnitudes_make_biprop_edge_popup():
    torch.manual_seed(0)
    biprop = SubnetConv2d(16, 16, 3, keep_fraction=0.3, init="signed_constant")
    edge_popup = SubnetConv2d(16, 16, 3, keep_fraction=0.3, init="signed_constant", binarize="none")
    edge_popup.load_state_dict(biprop.state_dict())
    assert torch.allclose(biprop.effective_weight(), edge_popup.effective_weight(), rtol=1e-6)
    upstream = torch.randn(16, 16, 3, 3)
    for layer in (biprop, edge_popup):
        layer.effective_weight().backward(upstream)
    assert torch.equal(biprop.scores.grad, edge_popup.scores.grad)


@given(st.integers(1, 40), st.integers(1, 60), st.floats(0.01, 1))
def test_gain_of_constant_magnitudes_is_exactly_their_magnitude(rows, columns, k):
    for init in ("signed_constant", "unsigned_constant"):
        layer = SubnetLinear(columns, rows, keep_fraction=k, init=init)
        assert torch.equal(layer.effective_weight(), layer.weight * layer.mask())


def test_gain_of_millions_of_constant_magnitudes_is_exactly_their_magnitude():
    for k in (1.0, 0.37):
        layer = SubnetLinear(3001, 1003, keep_fraction=k, init="signed_constant")
        assert layer.gain() == layer.weight[0, 0].abs()


@pytest.mark.parametrize(("scale", "divisor"), [("none", 1), ("release", 0.8), ("kept", 0.2)])
def test_initialisation(scale, divisor):
    torch.manual_seed(0)
    layer = SubnetConv2d(64, 256, 3, groups=2, keep_fraction=0.2, scale=scale)
    fan_in = 32 * 9
    bound = 1 / math.sqrt(fan_in)
    assert layer.scores.abs().max() <= bound
    assert layer.scores.abs().mean().item() == pytest.approx(bound / 2, rel=0.01)
    sigma = math.sqrt(2 / (fan_in * divisor))
    assert layer.weight.std().item() == pytest.approx(sigma, rel=0.02)
    assert not layer.weight.requires_grad
    signed = SubnetConv2d(64, 256, 3, groups=2, keep_fraction=0.2, scale=scale, init="signed_constant")
    assert signed.weight.unique().tolist() == pytest.approx([-sigma, sigma])
    assert signed.weight.mean().item() == pytest.approx(0, abs=sigma / 50)
    unsigned = SubnetConv2d(64, 256, 3, groups=2, keep_fraction=0.2, scale=scale, init="unsigned_constant")
    assert unsigned.weight.unique().tolist() == pytest.approx([sigma])


def test_fan_in_of_a_depthwise_convolution_is_one_kernel():
    layer = SubnetConv2d(64, 128, 3, groups=64, keep_fraction=0.2, init="signed_constant", scale="kept")
    assert layer.weight.unique().tolist() == pytest.approx([-math.sqrt(2 / (9 * 0.2)), math.sqrt(2 / (9 * 0.2))])
    assert 0.99 / 3 < layer.scores.abs().max() <= 1 / 3


def test_every_weight_has_a_sign_whatever_the_generator_gives(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "normal_", lambda weight, *_: weight.zero_())
    layer = SubnetLinear(50, 40)
    assert torch.equal(layer.weight.sign().flatten(), random_signs(int(layer.sign_seed), 2000).float())


# Signs from a counter-based stream.


def philox(counter, key):
    """Four words of Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011)."""
    c, k, base = [counter, 0, 0, 0], [key, 0], 2**64
    for _ in range(10):
        a, b = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
        c = [b // base ^ c[1] ^ k[0], b % base, a // base ^ c[3] ^ k[1], a % base]
        k = [(k[0] + 0x9E3779B97F4A7C15) % base, (k[1] + 0xBB67AE8584CAA73B) % base]
    return c


@pytest.mark.parametrize("seed", [0, 2026, 2**62 - 1])
def test_signs_are_the_bits_of_philox_lowest_first(seed):
    assert philox(0, 0)[:2] == [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC]  # known answer of the authors' Random123
    words = philox(1, seed) + philox(2, seed)  # NumPy's counter begins with 1
    signs = random_signs(seed, 500)
    assert signs.dtype == torch.int8
    assert signs.tolist() == [2 * (words[i // 64] >> i % 64 & 1) - 1 for i in range(500)]


def test_signs_of_a_seed_never_change():
    assert "".join("-+"[s > 0] for s in random_signs(2026, 40).tolist()) == "+++-++------++-+++-+-++-+----++--+-++--+"


@given(st.integers(0, 2**62 - 1), st.integers(0, 1000))
def test_fewer_signs_are_the_first_ones(seed, n):
    assert torch.equal(random_signs(seed, n), random_signs(seed, 1000)[:n])


def test_signs_are_fair_and_independent():
    n = 1_000_000
    signs = torch.stack([random_signs(seed, n) for seed in (1, 2)]).long()
    assert signs.sum(1).abs().max() < 5 * n**0.5  # five standard deviations
    assert abs(int((signs[0] * signs[1]).sum())) < 5 * n**0.5
    assert all(abs(int((signs[0, lag:] * signs[0, :-lag]).sum())) < 5 * n**0.5 for lag in (1, 2, 8, 64))


@pytest.mark.parametrize("init", ["kaiming_normal", "signed_constant"])
def test_the_seed_in_the_state_dict_gives_the_signs_of_the_weights(init):
    torch.manual_seed(0)
    layers = [
        SubnetConv2d(6, 8, 3, groups=2, init=init),
        SubnetLinear(30, 40, init=init),
        SubnetLinear(30, 40, init=init),
    ]
    for layer in layers:
        seed = layer.state_dict()["sign_seed"]
        assert (seed.dtype, seed.shape) == (torch.int64, ())
        assert torch.equal(layer.weight.sign().flatten(), random_signs(int(seed), layer.weight.numel()).float())
    assert len({int(layer.sign_seed) for layer in layers}) == 3
    torch.manual_seed(0)
    assert SubnetConv2d(6, 8, 3, groups=2, init=init).sign_seed == layers[0].sign_seed


def test_an_empty_layer_is_zero_and_never_nan():
    layer = SubnetLinear(3, 2, keep_fraction=1e-20)
    assert layer.kept == 0
    assert layer(torch.ones(1, 3)).tolist() == [[0, 0]]
    tiny = SubnetLinear(3, 2, keep_fraction=0.1, gain_count="floor_kn")  # floor(0.6) = 0 as a denominator
    assert torch.isfinite(tiny.effective_weight()).all()


def test_layouts_batch_of_one_and_bias():
    torch.manual_seed(0)
    layer = SubnetConv2d(8, 4, 3, padding=1, padding_mode="reflect", bias=True, keep_fraction=0.5)
    assert layer.bias.requires_grad
    assert layer.bias.tolist() == [0] * 4
    x = torch.randn(3, 8, 6, 6)
    y = layer(x)
    assert torch.allclose(layer(x[:1]), y[:1], atol=1e-6)
    last = copy.deepcopy(layer).to(memory_format=torch.channels_last)
    assert torch.allclose(last(x.to(memory_format=torch.channels_last)), y, atol=1e-6)


@pytest.mark.parametrize("arguments", [dict(groups=2), dict(groups=8), dict(kernel_size=1), dict(stride=2)])
def test_channels_last_computes_the_same(arguments):
    torch.manual_seed(0)
    layer = SubnetConv2d(8, 16, **{"kernel_size": 3, "keep_fraction": 0.3, **arguments})
    layer.scores.data.mul_(20).round_().div_(20)  # with ties, which the layout must not decide
    last = copy.deepcopy(layer).to(memory_format=torch.channels_last)
    x = torch.randn(2, 8, 7, 7)
    y, y_last = layer(x), last(x.to(memory_format=torch.channels_last))
    assert torch.equal(last.effective_weight(), layer.effective_weight())
    assert torch.allclose(y_last, y, atol=1e-6)
    upstream = torch.randn_like(y)
    y.backward(upstream), y_last.backward(upstream)
    assert torch.allclose(last.scores.grad, layer.scores.grad, atol=1e-5)
    assert torch.allclose(layer(x[:1]), y[:1], atol=1e-6)


@pytest.mark.parametrize("k", [0, -0.1, 1.0001, float("nan")])
def test_impossible_keep_fractions_are_refused_also_later(k):
    with pytest.raises(InputError, match="KEPT, above 0 and at most 1"):
        SubnetLinear(2, 2, keep_fraction=k)
    layer = SubnetLinear(2, 2)
    with pytest.raises(InputError, match="KEPT"):
        layer.keep_fraction = k


@pytest.mark.parametrize("option", ["init", "scale", "binarize", "gain_count", "score_gradient"])
def test_unknown_options_are_refused(option):
    for make in (lambda **options: SubnetLinear(2, 2, **options), lambda **options: SubnetConv2d(2, 2, 1, **options)):
        with pytest.raises(InputError, match=rf"{option} is one of \w+, .*; got 'xavier'"):
            make(**{option: "xavier"})


def test_the_released_scale_needs_something_pruned():
    with pytest.raises(InputError, match="keep fraction below 1"):
        SubnetLinear(2, 2, keep_fraction=1, scale="release")


# Keeping the mask in evaluation, and never a stale one.


def count_selections(monkeypatch):
    calls = []
    real = layers_module.keep_mask
    monkeypatch.setattr(layers_module, "keep_mask", lambda *args: calls.append(1) or real(*args))
    return calls


def test_mask_is_computed_in_every_training_forward_and_kept_in_evaluation(monkeypatch):
    layer, x = SubnetLinear(20, 10), torch.randn(2, 20)
    calls = count_selections(monkeypatch)
    layer(x), layer(x)
    assert len(calls) == 2
    layer.eval()
    layer(x), layer(x), layer(x)
    assert len(calls) == 3
    layer.train()
    layer(x)
    assert len(calls) == 4


def by_optimizer(layer):
    layer(torch.ones(1, 20)).square().sum().backward()
    torch.optim.SGD([layer.scores], lr=100).step()


def by_load_state_dict(layer):
    layer.load_state_dict(SubnetLinear(20, 10).state_dict())


def by_in_place_edit(layer):
    with torch.no_grad():
        layer.scores[0] *= 100


def by_data_edit(layer):
    layer.scores.data.copy_(layer.scores.data.flip(0))


def by_data_assignment(layer):
    layer.scores.data = torch.randn(10, 20)


def by_numpy_view(layer):
    layer.scores.detach().numpy()[:5] *= 1000


def by_new_parameter(layer):
    layer.scores = nn.Parameter(torch.randn(10, 20))


def by_new_weight(layer):
    layer.weight.data.copy_(torch.randn(10, 20))


def by_keep_fraction(layer):
    layer.keep_fraction = 0.1


def by_binarize(layer):
    layer.binarize = "none"


def by_reset(layer):
    layer.reset_parameters()


def by_weight_averaging(layer):
    averaged = AveragedModel(layer, avg_fn=lambda old, new, n: old + torch.randn_like(old))
    averaged.update_parameters(layer)
    averaged.update_parameters(layer)
    for own, average in zip(layer.parameters(), averaged.module.parameters(), strict=True):
        own.data.copy_(average.data)  # as Lightning's WeightAveraging swaps them in


CHANGES = [value for name, value in sorted(globals().items()) if name.startswith("by_")]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_no_change_leaves_a_stale_mask(change):
    torch.manual_seed(0)
    layer = SubnetLinear(20, 10, keep_fraction=0.5).eval()
    stale = layer.effective_weight().detach().clone()
    change(layer)
    value = layer.effective_weight()
    assert not torch.equal(value, stale)
    fresh = copy.deepcopy(layer).train().effective_weight()
    assert torch.equal(value, fresh)
    if layer.binarize == "sign_gain":
        assert torch.allclose(value, literal_weight(layer.scores, layer.weight, layer.keep_fraction))


def test_what_is_kept_depends_on_the_fraction_and_not_only_on_the_count():
    layer = hand_layer(0.25, gain_count="floor_kn").eval()
    assert layer.effective_weight().abs().max() == 2
    layer.keep_fraction = 0.2  # keeps two of eight as before, and divides by one
    assert layer.effective_weight().abs().max() == 4


def test_what_is_kept_cannot_be_changed_through_the_result():
    layer = SubnetLinear(20, 10).eval()
    before = layer.effective_weight()
    layer.effective_weight().data.zero_()
    assert torch.equal(layer.effective_weight(), before)


def test_a_score_that_is_not_a_number_shows_in_every_output():
    layer = SubnetLinear(20, 10)
    layer.scores.data[3, 4] = torch.nan
    assert layer(torch.ones(1, 20)).isnan().all()


def test_neither_files_nor_copies_carry_what_is_kept_for_evaluation():
    layer = SubnetLinear(20, 10).eval()
    layer(torch.ones(1, 20))
    assert copy.deepcopy(layer)._cache is None
    assert torch.equal(pickle.loads(pickle.dumps(layer)).effective_weight(), layer.effective_weight())


def test_fractions_count_in_double_precision_whatever_type_they_come_in():
    assert SubnetLinear(64, 40, keep_fraction=np.float32(0.05)).kept == 129  # of 2560, by the nearest double
    layer = SubnetLinear(4, 4, scale="release", device="meta", dtype=torch.float16)
    assert (layer.scores.dtype, layer.scores.device.type) == (torch.float16, "meta")
    layer.keep_fraction = 1
    with pytest.raises(InputError, match="keep fraction below 1"):
        layer.reset_parameters()


def test_no_stale_mask_through_deepcopy_functional_call_and_dtype_moves():
    torch.manual_seed(0)
    layer, x = SubnetLinear(20, 10).eval(), torch.randn(3, 20)
    before = layer(x)
    twin = copy.deepcopy(layer)
    by_in_place_edit(twin)
    assert not torch.allclose(twin(x), before)
    assert torch.equal(layer(x), before)

    scores = torch.randn(10, 20, requires_grad=True)
    y = functional_call(layer, {"scores": scores}, x)
    assert torch.allclose(y, x @ literal_weight(scores, layer.weight, 0.5).T, atol=1e-6)
    (gradient,) = torch.autograd.grad(y.sum(), scores)
    assert torch.allclose(gradient, x.sum(0) * layer.weight * scores.sign(), atol=1e-5)
    assert torch.equal(layer(x), before)

    layer.double()
    value = layer(x.double())
    assert value.dtype == torch.float64
    assert torch.allclose(value, before.double(), atol=1e-6)
    layer.bfloat16()  # rounds scores, so that ranks and ties are other ones
    expected = literal_weight(layer.scores.float(), layer.weight.float(), 0.5)
    assert torch.allclose(layer.effective_weight().float(), expected, rtol=1e-2)


def test_a_mask_kept_under_inference_mode_serves_a_forward_with_gradients():
    layer, x = SubnetLinear(20, 10).eval(), torch.randn(3, 20, requires_grad=True)
    with torch.inference_mode():
        layer(x)
    layer(x).sum().backward()
    assert torch.allclose(x.grad, layer.effective_weight().sum(0).expand(3, -1), atol=1e-6)
    assert layer.scores.grad is not None


def test_func_grad_sees_the_straight_through_gradient():
    torch.manual_seed(0)
    layer = SubnetLinear(6, 4)
    gradient = torch.func.grad(lambda s: functional_call(layer, {"scores": s}, torch.ones(1, 6)).sum())(layer.scores)
    assert torch.equal(gradient, layer.weight * layer.scores.sign())


def test_meta_device():
    with torch.device("meta"):
        layer = SubnetConv2d(3, 8, 3)
        assert layer.eval()(torch.empty(1, 3, 5, 5)).shape == (1, 8, 3, 3)
        assert layer.train()(torch.empty(1, 3, 5, 5)).is_meta


def test_scores_rank_by_logical_order_whatever_the_weights_layout():
    layer = SubnetConv2d(4, 4, 3).to(memory_format=torch.channels_last)
    assert layer.mask().equal(keep_mask(layer.scores.contiguous(), layer.kept))


def test_gain_of_half_precision_weights_is_added_up_in_float32():
    layer = SubnetLinear(300, 300, keep_fraction=1.0, init="unsigned_constant").half()
    assert layer.effective_weight()[0, 0] == layer.weight[0, 0]  # 90 000 equal addends overflow no half


def test_compiled_layers_compute_the_same():
    torch.manual_seed(0)
    layer, x = SubnetConv2d(3, 8, 3), torch.randn(2, 3, 6, 6)
    for mode in (layer.train(), layer.eval()):
        expected = mode(x)
        (gradient,) = torch.autograd.grad(expected.sum(), layer.scores)
        got = torch.compile(mode, backend="eager")(x)
        assert torch.allclose(got, expected, atol=1e-6)
        assert torch.allclose(torch.autograd.grad(got.sum(), layer.scores)[0], gradient, atol=1e-6)
