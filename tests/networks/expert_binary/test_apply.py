"""Surgery: any network becomes expert-binary, and goes through the steps of training."""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

import networks
from networks import InputError, complexity
from networks.expert_binary import STEPS, ExpertBinaryConv2d, ExpertBinaryResNet, expert_layers

SMALL = dict(blocks=(1, 1, 1, 1), groups=(4, 4, 8, 8), num_experts=3, stem="cifar", num_classes=5)


def small(**options):
    """A network in float64 of which weights and statistics are not those of initialisation."""
    torch.manual_seed(0)
    net = ExpertBinaryResNet(**{**SMALL, "expansion": 1, **options}).double()
    with torch.no_grad():
        for layer in net.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight.uniform_(0.5, 1.5), layer.bias.normal_(0, 0.3)
            elif isinstance(layer, ExpertBinaryConv2d):
                layer.weight.normal_()
                layer.scale.uniform_(0.01, 0.1)
    return net


def images(batch=6):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 3, 16, 16, generator=generator, dtype=torch.float64)
    return x + 2 * torch.randn(batch, 3, 1, 1, generator=generator, dtype=torch.float64)


def routes(net, x):
    """Expert of each sample, by layer."""
    seen = {}
    hooks = [
        layer.gate.register_forward_hook(lambda _, args, phi, name=name: seen.update({name: phi.argmax(1).tolist()}))
        for name, layer in expert_layers(net).items()
    ]
    with torch.no_grad():
        net(x)
    for hook in hooks:
        hook.remove()
    return seen


# apply.


def test_resnet18_keeps_its_first_and_last_layer_and_shortcuts_and_counts_as_the_papers():
    with torch.device("meta"):
        net = timm.create_model("resnet18")
        real = {
            name: net.get_submodule(name) for name in ("conv1", "fc", *(f"layer{i}.0.downsample" for i in (2, 3, 4)))
        }
        names = networks.expert_binary.apply(net, num_experts=3, temperature=0.5, rescale=True)
    assert names == [f"layer{i}.{j}.conv{k}" for i in (1, 2, 3, 4) for j in (0, 1) for k in (1, 2)]
    assert set(expert_layers(net)) == {f"{name}.1" for name in names}
    assert all(net.get_submodule(name) is layer for name, layer in real.items())
    assert [type(net.layer2[0].downsample[i]) for i in (0, 1)] == [nn.Conv2d, nn.BatchNorm2d]
    for name in names:
        norm, conv = net.get_submodule(name)
        assert (type(norm), norm.num_features) == (nn.BatchNorm2d, conv.in_channels)
        assert (conv.num_experts, conv.gate.temperature, conv.step) == (3, 0.5, "binary")
        assert conv.rescale is not None
    strided = net.layer2[0].conv1[1]
    assert (strided.stride, strided.padding, strided.weight.shape) == ((2, 2), (1, 1), (3, 128, 64, 3, 3))
    report = complexity.count(net, (3, 224, 224))
    assert report.bops == 1_676_279_808  # 2222-1
    assert report.flops == 118_013_952 + 19_267_584 + 512_000
    assert report.binary_params == 3 * 10_985_472


def test_mobilenet_keeps_its_groups_and_every_other_operation_is_binary():
    with torch.device("meta"):
        net = timm.create_model("mobilenetv2_100")
        dense = complexity.count(net, (3, 224, 224))
        names = networks.expert_binary.apply(net, normalize=False)
    assert (len(names), names[0]) == (51, "blocks.0.0.conv_dw")
    depthwise = net.blocks[1][0].conv_dw
    assert (type(depthwise), depthwise.groups, depthwise.weight.shape) == (ExpertBinaryConv2d, 96, (4, 96, 1, 3, 3))
    report = complexity.count(net, (3, 224, 224))
    assert report.flops == 27 * 32 * 112 * 112 + 1280 * 1000
    assert report.bops == dense.flops - report.flops


@pytest.mark.parametrize(
    ("name", "real"),
    [
        ("efficientnet_b0", {"conv_stem", "se"}),
        ("resnetv2_50", {"stem", "fc", "downsample"}),
        ("vgg11", {"features.0"}),
    ],
)
def test_attention_on_averages_and_shortcuts_stay_real(name, real):
    with torch.device("meta"):
        net = timm.create_model(name)
        before = {name for name, layer in net.named_modules() if type(layer) is nn.Conv2d}
        names = networks.expert_binary.apply(net)
    kept = before - set(names)
    assert kept == {n for n in before if any(f".{part}." in f".{n}." for part in real)}
    assert all(any(f".{part}." in f".{n}." for n in kept) for part in real)


