"""Both schemes of the routed convolution against the literal one by autograd, on every shape, and what each may do."""

import pytest
import timm
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch._dynamo.backends.debugging import aot_eager
from torch.nn import functional as F

from networks.expert_binary import ExpertBinaryConv2d, expert_layers, routed
from networks.expert_binary.routed import Geometry, per_expert_pays, routed_conv2d

# Distinct layers of the final network at 224 pixels: C, O, k, stride, G and the side of the input.
SHAPES = [
    (64, 128, 3, 1, 4, 56), (128, 128, 3, 1, 4, 56), (128, 128, 1, 1, 1, 56), (128, 256, 3, 2, 8, 56),
    (256, 256, 3, 1, 8, 28), (256, 256, 1, 1, 1, 28), (256, 512, 3, 2, 8, 28), (512, 512, 3, 1, 8, 14),
    (512, 512, 1, 1, 1, 14), (512, 1024, 3, 2, 16, 14), (1024, 1024, 3, 1, 16, 7), (1024, 1024, 1, 1, 1, 7),
]  # fmt: skip
SCHEMES = pytest.mark.parametrize("per_expert", [False, True], ids=["per sample", "per expert"])
STEPS = pytest.mark.parametrize("binary", [False, True], ids=["experts", "binary"])


class HandSign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, v):
        ctx.save_for_backward(v)
        return torch.where(v < 0, -torch.ones_like(v), torch.ones_like(v))

    @staticmethod
    def backward(ctx, g):
        (v,) = ctx.saved_tensors
        return torch.where((v <= -1) | (v >= 1), torch.zeros_like(g), g)


def literal(x, experts, phi, geometry, binary):
    """The mixture sum_i phi_bi Theta_i, quantised, in one convolution with B G groups; autograd does the rest."""
    kernels = torch.einsum("bn,noikl->boikl", phi, experts)
    kernels = HandSign.apply(kernels) if binary else kernels
    wide = x.reshape(1, -1, *x.shape[2:])
    y = F.conv2d(wide, kernels.flatten(0, 1), None, *geometry[:3], len(x) * geometry.groups)
    return y.view(len(x), -1, *y.shape[2:])


