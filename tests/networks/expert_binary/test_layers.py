"""ExpertBinaryConv2d against a literal version, one sample at a time, and the spec's oracles (section 11)."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from networks import InputError, complexity
from networks.expert_binary import STEPS, ExpertBinaryConv2d

BAD_TEMPERATURES = [0, -1, math.inf, math.nan]


class HandSign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, v):
        ctx.save_for_backward(v)
        return torch.where(v < 0, -torch.ones_like(v), torch.ones_like(v))

    @staticmethod
    def backward(ctx, g):
        (v,) = ctx.saved_tensors
        return torch.where((v <= -1) | (v >= 1), torch.zeros_like(g), g)


class HandWinner(torch.autograd.Function):
    """Of one sample's logits; backward multiplies by the matrix of Eq. 4."""

    @staticmethod
    def forward(ctx, z, tau, gate_grad):
        ctx.z, ctx.tau, ctx.gate_grad = z.tolist(), tau, gate_grad
        phi = [0.0] * len(z)
        phi[ctx.z.index(max(ctx.z))] = 1.0
        return z.new_tensor(phi)

    @staticmethod
    def backward(ctx, d):
        n, tau = len(ctx.z), ctx.tau
        if ctx.gate_grad == "sigmoid":
            s = [1 / (1 + math.exp(-z / tau)) for z in ctx.z]
            jacobian = [[(j == k) * s[k] * (1 - s[k]) / tau for k in range(n)] for j in range(n)]
        else:
            e = [math.exp(z / tau) for z in ctx.z]
            p = [value / sum(e) for value in e]
            jacobian = [[p[k] * ((j == k) - p[j]) / tau for k in range(n)] for j in range(n)]
        return d @ d.new_tensor(jacobian), None, None


def literal(layer, x, step, fp_activation="identity", tau=1.0, gate_grad="softmax", routing="winner"):
    """Section 3.1 of the spec in its order."""
    outputs = []
    for sample in x:
        average = sample.flatten(1).sum(1) / sample[0].numel()
        kernel = layer.weight[0]
        if step in ("experts", "binary") and len(layer.weight) > 1:
            z = layer.gate.weight @ average
            if layer.gate.bias is not None:
                z = z + layer.gate.bias
            phi = z.sigmoid() if routing == "mixture" else HandWinner.apply(z, tau, gate_grad)
            kernel = sum(phi[i] * layer.weight[i] for i in range(len(phi)))
        if step == "binary":
            kernel = HandSign.apply(kernel)
        activate = {"identity": lambda a: a, "tanh": torch.tanh}[fp_activation] if step == "fp" else HandSign.apply
        y = F.conv2d(activate(sample)[None], kernel, None, layer.stride, layer.padding, layer.dilation, layer.groups)[0]
        y = y * layer.scale[:, None, None]
        if layer.rescale is not None:
            w1, w2 = (part.weight for part in layer.rescale if isinstance(part, nn.Linear))
            y = y * (w2 @ (w1 @ average).relu()).sigmoid()[:, None, None]
        outputs.append(y)
    return torch.stack(outputs)


def make(step="binary", fp_activation="identity", **options):
    """A float64 layer whose weights have exact zeros and ones, where signs and their derivatives turn."""
    defaults = dict(in_channels=8, out_channels=8, kernel_size=3, padding=1)
    layer = ExpertBinaryConv2d(**{**defaults, **options}).double()
    torch.manual_seed(0)
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_()
        layer.weight.mul_(4).round_().div_(4)
        if layer.gate is not None:
            layer.gate.weight.mul_(0.4)
        if options.get("gate_bias", layer.gate is not None):
            layer.gate.bias.mul_(0.1)
    layer.set_step(step, fp_activation)
    return layer