def test_names_that_stay_real_can_be_given_and_shared_layers_stay_shared():
    shared = nn.Conv2d(8, 8, 3, padding=1)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Sequential(shared, nn.Conv2d(8, 8, 1)), shared, nn.Conv2d(8, 2, 1)
    ).eval()
    first, last = net[0], net[3]
    assert networks.expert_binary.apply(net, num_experts=2, real=r"^1\.1") == ["1.0", "2"]
    assert net[1][0] is net[2]
    assert type(net[1][1]) is nn.Conv2d
    assert (net[0], net[3]) == (first, last)
    assert not net[2].training
    assert net(torch.randn(2, 3, 6, 6)).shape == (2, 2, 4, 4)


@pytest.mark.parametrize("step", STEPS)
def test_an_applied_network_trains_what_its_step_uses(step):
    torch.manual_seed(0)
    net = timm.create_model("resnet18", channels=(8, 16, 16, 16), zero_init_last=False, num_classes=3)
    networks.expert_binary.apply(net, num_experts=2)
    networks.expert_binary.set_step(net, step)
    before = {name: p.clone() for name, p in net.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-3, weight_decay=0)
    x = torch.randn(8, 3, 32, 32) + torch.randn(8, 3, 1, 1)
    loss = F.cross_entropy(net(x), torch.arange(8) % 3)
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss)
    gated = step in ("experts", "binary")
    still = {name for name, p in net.named_parameters() if torch.equal(p, before[name])}
    assert still == (set() if gated else {name for name in before if ".gate." in name})
    second = [layer.weight.grad[1].any() for layer in expert_layers(net).values()]
    assert any(second) == gated


@pytest.mark.parametrize("net", [nn.Sequential(nn.Linear(3, 3)), nn.Sequential(nn.Conv2d(3, 8, 1), nn.Linear(8, 2))])
def test_refuses_where_nothing_can_be_replaced(net):
    before = str(net)
    with pytest.raises(InputError, match=r"has no inner nn\.Conv2d to replace: Classifier trains it as it is"):
        networks.expert_binary.apply(net)
    assert str(net) == before


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "ghostnet_050", "rexnet_lite"])
def test_layers_behind_the_last_pooling_stay_real(name):
    with torch.device("meta"):
        net = timm.create_model(name)
        names = networks.expert_binary.apply(net)
    head = "head.1" if name == "rexnet_lite" else "conv_head"
    assert type(net.get_submodule(head)) is nn.Conv2d
    assert not [name for name in names if name.startswith(head)]


def test_a_pooling_that_is_only_named_first_keeps_nothing_real():
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 2))
    assert networks.expert_binary.apply(net) == ["2"]


def test_special_convolutions_and_other_paddings_stay():
    class Special(nn.Conv2d):
        pass

    layers = [nn.Conv2d(3, 8, 1), Special(8, 8, 3), nn.Conv2d(8, 8, 3, padding_mode="reflect"), nn.Conv2d(8, 8, 1)]
    net = nn.Sequential(*layers, nn.Linear(8, 8))
    with pytest.warns(UserWarning, match=r"left special layers real: 1 \(Special\)$"):
        assert networks.expert_binary.apply(net) == ["3"]
    assert [net[i] for i in range(3)] == layers[:3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_experts=0), "num_experts=0"),
        (dict(temperature=0), "temperature=0"),
        (dict(gate_grad="tanh"), "gate_grad is one of softmax, sigmoid; got 'tanh'"),
        (dict(routing="soft"), "routing is one of winner, mixture; got 'soft'"),
    ],
)
def test_a_wrong_option_changes_nothing(options, message):
    with torch.device("meta"):
        net = timm.create_model("resnet18")
    before, state = str(net), dict(net.named_parameters())
    with pytest.raises(InputError, match=message):
        networks.expert_binary.apply(net, **options)
    assert str(net) == before
    assert all(p is state[name] for name, p in net.named_parameters())


def test_rescale_that_one_layer_is_too_narrow_for_changes_nothing():
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 4, 3), nn.Linear(4, 2))
    before = str(net)
    with pytest.raises(InputError, match="rescale has 4 // 8 hidden channels"):
        networks.expert_binary.apply(net, rescale=True)
    assert str(net) == before