def inputs(x_shape, experts_shape, chosen, dtype=torch.float64, seed=0):
    """Signs; weights with exact zeros and ones, some of them outside of (-1, 1); the given choice."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(x_shape, generator=generator, dtype=dtype).sign()
    experts = torch.randn(experts_shape, generator=generator, dtype=dtype).mul_(4).round_().div_(4)
    phi = F.one_hot(torch.as_tensor(chosen, dtype=torch.int64), experts_shape[0]).to(dtype)
    return [t.requires_grad_() for t in (x, experts, phi)]


def assert_same(arguments, geometry, binary, per_expert, tolerance):
    """Values and gradients, to a tolerance times the largest number of each, against the literal version in float64.

    In float32 that version itself is off by up to 1e-5 where a kernel has a million numbers, more than ours.
    """
    exact = [t.detach().double().requires_grad_() for t in arguments]
    y, expected = routed_conv2d(*arguments, geometry, binary, per_expert), literal(*exact, geometry, binary)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    found = torch.autograd.grad(y, arguments, upstream)
    for a, b in zip((y, *found), (expected, *torch.autograd.grad(expected, exact, upstream.double())), strict=True):
        assert (a.shape, a.dtype) == (b.shape, y.dtype)
        assert (a - b).abs().max() <= tolerance * b.abs().max()
    return found


def test_the_shapes_are_those_of_the_final_network():
    net, seen = timm.create_model("expert_binary_deep_1262_2_4_8_8_16", num_experts=1), set()

    def look(layer, args, _):
        sizes = layer.in_channels, layer.out_channels, layer.kernel_size[0], layer.stride[0], layer.groups
        seen.add((*sizes, args[0].shape[-1]))

    for layer in expert_layers(net).values():
        layer.register_forward_hook(look)
    with torch.no_grad():
        net.to("meta")(torch.empty(2, 3, 224, 224, device="meta"))
    assert seen == set(SHAPES)


@SCHEMES
@STEPS
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_layer_of_the_final_network_equals_the_literal_version(shape, binary, per_expert):
    c, o, k, stride, groups, size = shape
    geometry = Geometry((stride, stride), (k // 2, k // 2), (1, 1), groups)
    sizes = (3, c, size, size), (4, o, c // groups, k, k), [2, 0, 2]
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        _, dexperts, dphi = assert_same(inputs(*sizes, dtype), geometry, binary, per_expert, tolerance)
        assert [bool(g.any()) for g in dexperts] == [True, False, True, False]  # exactly zero where none chose it
        assert dphi.all()


@given(data=st.data())
@settings(max_examples=200)
def test_any_geometry_equals_the_literal_version(data):
    groups = data.draw(st.sampled_from([1, 2, 4, 8, 16, 32]))
    c, o = (groups * data.draw(st.integers(1, 3)) for _ in range(2))
    pairs = [
        data.draw(st.tuples(*2 * [values])) for values in (st.integers(1, 3), st.integers(0, 2), st.integers(1, 2))
    ]
    kernel = data.draw(st.sampled_from([(1, 1), (3, 3), (1, 3), (2, 2)]))
    size = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    geometry = Geometry(*pairs, groups)
    assume(all(s + 2 * p > d * (k - 1) for s, p, d, k in zip(size, *pairs[1:], kernel, strict=True)))
    experts, batch = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 6))
    chosen = data.draw(st.lists(st.integers(0, experts - 1), min_size=batch, max_size=batch))
    arguments = inputs((batch, c, *size), (experts, o, c // groups, *kernel), chosen, seed=data.draw(st.integers(0, 9)))
    for per_expert in (False, True):
        for binary in (False, True):
            found = routed_conv2d(*arguments, geometry, binary, per_expert)
            expected = literal(*arguments, geometry, binary)
            upstream = torch.ones_like(found)
            gradients = (torch.autograd.grad(y, arguments, upstream) for y in (found, expected))
            for a, b in ((found, expected), *zip(*gradients, strict=True)):
                assert torch.allclose(a, b, rtol=1e-10, atol=1e-10)


@SCHEMES
@STEPS
@pytest.mark.parametrize(
    "chosen", [[3] * 9, [0] * 9, [0, 1, 2, 3, 3, 2, 1, 0, 1], [5, 0, 5, 5, 5, 5, 5, 5, 5], [1]], ids=str
)
def test_any_routing(chosen, binary, per_expert, monkeypatch):
    monkeypatch.setattr(routed, "AT_ONCE", 2 * 8 * 4 * 9)  # kernels of two samples: nine are made in several pieces
    arguments = inputs((len(chosen), 8, 7, 5), (6, 8, 4, 3, 3), chosen)
    _, dexperts, _ = assert_same(arguments, Geometry((1, 1), (1, 1), (1, 1), 2), binary, per_expert, 1e-12)
    assert [bool(g.any()) for g in dexperts] == [i in chosen for i in range(6)]


@SCHEMES
@pytest.mark.parametrize("kernel", [1, 3])
def test_gradients_are_finite_differences(per_expert, kernel):
    """In phi: of the mixture, for the choice itself is constant; it is linear in each argument, so they are exact."""
    geometry = Geometry((1, 1), (kernel // 2, kernel // 2), (1, 1), 2)
    arguments = inputs((3, 4, 4, 3), (3, 6, 2, kernel, kernel), [2, 0, 2])
    y = routed_conv2d(*arguments, geometry, False, per_expert)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    found = torch.autograd.grad(y, arguments, upstream)
    with torch.no_grad():
        for place, gradient in enumerate(found):
            for i in range(gradient.numel()):
                ends = []
                for change in (0.5, -0.5):
                    moved = [t.clone() for t in arguments]
                    moved[place].view(-1)[i] += change
                    ends.append((literal(*moved, geometry, False) * upstream).sum())
                assert gradient.flatten()[i].item() == pytest.approx((ends[0] - ends[1]).item(), abs=1e-10)
    assert torch.autograd.gradcheck(
        lambda x, experts: routed_conv2d(x, experts, arguments[2], geometry, False, per_expert), arguments[:2]
    )


def test_an_empty_batch_is_evaluated():
    """Of a process whose share of the last batch is empty."""
    x, experts, phi = inputs((0, 8, 7, 5), (6, 8, 4, 3, 3), [])
    assert routed_conv2d(x, experts, phi, Geometry((2, 2), (1, 1), (1, 1), 2), True, True).shape == (0, 8, 4, 3)


def test_which_scheme():
    x, meta = torch.empty(2, 3, 4, 4), torch.empty(2, 3, 4, 4, device="meta")
    assert not per_expert_pays(x, 1 << 16)
    assert per_expert_pays(x, (1 << 16) + 1)
    assert not per_expert_pays(meta, 1 << 20)
    with torch.no_grad():
        assert per_expert_pays(x, 1)
    on_gpu = type("Tensor", (), {"is_meta": False, "device": torch.device("cuda")})()
    assert not per_expert_pays(on_gpu, 1 << 20)
    with torch.no_grad():  # as a training step asks its teacher
        assert not per_expert_pays(on_gpu, 1 << 20)
    with torch.inference_mode():
        assert per_expert_pays(on_gpu, 1)


def test_the_layer_goes_by_the_size_of_one_kernel(monkeypatch):
    schemes = []

    def record(*arguments):
        schemes.append(arguments[-1])
        return routed_conv2d(*arguments)

    monkeypatch.setattr("networks.expert_binary.layers.routed_conv2d", record)
    for channels in (64, 128):  # 36,864 and 73,728 numbers, of four experts more than 2^16 both
        ExpertBinaryConv2d(64, channels, 3)(torch.randn(2, 64, 3, 3))
    assert schemes == [False, True]


def test_few_gradients_of_kernels_are_made_at_once(monkeypatch):
    monkeypatch.setattr(routed, "AT_ONCE", 3 * 8 * 4 * 9 + 1)
    made, residual = [], routed._residual

    def record(x, *arguments):
        made.append(len(x))
        return residual(x, *arguments)

    monkeypatch.setattr(routed, "_residual", record)
    arguments = inputs((9, 8, 7, 5), (6, 8, 4, 3, 3), [0, 5, 0, 0, 0, 0, 0, 0, 0])
    assert_same(arguments, Geometry((1, 1), (1, 1), (1, 1), 2), True, True, 1e-12)
    assert made == [3, 3, 2, 1]
    monkeypatch.setattr(routed, "AT_ONCE", 1)
    assert_same(arguments, Geometry((1, 1), (1, 1), (1, 1), 2), True, True, 1e-12)
    assert made[4:] == [1] * 9


def test_without_values_a_layer_can_be_followed_and_exported():
    layer = ExpertBinaryConv2d(8, 16, 3, padding=1).eval()
    x = torch.randn(5, 8, 6, 6)
    with torch.no_grad():
        exported = torch.export.export(layer, (x,), strict=False)
        assert torch.allclose(exported.module()(x), layer(x), atol=1e-5)


def test_functional_gradients():
    layer, x = layer_and_images()
    parameters = dict(layer.named_parameters())

    def loss(parameters):
        return torch.func.functional_call(layer, parameters, x).square().mean()

    found = torch.func.grad(loss)(parameters)
    expected = torch.autograd.grad(loss(parameters), list(parameters.values()))
    for name, value in zip(parameters, expected, strict=True):
        assert torch.allclose(found[name], value)


def layer_and_images(**options):
    torch.manual_seed(0)
    layer = ExpertBinaryConv2d(8, 16, 3, padding=1, groups=2, **options)
    x = torch.randn(8, 8, 6, 5) + torch.randn(8, 8, 1, 1)
    return layer, x


def test_evaluation_is_one_ordinary_convolution_for_each_expert_in_use(monkeypatch):
    layer, x = layer_and_images()
    layer.gate.bias.data[2] = -9  # no sample takes it
    expected = layer(x)
    used = layer.gate(x.mean((2, 3))).argmax(-1).unique()
    calls = []

    def conv2d(images, kernel, *arguments):
        calls.append((len(images), tuple(kernel.shape), arguments[-1]))
        return torch.conv2d(images, kernel, *arguments)

    monkeypatch.setattr(F, "conv2d", conv2d)
    with torch.no_grad():
        assert torch.allclose(layer.eval()(x), expected, atol=1e-5)
    assert 1 < len(calls) == len(used) < 4
    assert sum(samples for samples, *_ in calls) == len(x)
    assert {call[1:] for call in calls} == {((16, 4, 3, 3), 2)}


@SCHEMES
def test_neither_scheme_keeps_a_kernel_for_each_sample(per_expert):
    x, experts, phi = inputs((50, 8, 3, 3), (4, 16, 8, 3, 3), [0, 1] * 25)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        routed_conv2d(x, experts, phi, Geometry((1, 1), (1, 1), (1, 1), 1), True, per_expert)
    assert sorted(kept) == sorted([x.numel(), experts.numel(), 50])


@SCHEMES
@pytest.mark.parametrize("kernel", [1, 3])
def test_channels_last_comes_out_as_it_went_in(per_expert, kernel):
    arguments = inputs((6, 8, 6, 5), (4, 16, 8, kernel, kernel), [0, 3, 1, 0, 3, 0])
    geometry = Geometry((1, 1), (kernel // 2,) * 2, (1, 1), 1)
    expected = routed_conv2d(*arguments, geometry, True, per_expert)
    last = arguments[0].detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    y = routed_conv2d(last, *arguments[1:], geometry, True, per_expert)
    assert expected.is_contiguous()
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(y, expected)
    assert_same([last, *arguments[1:]], geometry, True, per_expert, 1e-12)


@SCHEMES
@STEPS
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_its_dtype_and_compares_experts_in_float32(per_expert, binary, kernel, dtype):
    arguments = inputs((6, 8, 6, 5), (4, 16, 8, kernel, kernel), [0, 3, 1, 0, 3, 0], torch.float32)
    geometry = Geometry((1, 1), (kernel // 2,) * 2, (1, 1), 1)
    with torch.autocast("cpu", dtype):
        y = routed_conv2d(*arguments, geometry, binary, per_expert)
        expected = literal(*arguments, geometry, binary)
        other = torch.float16 if dtype == torch.bfloat16 else torch.bfloat16
        assert torch.equal(routed_conv2d(arguments[0].to(other), *arguments[1:], geometry, binary, per_expert), y)
    assert y.dtype == expected.dtype == dtype
    assert torch.equal(y, expected)  # of quarters and few taps: exact
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    found = torch.autograd.grad(y, arguments, upstream)
    assert [g.dtype for g in found] == [torch.float32] * 3
    exact = literal(*arguments, geometry, binary)
    for a, b in zip(found, torch.autograd.grad(exact, arguments, upstream.float()), strict=True):
        assert (a - b).abs().max() <= 0.02 * b.abs().max()
    double = [t.detach().double() for t in arguments]
    with torch.autocast("cpu", dtype):
        assert routed_conv2d(*double, geometry, binary, per_expert).dtype == torch.float64


def test_meta_tensors_pass_a_training_step():
    """They have no values: what would wait for a GPU fails on them."""
    with torch.device("meta"):
        layer = ExpertBinaryConv2d(256, 512, 3, padding=1)  # large: on a CPU it would go per expert
    y = layer(torch.empty(4, 256, 7, 7, device="meta"))
    y.sum().backward()
    assert y.shape == (4, 512, 7, 7)
    assert all(p.grad.shape == p.shape for p in layer.parameters())


@pytest.mark.parametrize("small", [0, 1 << 16], ids=["per expert", "per sample"])
def test_compiled(small, monkeypatch):
    monkeypatch.setattr(routed, "SMALL_KERNEL", small)
    torch.compiler.reset()
    layer, x = layer_and_images(temperature=2.0)
    network = nn.Sequential(nn.BatchNorm2d(8), layer, nn.PReLU(16))
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return aot_eager(graph, inputs)

    # The compiler of torch 2.4 follows neither the check of a Literal nor setup_context: more graphs, the same results.
    whole = small > 0 and not torch.__version__.startswith("2.4.")
    compiled = torch.compile(network, backend=backend, fullgraph=whole)
    results = []
    for run in (network, compiled):
        network.zero_grad()
        y = run(x)
        y.square().mean().backward()
        results.append([y, *(p.grad for p in network.parameters())])
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)
    made = len(graphs)
    for _ in range(3):  # another routing is not another graph
        compiled(x + torch.randn(8, 8, 1, 1))
    assert len(graphs) == made
    with torch.no_grad():
        assert torch.equal(torch.compile(network.eval(), backend="aot_eager")(x), network(x))
