"""complexity.count against closed forms and against figures that timm publishes."""

import json

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

import networks
from networks import InputError, complexity
from networks.complexity import Cost, count


def test_closed_forms_of_a_convolution_and_a_linear_layer():
    net = nn.Sequential(
        nn.Conv2d(8, 12, (3, 5), stride=2, padding=1, groups=4), nn.BatchNorm2d(12), nn.Flatten(), nn.Linear(108, 7)
    )
    report = count(net, (8, 5, 7))
    assert report.layers[0].output_size == (12, 3, 3)
    conv_weights = 12 * 2 * 3 * 5
    assert report.flops == 9 * conv_weights + 108 * 7
    assert report.params == conv_weights + 12 + 24 + 108 * 7 + 7
    assert report.size_bits == 32 * (report.params + 24)  # running mean and variance are stored too
    assert (report.bops, report.overhead_flops, report.binary_params) == (0, 0, 0)
    assert (report.kept_flops, report.dense_params) == (report.flops, report.params)
    assert report.output_size == (7,)


def test_closed_form_of_one_dimensional_networks():
    assert count(nn.Sequential(nn.Conv1d(1, 16, 64, stride=2)), (1, 1000)).flops == 16 * 64 * 469


@pytest.mark.parametrize(("weight_bits", "activation_bits"), [(1, 1), (1, 32), (32, 1)])
def test_a_bop_needs_one_bit_on_both_sides(weight_bits, activation_bits):
    layer = nn.Linear(10, 3)
    layer.weight_bits, layer.activation_bits = weight_bits, activation_bits
    report = count(nn.Sequential(layer), (10,))
    binary = weight_bits == activation_bits == 1
    assert (report.flops, report.bops) == ((0, 30) if binary else (30, 0))
    assert (report.kept_flops, report.kept_bops) == (report.flops, report.bops)
    assert report.size_bits == 30 * weight_bits + 3 * 32
    assert report.binary_params == (30 if weight_bits == 1 else 0)


# Millions of parameters and GMACs from timm's results/benchmark-infer-amp-nhwc-pt240-cu124-rtx3090.csv, at 224 px;
# that table is rounded, and counts normalisation too.
@pytest.mark.parametrize(
    ("name", "params", "gmacs"),
    [
        ("resnet18", 11.69, 1.82),
        ("resnet34", 21.80, 3.67),
        ("mobilenetv2_100", 3.50, 0.31),
        ("mixer_s16_224", 18.53, 3.79),
        ("vit_tiny_patch16_224", 5.72, 1.26),
        ("rexnet_100", 4.80, 0.41),
    ],
)
def test_timm_networks(name, params, gmacs):
    net = timm.create_model(name)
    report = count(net, (3, 224, 224))
    assert round(report.params / 1e6, 2) == params
    assert report.params == sum(p.numel() for p in net.parameters())
    assert report.flops / 1e9 == pytest.approx(gmacs, rel=0.035)
    assert report.flops == sum(layer.flops for layer in report.layers)