# The steps of training.


def test_replication_copies_the_first_expert_and_changes_no_output():
    net, x = small(step="one_expert"), images()
    before = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        expected = net.eval()(x)
        networks.expert_binary.replicate(net)
        assert torch.equal(net(x), expected)
        networks.expert_binary.set_step(net, "experts")
        assert torch.allclose(net(x), expected, rtol=1e-12)
    assert max(len(set(route)) for route in routes(net, x).values()) > 1
    for name, value in net.state_dict().items():
        first = before[name][:1].expand_as(value) if name.endswith("conv.weight") and "units" in name else before[name]
        assert torch.equal(value, first), name
    copies = expert_layers(net)["layer1.0.units.0.conv"].weight
    copies.data[0].zero_()
    assert copies[1].any()  # of their own


def test_the_last_step_changes_no_state_and_makes_all_convolutions_of_signs():
    net, x = small(step="experts"), images()
    state, seen = copy.deepcopy(net.state_dict()), {}
    networks.expert_binary.set_step(net.eval(), "binary")
    assert net.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    for name, layer in expert_layers(net).items():
        layer.scale.data.fill_(1)
        layer.register_forward_hook(lambda _, args, y, name=name: seen.update({name: (args[0], y)}))
    route = routes(net, x)
    assert len(route) == 12
    for name, layer in expert_layers(net).items():
        signs = torch.where(seen[name][0] < 0, -1.0, 1.0).double()
        kernels = torch.where(layer.weight < 0, -1.0, 1.0).double()
        for b, e in enumerate(route[name]):
            expected = F.conv2d(signs[b : b + 1], kernels[e], None, layer.stride, layer.padding, 1, layer.groups)
            assert torch.equal(seen[name][1][b], expected[0])


@pytest.mark.parametrize(
    ("step", "options"),
    [
        ("fp", {}),
        ("one_expert", {}),
        ("binary", {}),
        ("binary", {"routing": "mixture"}),
        ("experts", {"rescale": True}),
    ],
    ids=str,
)
def test_the_output_of_a_sample_does_not_depend_on_its_batch(step, options):
    net, x = small(step=step, **options).eval(), images()
    with torch.no_grad():
        together = net(x)
        assert torch.allclose(torch.cat([net(x[b : b + 1]) for b in range(len(x))]), together, rtol=1e-9)
        assert torch.allclose(net(x.flip(0)), together.flip(0), rtol=1e-9)
    assert together.std(0).min() > 1e-3
    if step == "binary" and not options:
        assert max(len(set(route)) for route in routes(net, x).values()) > 1


@pytest.mark.parametrize("step", STEPS)
def test_the_whole_network_learns_in_each_step_what_it_uses(step):
    net, x = small(step=step, rescale=True), images()
    net(x).square().sum().backward()
    without = {name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()}
    assert without == ({n for n in dict(net.named_parameters()) if ".gate." in n} if step in STEPS[:2] else set())


def test_a_copy_and_a_loaded_state_compute_the_same():
    net, x = small(), images()
    net(x)  # leaves counts of the gates, and other statistics of normalisation
    other = ExpertBinaryResNet(**SMALL, expansion=1).double()
    other.load_state_dict(net.state_dict())
    twin = copy.deepcopy(net)
    networks.expert_binary.set_step(other, "one_expert")
    networks.expert_binary.set_step(other, "binary")
    with torch.no_grad():
        expected = net.eval()(x)
        assert torch.equal(other.eval()(x), expected)
        assert torch.equal(twin.eval()(x), expected)
    twin.layer1[0].units[0].conv.weight.data.neg_()
    assert torch.equal(net(x), expected)
    assert complexity.count(net, (3, 16, 16)) == complexity.count(other, (3, 16, 16))
    assert not [name for name in net.state_dict() if "counts" in name]


def test_unknown_steps_are_named():
    net = nn.Sequential(ExpertBinaryConv2d(8, 8, 1))
    with pytest.raises(InputError, match="step is one of fp, one_expert, experts, binary; got 'stage1'"):
        networks.expert_binary.set_step(net, "stage1")
    networks.expert_binary.set_step(net, "fp", "tanh")
    assert (net[0].step, net[0].fp_activation) == ("fp", "tanh")
