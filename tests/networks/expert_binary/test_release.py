"""Checkpoints in the layout of the authors' packed release, against a literal version of what it computes."""

import re

import pytest
import timm
import torch
from torch.nn import functional as F

from networks import InputError
from networks.expert_binary import expert_layers, from_release

SMALL = dict(blocks=(1, 1, 2, 1), expansion=0.25, groups=(2, 4, 4, 8), num_experts=3, num_classes=10)
FINAL = dict(blocks=(1, 2, 6, 2), expansion=2, groups=(4, 8, 8, 16), num_experts=4, num_classes=1000)


def released(blocks, expansion, groups, num_experts, num_classes, device=None):
    """State of a released network of random values, and the names in it of what is not a parameter."""
    state, torch_options = {}, dict(dtype=torch.float64, device=device)

    def put(name, *size, low=-1.0, high=1.0):
        state[name] = torch.empty(size, **torch_options).uniform_(low, high)

    def norm(name, c):
        put(f"{name}.weight", c, low=-1.5)  # some negative
        put(f"{name}.bias", c)
        put(f"{name}.running_mean", c)
        put(f"{name}.running_var", c, low=0.01)  # small enough to tell 1e-4 from 1e-5
        state[f"{name}.num_batches_tracked"] = torch.tensor(7, device=device)

    def expert_conv(name, c, o, k, g, rescaled):
        put(f"{name}.weight", num_experts, o, c // g, k, k)
        put(f"{name}.alpha2", 1, o, 1, 1)
        put(f"{name}.fc.weight", num_experts, c)
        put(f"{name}.fc.bias", num_experts)
        if rescaled:
            put(f"{name}.se_fc.0.weight", o // 8, c)
            put(f"{name}.se_fc.2.weight", o, o // 8)

    for name, c, o, k in (("conv1", 3, 32, 3), ("conv2_1", 32, 16, 1), ("conv2_2", 16, 32, 3), ("conv3", 64, 64, 1)):
        put(f"{name}.0.weight", o, c, k, k)
        norm(f"{name}.1", o)
    c = 64
    for stage, (count, g) in enumerate(zip(blocks, groups, strict=True)):
        o = int(64 * 2**stage * expansion)
        for block in (f"layer{stage + 1}.{i}" for i in range(count)):
            for unit, (c_in, k) in enumerate(((c, 3), (o, 3), (o, 1)), 1):
                norm(f"{block}.bn{unit}", c_in)
                expert_conv(f"{block}.conv{unit}", c_in, o, k, g if k == 3 else 1, rescaled=True)
                put(f"{block}.activation{unit}.weight", o)
            if block.endswith(".0"):  # stride 2, or other channels
                for place, (c_in, c_out) in ((1, (c, c // 4)), (4, (c // 4, o))):
                    expert_conv(f"{block}.downsample.{place}", c_in, c_out, 1, 1, rescaled=False)
                    norm(f"{block}.downsample.{place + 1}", c_out)
                    put(f"{block}.downsample.{place + 2}.weight", c_out)
            c = o
    put("fc.weight", num_classes, c)
    put("fc.bias", num_classes)
    return state


def literal(state, x, groups):
    """Logits as the release computes them, one sample at a time; torch's sign, with its three values."""

    def norm(name, x, eps):
        of = [state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *of, eps=eps)

    def stem(name, x, stride=1):
        weight = state[f"{name}.0.weight"]
        return norm(f"{name}.1", F.conv2d(x, weight, None, stride, weight.shape[-1] // 2), 1e-5).relu()

    def unit(block, number, x, stride, g):
        name = f"{block}.conv{number}"
        x = norm(f"{block}.bn{number}", x, 1e-4)
        average = x.mean((2, 3))[0]
        expert = (state[f"{name}.fc.weight"] @ average + state[f"{name}.fc.bias"]).softmax(0).argmax()
        weight = state[f"{name}.weight"][expert]
        signs = x.sign(), weight.sign()
        assert all((tensor != 0).all() for tensor in signs)
        y = F.conv2d(*signs, None, stride, weight.shape[-1] // 2, groups=g) * state[f"{name}.alpha2"]
        hidden = (state[f"{name}.se_fc.0.weight"] @ average).relu()
        y = y * (state[f"{name}.se_fc.2.weight"] @ hidden).sigmoid().view(1, -1, 1, 1)
        return F.prelu(y, state[f"{block}.activation{number}.weight"])

    def shortcut(block, x, stride):
        if f"{block}.downsample.1.weight" not in state:
            return x
        x = F.avg_pool2d(x, stride, stride, ceil_mode=True, count_include_pad=False)
        for place in (1, 4):
            name = f"{block}.downsample.{place}"
            x = F.conv2d(x, state[f"{name}.weight"][0]) * state[f"{name}.alpha2"]
            x = norm(f"{block}.downsample.{place + 1}", x, 1e-5)
            x = F.prelu(x, state[f"{block}.downsample.{place + 2}.weight"])
        return x

    logits = []
    for image in x.split(1):
        y = stem("conv1", image, 2)
        y = stem("conv3", torch.cat([stem("conv2_2", stem("conv2_1", y), 2), F.max_pool2d(y, 3, 2, 1)], 1))
        for block in sorted({name[:8] for name in state if name.startswith("layer")}):  # "layer3.1"
            stage = int(block[5]) - 1
            stride = 2 if stage > 0 and block.endswith(".0") else 1
            first = unit(block, 1, y, stride, groups[stage]) + shortcut(block, y, stride)
            second = unit(block, 2, first, 1, groups[stage]) + first
            y = unit(block, 3, second, 1, 1) + second
        logits.append(y.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"])
    return torch.cat(logits)


def ours(state, **options):
    options = {"rescale": True, "norm_eps": 1e-4, **SMALL, **options}
    net = timm.create_model("expert_binary_resnet", **options).double()
    net.load_state_dict(from_release(state, net))  # strict
    return net.eval()


@pytest.mark.parametrize("prefix", ["", "module."])
def test_computes_what_the_release_computes(prefix):
    torch.manual_seed(0)
    state = released(**SMALL)
    net = ours({prefix + name: tensor for name, tensor in state.items()})
    chosen = {}
    for name, layer in expert_layers(net).items():
        layer.gate.register_forward_hook(lambda _gate, _x, phi, name=name: chosen.update({name: phi.argmax(-1)}))
    x = torch.randn(4, 3, 67, 64, dtype=torch.float64) + 2 * torch.randn(4, 3, 1, 1, dtype=torch.float64)
    with torch.no_grad():
        logits, expected = net(x), literal(state, x, SMALL["groups"])
    assert torch.allclose(logits, expected, rtol=1e-9, atol=1e-9 * expected.std())
    assert len(chosen) == 15
    assert sum(len(set(experts.tolist())) > 1 for experts in chosen.values()) > 5  # it is the gates that chose
    with torch.no_grad():
        assert not torch.allclose(ours(state, norm_eps=1e-5)(x), expected, rtol=1e-5)


def test_the_released_file():
    """Its parameters, and ours without the dead parts of its shortcuts, to the unit (built in the authors' code)."""
    state = released(**FINAL, device="meta")
    statistics = re.compile(r".*(running_mean|running_var|num_batches_tracked)")
    assert sum(tensor.numel() for name, tensor in state.items() if not statistics.match(name)) == 43_348_748
    dead = [name for name in state if re.search(r"downsample\.\d\.(fc|alpha2)", name)]
    assert sum(state[name].numel() for name in dead) == 4_832 + 2_160
    with torch.device("meta"):
        net = timm.create_model("expert_binary_resnet", rescale=True, norm_eps=1e-4)
    converted = from_release(state, net)
    assert {name: tensor.shape for name, tensor in converted.items()} == {
        name: tensor.shape for name, tensor in net.state_dict().items()
    }
    assert sum(converted[name].numel() for name, _ in net.named_parameters()) == 42_558_396


REFUSED = [
    (lambda state: state.pop("fc.bias"), "1 tensors are missing, 0 unknown, 0 of another size, such as fc.bias;"),
    (lambda state: state.pop("layer2.0.downsample.4.alpha2"), "such as layer2.0.shortcut.4.weight;"),
    (lambda state: state.update(epoch=torch.tensor(3)), "0 tensors are missing, 1 unknown, .* such as epoch;"),
    (
        lambda state: state.update({"layer1.0.conv1.alpha2": torch.ones(1, 8, 1, 1)}),
        "1 of another .*units.0.conv.scale;",
    ),
    (
        lambda state: state.update({"layer1.0.downsample.1.alpha2": torch.ones(1, 8, 1, 1)}),
        "0 unknown, 1 of another size, such as layer1.0.shortcut.0.weight; the packed model is expert_binary_resnet",
    ),
    (
        lambda state: state.update({"layer1.0.downsample.1.se_fc.0.weight": torch.ones(2, 64)}),
        "layer1.0.downsample.1.se_fc.0.weight rescales a shortcut .* give their packed model",
    ),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_another_network_is_refused_in_one_line(change, message):
    state = released(**SMALL)
    change(state)
    with pytest.raises(InputError, match=message) as error:
        ours(state)
    assert "\n" not in str(error.value)


def test_a_network_with_other_layers_is_refused():
    with pytest.raises(InputError, match=r"0 tensors are missing, 30 unknown"):
        from_release(released(**SMALL), timm.create_model("expert_binary_resnet", norm_eps=1e-4, **SMALL))
