"""Bits in place of weights: the packed layer's integers against the float layer's and taps counted one by one."""

import io
from dataclasses import fields

import pytest
import timm
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from networks import InputError, bits
from networks.complexity import Cost, count
from networks.expert_binary import ExpertBinaryConv2d, expert_layers, pack, packed
from networks.expert_binary.packed import PackedExpertConv2d

SMALL = dict(blocks=(1, 1, 1, 1), expansion=0.5, groups=(2, 4, 4, 8), stem="cifar", rescale=True, num_classes=10)


def inputs(batch, channels, height, width):
    """Small integers, so that some are exactly zero, with an offset that makes gates choose several experts."""
    x = torch.randint(-2, 3, (batch, channels, height, width)).float()
    return x + torch.randint(-1, 2, (batch, channels, 1, 1))


def valid_taps(layer, x):
    """Number of taps inside the image at each position, (H', W'), by looking at each."""
    per_group, (h, w) = layer.in_channels // layer.groups, x.shape[2:]
    counts = []
    for top in range(-layer.padding[0], h + layer.padding[0] - layer.kernel_size[0] + 1, layer.stride[0]):
        rows = sum(0 <= top + i < h for i in range(layer.kernel_size[0]))
        lefts = range(-layer.padding[1], w + layer.padding[1] - layer.kernel_size[1] + 1, layer.stride[1])
        counts.append([per_group * rows * sum(0 <= j + k < w for k in range(layer.kernel_size[1])) for j in lefts])
    return torch.tensor(counts)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@given(
    seed=st.integers(0, 1000),
    groups=st.sampled_from([1, 2, 3]),
    per_group=st.tuples(st.integers(1, 5), st.integers(1, 3)),
    kernel_size=st.sampled_from([1, 3, (2, 4)]),
    stride=st.sampled_from([1, 2, (2, 1)]),
    padding=st.sampled_from([0, 1, (1, 2), "same", "valid"]),
    dilation=st.sampled_from([1, 2]),
    num_experts=st.sampled_from([1, 4]),
    size=st.tuples(st.integers(5, 9), st.integers(7, 9)),
    chunk=st.sampled_from([1, 300, packed.CHUNK]),
)
@example(0, 2, (3, 2), (2, 4), 1, "same", 1, 4, (5, 7), 300)  # zeros on the right and the bottom only
def test_equals_the_float_layer_exactly_before_the_scale(
    seed, groups, per_group, kernel_size, stride, padding, dilation, num_experts, size, chunk
):
    torch.manual_seed(seed)
    c, o = (groups * n for n in per_group)
    stride = 1 if padding == "same" else stride  # else nn.Conv2d refuses
    layer = ExpertBinaryConv2d(c, o, kernel_size, stride, padding, dilation, groups, num_experts=num_experts)
    nn.init.zeros_(layer.weight[0, 0, 0])  # sign(0) = +1, of weights too
    x = inputs(3, c, *size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "CHUNK", chunk)
        other = pack(layer)
        assert torch.equal(other(x), layer(x).detach())
        everywhere = torch.full((3,), num_experts - 1)
        integers = other.dot(x, everywhere)
    assert integers.dtype == torch.int32
    signs = torch.where(x < 0, -1.0, 1.0), torch.where(layer.weight[-1] < 0, -1.0, 1.0)
    assert torch.equal(integers.float(), F.conv2d(*signs, None, stride, padding, dilation, groups))


@given(
    seed=st.integers(0, 1000),
    groups=st.sampled_from([1, 2]),
    kernel_size=st.sampled_from([1, 3]),
    stride=st.sampled_from([1, 2]),
    padding=st.sampled_from([0, 1]),
    size=st.tuples(st.integers(3, 7), st.integers(3, 7)),
)
def test_integers_within_the_taps_and_of_their_parity(seed, groups, kernel_size, stride, padding, size):
    """Oracle 11 for both layers: |y| <= K and y = K mod 2, K the taps inside the image."""
    torch.manual_seed(seed)
    layer = ExpertBinaryConv2d(6, 4, kernel_size, stride, padding, groups=groups)
    x = inputs(2, 6, *size)
    taps = valid_taps(layer, x)
    for y in (layer(x).detach(), pack(layer)(x)):
        assert torch.equal(y, y.round())
        assert (y.abs() <= taps).all()
        assert ((y - taps) % 2 == 0).all()


def test_padding_is_absent():
    """Equal signs give K: 2/3 of it on an edge, 4/9 in a corner, 0 of a kernel that sees nothing but padding."""
    layer = ExpertBinaryConv2d(16, 2, 3, padding=1, groups=2, num_experts=1)
    nn.init.ones_(layer.weight)
    expected = torch.tensor([[32, 48, 32], [48, 72, 48], [32, 48, 32]])
    for sign in (1, -1):
        integers = pack(layer).dot(sign * torch.ones(1, 16, 3, 3), torch.zeros(1, dtype=torch.int64))
        assert torch.equal(integers, sign * expected.expand(1, 2, 3, 3))
    wide = ExpertBinaryConv2d(8, 1, 1, padding=1, num_experts=1)
    y = pack(wide)(torch.randn(1, 8, 2, 2))
    assert (F.pad(torch.zeros(1, 1, 2, 2), (1, 1, 1, 1), value=1) * y == 0).all()
    assert (y[..., 1:3, 1:3] % 2 == 0).all()