def test_resnet18_by_hand():
    with torch.device("meta"):
        net = timm.create_model("resnet18")
    stem, stage1 = 64 * 147 * 112**2, 4 * 64 * 576 * 56**2
    later = [
        (c * (c // 2) * 9 + 3 * c * c * 9 + c * (c // 2)) * side**2 for c, side in ((128, 28), (256, 14), (512, 7))
    ]
    assert count(net, (3, 224, 224)).flops == stem + stage1 + sum(later) + 512_000


def test_functional_work_is_booked_to_the_module_that_does_it():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(8, 24)

        def forward(self, x):
            q, k, v = self.qkv(x).chunk(3, -1)
            return (q @ k.transpose(-1, -2)).softmax(-1) @ v

    report = count(nn.Sequential(Attention(), nn.Linear(8, 2)), (5, 8))
    rows = {layer.name: layer.flops for layer in report.layers}
    assert rows == {"0": 2 * 5 * 5 * 8, "0.qkv": 5 * 8 * 24, "1": 5 * 8 * 2}


def test_shared_and_repeated_layers_are_stored_once_and_computed_each_time():
    shared = nn.Linear(4, 4)
    report = count(nn.Sequential(shared, nn.ReLU(), shared), (4,))
    assert (report.params, report.flops) == (20, 32)
    tied = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    tied[1].weight = tied[0].weight
    assert (count(tied, (4,)).params, count(tied, (4,)).size_bits) == (16, 16 * 32)
    ticket = networks.biprop.SubnetLinear(4, 4, keep_fraction=0.5)
    report = count(nn.Sequential(ticket, ticket), (4,))
    assert (report.params, report.flops, report.kept_flops) == (8, 32, 16)


def test_a_ticket_is_counted_as_deployed_in_any_mode_and_left_alone():
    net = timm.create_model("conv2", img_size=8, in_chans=1)
    networks.biprop.apply(net, 0.2)
    net.eval()(torch.randn(2, 1, 8, 8))  # keeps masks
    before = {name: value.clone() for name, value in net.state_dict().items()}
    report = count(net, (1, 8, 8))
    assert count(net.train(), (1, 8, 8)) == report
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    sizes = {layer.name: (layer.dense_params, layer.params) for layer in report.layers}
    assert sizes["convs.2"] == (36864, 7373)
    conv = next(layer for layer in report.layers if layer.name == "convs.2")
    assert (conv.flops, conv.kept_flops) == (36864 * 64, 7373 * 64)
    assert conv.size_bits == 36864 + 7373 + 32  # mask, signs of the kept, gain
    assert report.size_bits == sum(dense + kept + 32 for dense, kept in sizes.values())


@pytest.mark.parametrize(("binarize", "bias"), [("sign_gain", True), ("none", True), ("none", False)])
def test_stored_bits_of_a_masked_layer(binarize, bias):
    layer = networks.biprop.SubnetLinear(10, 6, bias, keep_fraction=0.25, binarize=binarize)
    report = count(nn.Sequential(layer), (10,))
    binary, biases = binarize == "sign_gain", 6 * bias
    assert (report.params, report.dense_params) == (15 + biases, 60 + biases)
    assert report.binary_params == 15 * binary
    assert report.size_bits == 60 + (15 + 32 if binary else 15 * 32) + 32 * biases


class Stateful(nn.Module):
    """Buffers of every kind, and a tensor that is none."""

    def __init__(self):
        super().__init__()
        self.register_buffer("saved", torch.zeros(3))
        self.register_buffer("steps", torch.zeros(3, dtype=torch.int64))
        self.register_buffer("derived", torch.zeros(3), persistent=False)
        self.plain = torch.ones(3)

    def forward(self, x):
        return x + self.saved + self.derived + self.plain


def test_only_what_must_be_stored_has_a_size():
    assert count(Stateful(), (3,)).size_bits == 3 * 32


class Custom(nn.Module):
    """A layer that states its own cost."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x):
        return self.inner(self.inner(x))

    def deployed_cost(self, x, y):
        return Cost(params=5, flops=x.numel() * y.numel(), overhead_flops=3)


def test_deployed_cost_stands_for_everything_inside():
    report = count(nn.Sequential(Custom(), nn.Linear(4, 1)), (4,))
    assert [layer.name for layer in report.layers] == ["0", "1"]
    assert (report.params, report.flops, report.overhead_flops) == (5 + 5, 16 + 4, 3)


def test_what_cannot_be_counted_is_unknown_and_says_why():
    class Distance(nn.Module):
        def forward(self, x):
            return torch.cdist(x, x)

    report = count(nn.Sequential(nn.Linear(3, 3), Distance()), (5, 3))
    assert report.flops is None
    assert report.params == 12
    assert [layer.flops for layer in report.layers] == [45, None]
    assert "unknown: 1: aten::_" in str(report)
    assert json.loads(json.dumps(report.to_dict()))["flops"] is None

    class DataDependent(nn.Module):
        def forward(self, x):
            return F.relu(x).nonzero()

    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum().item() > 0 else -x

    for layer in (DataDependent(), Branching()):
        report = count(nn.Sequential(nn.Linear(3, 3), layer), (3,))
        assert (report.params, report.flops, report.bops) == (12, None, 0)

    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.custom = Custom()

        def forward(self, x):
            return x

    report = count(Unused(), (4,))
    assert report.params is None
    assert "unknown: custom: its forward was not called" in str(report)


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x @ x[0],
        lambda x: x[0].dot(x[0]),
        lambda x: torch.addmv(x[0], x, x[0]),
        lambda x: torch.addr(x, x[0], x[0]),
        lambda x: F.bilinear(x, x, x.expand(2, 3, 3)),
        lambda x: torch.fft.rfft(x),
        lambda x: torch.linalg.qr(x)[0],
        lambda x: torch.linalg.solve(x, x),
        lambda x: F.pdist(x),
    ],
)
def test_operations_without_a_formula_are_unknown(operation):
    class Layer(nn.Module):
        def forward(self, x):
            return operation(x[0])

    assert count(Layer(), (3, 3)).flops is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_precisions_and_layers_called_by_keyword(dtype):
    class Keyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.ticket = networks.biprop.SubnetConv2d(4, 4, 1, keep_fraction=0.5)

        def forward(self, x):
            return self.ticket(x=self.conv(input=x))

    assert count(Keyword().to(dtype), (3, 4, 4)).kept_flops == 4 * 27 * 4 + 4 * 8


def test_refuses_an_input_that_the_network_does_not_accept():
    with torch.device("meta"):
        net = timm.create_model("resnet18")
    with pytest.raises(InputError, match="ResNet does not accept an input of 1x8000: "):
        count(net, (1, 8000))


def test_table_shows_layers_totals_and_the_definition():
    net = timm.create_model("conv2", activation="sign", img_size=8, in_chans=1)
    networks.biprop.apply(net, 0.5)
    lines = str(count(net, (1, 8, 8))).splitlines()
    assert lines[0].split()[:3] == ["layer", "type", "output"]
    assert lines[2].split()[:3] == ["convs.0", "SubnetConv2d", "64x8x8"]
    assert "multiply-adds, each counted once, for one input of 1x8x8" in lines[-1]
    assert "overhead" not in lines[0]
    assert complexity.Report().params == 0


class Tangled(nn.Module):
    """Modules inside modules, one that is called twice, one never, and one that gives no single tensor."""

    class Twins(nn.Module):
        def forward(self, x):
            return x, x

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 6, 3, stride=2), nn.Sequential(nn.ReLU(), nn.AvgPool2d(2)))
        self.unused = nn.Linear(3, 3)
        self.twins = self.Twins()
        self.head = nn.Linear(6, 6)

    def forward(self, x):
        x, _ = self.twins(self.body(x))
        return self.head(self.head(x.flatten(2).transpose(1, 2))[:, 0])


def test_sizes_of_outputs_by_hand():
    assert list(complexity.output_sizes(Tangled(), (2, 9, 11)).items()) == [
        ("", (6,)),  # of (N, 2, 9, 11) comes (N, 6, 4, 5), and (N, 6, 2, 2) from the pool
        ("body", (6, 2, 2)),
        ("body.0", (6, 4, 5)),
        ("body.1", (6, 2, 2)),
        ("body.1.0", (6, 4, 5)),
        ("body.1.1", (6, 2, 2)),
        ("head", (6,)),  # of its last call
    ]
    with pytest.raises(InputError, match="Tangled does not accept an input of 3x9x11: "):
        complexity.output_sizes(Tangled(), (3, 9, 11))


@pytest.mark.parametrize("name", ["expert_binary_resnet", "resnet18", "vit_tiny_patch16_224"])
def test_sizes_of_outputs_are_those_of_a_real_forward_and_leave_the_network_alone(name):
    small = {"blocks": (1, 1, 1, 1), "expansion": 0.125, "groups": (1, 1, 1, 1)}
    net = timm.create_model(name, **(small if name == "expert_binary_resnet" else {}))
    size = (3, 224, 224) if name.startswith("vit") else (3, 64, 64)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    sizes = complexity.output_sizes(net.train(), size)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    assert net.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    seen = {}
    for key, module in net.named_modules():
        module.register_forward_hook(lambda _, args, y, key=key: seen.update({key: tuple(y.shape[1:])}))
    with torch.no_grad():
        net.eval()(torch.randn(2, *size))
    assert sizes == seen
    assert list(sizes) == [key for key, _ in net.named_modules() if key in seen]
    assert len(sizes) > 50