def images(batch=6, channels=8, size=7):
    """Quarters; with an offset for each sample and channel, and its opposite, so that several experts are chosen."""
    torch.manual_seed(1)
    offset = torch.randn(batch // 2, channels, 1, 1, dtype=torch.float64)
    x = torch.randn(batch, channels, size, size, dtype=torch.float64) + torch.cat([offset, -offset])
    return x.mul(4).round().div(4).requires_grad_()


def upstream_of(y):
    torch.manual_seed(2)
    return torch.randn_like(y)


def gradients(y, layer, x):
    wanted = {"x": x, **{name: p for name, p in layer.named_parameters() if p.requires_grad}}
    return dict(zip(wanted, torch.autograd.grad(y, list(wanted.values()), upstream_of(y)), strict=True))


def assert_same(gradients, expected, atol=1e-10):
    assert gradients.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(gradients[name], value, rtol=1e-10, atol=atol), name


def chosen(layer, x):
    return (x.mean((2, 3)) @ layer.gate.weight.T + layer.gate.bias).argmax(1)


OPTIONS = [
    {},
    dict(groups=2),
    dict(groups=4, out_channels=16, stride=2),
    dict(num_experts=1, groups=2),
    dict(num_experts=2, stride=2),
    dict(temperature=0.3),
    dict(temperature=5.0, groups=4),
    dict(gate_grad="sigmoid"),
    dict(gate_grad="sigmoid", temperature=2.0, num_experts=2),
    dict(gate_bias=False),
    dict(rescale=True),
    dict(rescale=True, groups=2, out_channels=24, stride=2, temperature=0.5),
    dict(rescale=True, num_experts=1),
    dict(kernel_size=1, padding=0),
    dict(kernel_size=(1, 3), padding="same", dilation=2),
    dict(routing="mixture"),
    dict(routing="mixture", num_experts=2, groups=4, stride=2, rescale=True),
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(
    ("step", "fp_activation"),
    [("fp", "identity"), ("fp", "tanh"), ("one_expert", "identity"), ("experts", "identity"), ("binary", "identity")],
)
def test_output_and_gradients_equal_the_literal_version(step, fp_activation, options):
    layer, x = make(step, fp_activation, **options), images()
    y = layer(x)
    known = dict(tau=options.get("temperature", 1.0)) | {
        k: options[k] for k in ("gate_grad", "routing") if k in options
    }
    expected = literal(layer, x, step, fp_activation, **known)
    assert torch.allclose(y, expected, rtol=0, atol=1e-10)
    found = gradients(y, layer, x)
    assert_same(found, gradients(expected, layer, x))
    gated = step in ("experts", "binary") and layer.gate is not None
    assert ("gate.weight" in found) == gated  # elsewhere it is frozen
    if gated:
        assert found["gate.weight"].abs().max() > 1e-3
        assert (layer.gate.counts > 0).sum() > 1


@pytest.mark.parametrize("step", ["experts", "binary"])
@pytest.mark.parametrize(
    "options", [{}, dict(groups=4, stride=2, temperature=3.0), dict(kernel_size=1, padding=0, num_experts=2)], ids=str
)
def test_gather_dispatch_and_single_samples_agree(step, options):
    """Dispatch has no autograd: p (d - sum p d) / tau, where d_i is a convolution with the masked real Theta_i."""
    layer, x = make(step, **options), images(10)
    y = layer(x)
    found = gradients(y, layer, x)

    alone = torch.cat([layer(x[b : b + 1]) for b in range(len(x))])
    assert torch.allclose(alone, y, rtol=0, atol=1e-12)
    assert_same(found, gradients(alone, layer, x))

    with torch.no_grad():
        theta, average, winners = layer.weight, x.mean((2, 3)), chosen(layer, x)
        arguments = dict(stride=layer.stride, padding=layer.padding, groups=layer.groups)
        g = upstream_of(y) * layer.scale[:, None, None]
        dispatched, dx, d = torch.empty_like(y), torch.empty_like(x), x.new_empty(len(x), len(theta))
        dtheta = torch.zeros_like(theta)
        for e in winners.unique().tolist():
            these = winners == e
            signs, kernel, mask = HandSign.apply(x[these]), theta[e], torch.ones_like(theta[e])
            if step == "binary":
                kernel, mask = HandSign.apply(kernel), (kernel.abs() < 1).double()
            dispatched[these] = F.conv2d(signs, kernel, **arguments) * layer.scale[:, None, None]
            d[these] = torch.stack(
                [(F.conv2d(signs, t * mask, **arguments) * g[these]).sum((1, 2, 3)) for t in theta], 1
            )
            dtheta[e] = nn.grad.conv2d_weight(signs, kernel.shape, g[these], **arguments) * mask
            dx[these] = nn.grad.conv2d_input(signs.shape, kernel, g[these], **arguments) * (x[these].abs() < 1)
        p = ((average @ layer.gate.weight.T + layer.gate.bias) / layer.gate.temperature).softmax(1)
        dz = p * (d - (p * d).sum(1, keepdim=True)) / layer.gate.temperature
        dx += (dz @ layer.gate.weight)[:, :, None, None] / x[0, 0].numel()
    assert len(winners.unique()) > 1
    assert torch.allclose(dispatched, y, rtol=0, atol=1e-12)
    expected = {"x": dx, "weight": dtheta, "gate.weight": dz.T @ average, "gate.bias": dz.sum(0)}
    assert_same({name: found[name] for name in expected}, expected)

    gathered = layer.weight[winners].flatten(0, 1)
    gathered = HandSign.apply(gathered) if step == "binary" else gathered
    by_hand = F.conv2d(
        HandSign.apply(x).reshape(1, -1, 7, 7), gathered, **{**arguments, "groups": len(x) * layer.groups}
    )
    assert torch.allclose(by_hand.view_as(y) * layer.scale[:, None, None], y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("step", ["experts", "binary"])
def test_only_the_chosen_experts_get_weight_gradients_and_all_gate_rows_do(step):
    layer, x = make(step), images()
    layer.gate.bias.data[2] = -5  # never chosen, yet compared
    winners = chosen(layer, x)
    found = gradients(layer(x), layer, x)
    assert torch.equal(layer.gate.counts, winners.bincount(minlength=4))
    reached = [bool(g.any()) for g in found["weight"]]
    assert reached == [i in winners for i in range(4)]
    assert 1 < sum(reached) < 4
    assert found["gate.weight"].abs().amax(1).min() > 0
    (of_first,) = torch.autograd.grad(layer(x)[0].sum(), layer.weight)
    assert [bool(g.any()) for g in of_first] == [i == winners[0] for i in range(4)]


@pytest.mark.parametrize("step", ["experts", "binary"])
def test_permuting_experts_with_their_gate_rows_permutes_gradients_and_nothing_else(step):
    layer, permuted, x, order = make(step), make(step), images(), [2, 0, 3, 1]
    for p in (permuted.weight, permuted.gate.weight, permuted.gate.bias):
        p.data = p.data[order]
    y, z = layer(x), permuted(x)
    assert torch.equal(y, z)
    found = gradients(y, layer, x)
    expected = {n: g[order] if n == "weight" or n.startswith("gate") else g for n, g in found.items()}
    assert_same(gradients(z, permuted, x), expected)


@pytest.mark.parametrize("step", ["experts", "binary"])
def test_a_constant_on_all_logits_changes_neither_output_nor_gradient(step):
    layer, shifted, x = make(step), make(step), images()
    shifted.gate.bias.data += 3
    y, z = layer(x), shifted(x)
    assert torch.equal(y, z)
    found = gradients(y, layer, x)
    assert_same(gradients(z, shifted, x), found)
    assert found["gate.bias"].abs().max() > 1e-3
    assert abs(found["gate.bias"].sum()) < 1e-12


@pytest.mark.parametrize(("step", "binarize"), [("fp", 0), ("one_expert", 1), ("experts", 1), ("binary", 2)])
def test_one_expert_is_an_ordinary_convolution_and_equal_experts_are_too(step, binarize):
    x = images()
    one = make(step, num_experts=1, groups=2)
    assert set(one.state_dict()) == {"weight", "scale"}
    conv = nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False).double()
    conv.weight.data = HandSign.apply(one.weight[0]) if binarize == 2 else one.weight[0]
    expected = conv(HandSign.apply(x) if binarize else x) * one.scale.view(8, 1, 1)
    assert torch.allclose(one(x), expected, rtol=0, atol=1e-12)

    many = make(step, groups=2)
    many.scale.data.copy_(one.scale)
    many.weight.data.copy_(one.weight.expand(4, -1, -1, -1, -1))
    for row in range(4):
        many.gate.bias.data = 100.0 * torch.eye(4)[row].double()
        assert torch.allclose(many(x), expected, rtol=0, atol=1e-12)


@given(
    kernel_size=st.sampled_from([1, 3]),
    stride=st.sampled_from([1, 2]),
    groups=st.sampled_from([1, 2, 4]),
    size=st.integers(3, 8),
    num_experts=st.integers(1, 4),
)
def test_binary_outputs_are_sums_of_as_many_signs_as_there_are_taps(kernel_size, stride, groups, size, num_experts):
    layer = ExpertBinaryConv2d(8, 12, kernel_size, stride, kernel_size // 2, groups=groups, num_experts=num_experts)
    x = images(4, 8, size).float()
    y = layer(x)
    inside = [
        sum(0 <= i * stride + tap < size for tap in range(-(kernel_size // 2), kernel_size // 2 + 1))
        for i in range(y.shape[2])
    ]
    taps = 8 // groups * torch.tensor(inside).outer(torch.tensor(inside)).float()  # zero padding adds nothing
    assert torch.equal(y, y.round())
    assert bool((y.abs() <= taps).all())
    assert not ((y - taps) % 2).any()
    layer.weight.data.zero_()  # sign(0) = +1
    y = layer(torch.zeros_like(x))
    assert torch.equal(y, taps.expand_as(y))


@pytest.mark.parametrize("gated", [False, True])
def test_the_gate_is_frozen_where_one_expert_computes(gated):
    layer = ExpertBinaryConv2d(8, 8, 3, num_experts=4 if gated else 1)
    keys = set(layer.state_dict())
    for step in (*STEPS, "one_expert", "fp"):
        layer.set_step(step)
        frozen = {name for name, p in layer.named_parameters() if not p.requires_grad}
        assert frozen == ({"gate.weight", "gate.bias"} if gated and step in ("fp", "one_expert") else set())
        assert set(layer.state_dict()) == keys


def test_initialisation():
    torch.manual_seed(0)
    layer = ExpertBinaryConv2d(64, 128, 3, groups=2, num_experts=4, rescale=True)
    bound = 1 / math.sqrt(32 * 9)  # the axis of experts is no part of the fan
    for expert in layer.weight:
        assert 0.99 * bound < expert.abs().max() <= bound
        assert expert.abs().mean().item() == pytest.approx(bound / 2, rel=0.02)
    assert len({expert.sum().item() for expert in layer.weight}) == 4
    assert layer.scale.tolist() == [1] * 128
    for linear, fan_in in ((layer.gate, 64), (layer.rescale[0], 64), (layer.rescale[2], 16)):
        assert 0.9 / math.sqrt(fan_in) < linear.weight.abs().max() <= 1 / math.sqrt(fan_in)
    assert [tuple(p.shape) for p in layer.rescale.parameters()] == [(16, 64), (128, 16)]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(("num_experts", "rescale"), [(1, False), (4, False), (1, True), (4, True)])
def test_deployed_cost_is_of_one_expert_that_computes_and_all_that_are_stored(step, num_experts, rescale):
    layer = ExpertBinaryConv2d(16, 32, 3, 2, 1, groups=4, num_experts=num_experts, rescale=rescale)
    layer.set_step(step)
    (cost,) = complexity.count(nn.Sequential(layer), (16, 7, 9)).layers
    kernel = 32 * 4 * 9
    gate, side = (num_experts > 1) * num_experts * 16, rescale * 4 * (16 + 32)
    real = 32 + gate + (num_experts > 1) * num_experts + side
    assert (cost.bops, cost.kept_bops, cost.flops, cost.kept_flops) == (kernel * 4 * 5, kernel * 4 * 5, 0, 0)
    assert cost.overhead_flops == gate + side
    assert (cost.params, cost.binary_params) == (num_experts * kernel + real, num_experts * kernel)
    assert cost.dense_params == kernel
    assert cost.size_bits == num_experts * kernel + 32 * real


def test_a_mixture_costs_real_experts_and_their_mixing():
    layer = ExpertBinaryConv2d(16, 32, 3, routing="mixture")
    (cost,) = complexity.count(nn.Sequential(layer), (16, 7, 7)).layers
    experts = 4 * 32 * 16 * 9
    assert (cost.binary_params, cost.overhead_flops) == (0, 4 * 16 + experts)
    assert cost.size_bits == 32 * (experts + 32 + 4 * 16 + 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(groups=3), "groups=3 do not divide .* 8 -> 16"),
        (dict(groups=16), "groups=16 do not divide .* 8 -> 16"),
        (dict(groups=0), "groups=0"),
        (dict(num_experts=0), "num_experts=0: .* at least one"),
        *((dict(temperature=value), f"temperature={value}: .* positive") for value in BAD_TEMPERATURES),
        (dict(gate_grad="tanh"), "gate_grad is one of softmax, sigmoid; got 'tanh'"),
        (dict(padding="full"), "padding is one of same, valid; got 'full'"),
        (dict(padding="same", stride=2), "padding='same' needs stride 1, not 2"),
        (dict(routing="soft"), "routing is one of winner, mixture; got 'soft'"),
        (dict(rescale=True, out_channels=7), "rescale has 7 // 8 hidden channels"),
    ],
)
def test_options_that_cannot_work_are_named(options, message):
    with pytest.raises(InputError, match=message):
        ExpertBinaryConv2d(**{**dict(in_channels=8, out_channels=16, kernel_size=3), **options})


def test_unknown_steps_are_named_and_change_nothing():
    layer = ExpertBinaryConv2d(8, 8, 3)
    with pytest.raises(InputError, match="step is one of fp, one_expert, experts, binary; got 'stage1'"):
        layer.set_step("stage1")
    with pytest.raises(InputError, match="fp_activation is one of identity, tanh; got 'relu'"):
        layer.set_step("fp", "relu")
    assert (layer.step, layer.gate.weight.requires_grad) == ("binary", True)