def test_scale_rescale_and_gate_follow_in_float():
    torch.manual_seed(0)
    layer = ExpertBinaryConv2d(16, 24, 3, padding=1, groups=4, rescale=True)
    nn.init.uniform_(layer.scale, -1, 1)
    x = inputs(8, 16, 5, 5) + torch.randn(8, 16, 1, 1)
    assert len(set(layer.gate(x.mean((2, 3))).argmax(-1).tolist())) > 1
    assert torch.equal(pack(layer)(x), layer(x).detach())


@pytest.mark.parametrize("num_experts", [1, 4])
def test_a_packed_network_agrees(num_experts):
    torch.manual_seed(0)
    net = timm.create_model("expert_binary_resnet", num_experts=num_experts, **SMALL)
    x = torch.randn(8, 3, 32, 32) + 2 * torch.randn(8, 3, 1, 1)
    with torch.no_grad():
        net(x)  # statistics
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    other = pack(net)
    assert net.training  # and untouched
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    net.eval()
    chosen = {net: [], other: []}
    for network, choices in chosen.items():
        for layer in network.modules():
            if type(layer).__name__ == "Gate":
                layer.register_forward_hook(lambda _gate, _x, phi, to=choices: to.append(phi.argmax(-1).tolist()))
    with torch.no_grad():
        expected = net(x)
    logits = other(x)
    assert torch.allclose(logits, expected, rtol=1e-4, atol=1e-4 * expected.std())
    assert chosen[net] == chosen[other]
    assert len(chosen[net]) == (12 if num_experts > 1 else 0)
    assert num_experts == 1 or max(len(set(choice)) for choice in chosen[net]) > 1
    assert not other.training
    assert not logits.requires_grad
    assert not any(parameter.requires_grad for parameter in other.parameters())
    assert not expert_layers(other)


def test_stores_bits_and_costs_what_the_network_costs():
    """Kernels of 8 n bits, so that no byte has bits to spare; normalisation counts its batches in 64 bits."""
    net = timm.create_model("expert_binary_resnet", **{**SMALL, "expansion": 1})
    other = pack(net)
    reports = [count(network, (3, 32, 32)) for network in (net, other)]
    assert [getattr(reports[0], f.name) for f in fields(Cost)] == [getattr(reports[1], f.name) for f in fields(Cost)]
    assert not any(layer.uncounted for layer in reports[1].layers)
    state = other.state_dict()
    counters = sum(name.endswith("num_batches_tracked") for name in state)
    assert sum(tensor.nbytes for tensor in state.values()) == reports[0].size_bits // 8 + 8 * counters
    file = io.BytesIO()
    torch.save(state, file)
    assert len(file.getvalue()) < 1.05 * reports[0].size_bits / 8  # names, and room between tensors
    again = pack(timm.create_model("expert_binary_resnet", **{**SMALL, "expansion": 1}))
    again.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(again(x), other(x))


def test_one_layer_stores_bits_lowest_first():
    layer = ExpertBinaryConv2d(6, 4, 3, groups=2, num_experts=2)  # 27 bits in 4 bytes
    state = pack(layer).state_dict()
    assert set(state) == {"kernels", "scale", "gate.weight", "gate.bias"}
    assert state["kernels"].dtype == torch.uint8
    assert state["kernels"].shape == (2, 4, 4)
    assert torch.equal(state["kernels"][1, 3], bits.pack(layer.weight[1, 3] >= 0))


def test_average_of_normalised_is_normalised_average():
    """Oracle 13: gate and rescale of a deployed network need no normalised image, only its average."""
    norm = nn.BatchNorm2d(5, eps=1e-4, dtype=torch.float64)
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(norm.running_var, 0.01, 2)
    x = torch.randn(4, 5, 7, 3, dtype=torch.float64)
    of_average = norm.eval()(x.mean((2, 3), keepdim=True)).flatten(1)
    assert torch.allclose(norm(x).mean((2, 3)), of_average, rtol=1e-12, atol=1e-12)


def test_shared_layers_stay_shared():
    layer = ExpertBinaryConv2d(4, 4, 1)
    other = pack(nn.Sequential(layer, nn.BatchNorm2d(4), layer))
    assert isinstance(other[0], PackedExpertConv2d)
    assert other[0] is other[2]


def test_what_has_real_weights_is_refused():
    layer = ExpertBinaryConv2d(4, 4, 1)
    for step in ("fp", "one_expert", "experts"):
        layer.set_step(step)
        with pytest.raises(InputError, match=f"layer 1 is at step '{step}'.* set_step"):
            pack(nn.Sequential(nn.BatchNorm2d(4), layer))
    with pytest.raises(InputError, match=r"layer 0 mixes real experts .* routing='winner'"):
        pack(nn.Sequential(ExpertBinaryConv2d(4, 4, 1, routing="mixture")))
    with pytest.raises(InputError, match="no expert binary convolution to pack"):
        pack(nn.Sequential(nn.Conv2d(4, 4, 1)))
