"""Epitomes in any network: which layers, with what, and what is refused before anything is touched."""

import copy
import math

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

import networks
from networks import InputError
from networks.complexity import count
from networks.epitome import EpitomeConv1d, EpitomeConv2d, Rule, WindowRule, epitome_layers
from networks.epitome.surgery import as_rule


def small():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 12, 1, bias=False),
        nn.Conv2d(12, 12, 3, groups=12, padding=1),
        nn.Conv2d(12, 8, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def test_a_number_is_for_all_inner_layers():
    net = small().eval()
    assert networks.epitome.apply(net, 0.5) == ["2", "4"]
    for layer in (net[2], net[4]):
        assert layer.share == "in"
        assert layer.epitome.shape[1] == layer.in_channels // 2
        assert not layer.training
    assert isinstance(net[0], nn.Conv2d)
    assert net(torch.randn(2, 3, 6, 6)).shape == (2, 4)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "convnext_atto", "efficientnet_b0"])
def test_any_network_of_timm(name):
    with torch.device("meta"):
        net = timm.create_model(name, num_classes=10)
        dense = count(net, (3, 224, 224))
        names = networks.epitome.apply(net, 0.5, positions="none")
    report = count(net, (3, 224, 224))
    assert report.output_size == (10,)
    rows = {row.name: row for row in dense.layers}
    saved = [rows[layer] for layer in names]
    layers = epitome_layers(net)
    assert dense.params - report.params == sum(
        math.prod(layer.size) - layer.epitome.numel() for layer in layers.values()
    )
    assert dense.flops - report.flops == sum(
        row.flops * (1 - layers[row.name].epitome.numel() / math.prod(layers[row.name].size)) for row in saved
    )


def test_rules_say_which_layer_gets_what():
    net = small()
    rules = [Rule("^2$", "out", 0.25), Rule(r"\d", "in", (0.4, 0.75)), Rule("7", "in", 1.0)]
    with pytest.raises(InputError, match="2 values of multiplier for 3 layers"):
        networks.epitome.apply(net, rules)
    rules[1] = Rule("^[47]$", "in", (0.4, 0.75))
    assert networks.epitome.apply(net, rules[:2]) == ["2", "4", "7"]
    assert net[2].epitome.shape == (3, 8, 1, 1)
    assert net[4].epitome.shape == (8, 5, 1, 1)  # 0.4 * 12, rounded up
    assert net[7].epitome.shape == (4, 6)
    assert [layer.positions.numel() for layer in epitome_layers(net).values()] == [4, 3, 2]


def test_windows_for_1d_convolutions():
    net = nn.Sequential(nn.Conv1d(4, 8, 5, 2, 1), nn.ReLU(), nn.Conv1d(8, 6, 3))
    weight = net[0].weight.detach().clone()
    assert networks.epitome.apply(net, [WindowRule("", (2, 1), (1, 4), 1.5)]) == ["0", "2"]
    assert [layer.epitome.shape for layer in epitome_layers(net).values()] == [(4, 13), (2, 6)]
    assert net[0].epitome.flatten().equal(weight.flatten()[: 4 * 13])
    assert (net[0].stride, net[0].padding) == ((2,), (1,))


def test_epitomes_begin_with_values_of_the_weight_and_its_bias():
    net = small()
    old = copy.deepcopy(net[4])
    networks.epitome.apply(net, 0.5)
    assert net[4].epitome.flatten().equal(old.weight.flatten()[: net[4].epitome.numel()])
    assert net[4].bias.equal(old.bias)
    assert net[2].bias is None


def test_ratio_one_computes_as_before():
    net = small().eval()
    x = torch.randn(2, 3, 6, 6)
    y = net(x)
    networks.epitome.apply(net, 1.0)
    torch.testing.assert_close(net(x), y)


def test_materialised_and_frozen_networks_give_the_same():
    net = small()
    networks.epitome.apply(net, [Rule("^2$", "out", 0.25), Rule("^4$", "in", 0.4)], positions="feature")
    x = torch.randn(5, 3, 6, 6)
    net(x)
    net.eval()
    y = net(x)
    networks.epitome.freeze(net)
    assert net(x).equal(y)
    assert not any("learner" in name for name in net.state_dict())
    assert networks.epitome.materialise(net) == ["2", "4"]
    assert not epitome_layers(net)
    assert {type(net[2]), type(net[4])} == {nn.Conv2d}
    torch.testing.assert_close(net(x), y)


@pytest.mark.parametrize(
    ("rules", "what"),
    [
        ([Rule("nowhere")], "no such 2-D convolution or linear layer left to replace; it has 0, 2, 3"),
        ([WindowRule("")], "no such 1-D convolution"),
        ([Rule("^3$")], "no such"),  # depthwise
        ([Rule("^7$", "out", 0.5)], "classes would have the same scores"),
        ([Rule("^2$"), Rule("^4$", "in", 1.5)], "multiplier=1.5"),
        (0.0, "multiplier=0.0"),
        ([Rule("(")], "no regular expression"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_touched(rules, what):
    net = small()
    before = repr(net)
    with pytest.raises(InputError, match=what):
        networks.epitome.apply(net, rules)
    assert repr(net) == before


def test_a_number_finds_inner_layers_or_says_why_not():
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    with pytest.raises(InputError, match=r"rules=0\.5 leave out the first and the last .* the network has no other"):
        networks.epitome.apply(net, 0.5)
    net = small()
    networks.epitome.apply(net, [Rule(".*")])
    with pytest.raises(InputError, match=r"the network has its epitomes already"):
        networks.epitome.apply(net, 0.5)


def test_a_number_leaves_squeeze_and_excitation_and_names_special_layers():
    class Special(nn.Conv2d):
        pass

    class SqueezeExcite(nn.Sequential):
        pass

    net = nn.Sequential(
        nn.Conv2d(3, 8, 1), Special(8, 8, 1), nn.Conv2d(8, 8, 1), SqueezeExcite(nn.Conv2d(8, 2, 1)), nn.Linear(8, 2)
    )
    with pytest.warns(UserWarning, match=r"epitome left special layers as they are: 1 \(Special\)$"):
        assert networks.epitome.apply(net, 0.5) == ["2"]
    net[2] = Special(8, 8, 1)
    with pytest.raises(InputError, match=r"has no other but special ones, 1 \(Special\), 2 \(Special\): give a list"):
        networks.epitome.apply(net, 0.5)
    assert networks.epitome.apply(net, [Rule("3")]) == ["3.0"]  # who names them gets them


def test_the_scores_of_a_second_classifier_are_not_tied_either():
    with torch.device("meta"):
        net = timm.create_model("deit_tiny_distilled_patch16_224")
    with pytest.raises(InputError, match="outputs of head, a last layer of the network"):
        networks.epitome.apply(net, [Rule("^head$", "out")])


def test_a_layer_that_stands_twice_stays_one():
    shared = nn.Conv2d(4, 4, 1)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), shared, nn.ReLU(), shared, nn.Flatten(), nn.Linear(36, 2))
    assert networks.epitome.apply(net, 0.5) == ["1", "3"]
    assert net[1] is net[3]


def test_frozen_weights_stay_frozen():
    net = small()
    net[4].weight.requires_grad_(False)
    networks.epitome.apply(net, 0.5)
    trained = {name for name, p in net[4].named_parameters() if p.requires_grad}
    assert trained == {"bias"}
    assert all(p.requires_grad for p in net[2].parameters())


def test_repeated_outputs_in_a_row_are_warned_of():
    with pytest.warns(UserWarning, match='2 and then 3 repeat their outputs: .* share="in"'):
        networks.epitome.apply(
            nn.Sequential(*[nn.Conv2d(4, 4, 1) for _ in range(5)]), [Rule("^[23]$", "out")], positions="none"
        )


def test_rules_come_back_from_plain_types():
    for rule in (Rule("a", "out", (0.5, 0.25)), WindowRule("b", 2, (1, 4), 2.0)):
        assert as_rule({key: list(v) if isinstance(v, tuple) else v for key, v in vars(rule).items()}) == rule
    assert as_rule({"pattern": "a", "multiplier": 0.5}) == as_rule({"pattern": "a"}) == Rule("a")


def test_a_small_network_of_epitomes_overfits():
    """Spec 13.25: 32 random images to a loss below 0.05."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        EpitomeConv2d(16, 32, 1, share="out", bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 3, groups=32, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        EpitomeConv2d(32, 16, 1, share="in", bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 4),
    )  # fmt: skip
    x, labels = torch.randn(32, 3, 8, 8), torch.arange(32) % 4
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), labels)
        loss.backward()
        optimizer.step()
    assert loss < 0.05


def test_positions_alone_lower_the_loss():
    """Spec 13.26: with everything else frozen, gradients reach positions end to end."""
    torch.manual_seed(0)
    net = nn.Sequential(EpitomeConv1d(2, 16, 8, 2, sampling_stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 13, 3))
    net[0].epitome.data.normal_()
    x, labels = torch.randn(24, 2, 32), torch.arange(24) % 3
    optimizer = torch.optim.Adam([net[0].positions], 0.02)
    losses = []
    for _ in range(30):
        loss = F.cross_entropy(net(x), labels)
        losses.append(loss.item())
        (net[0].positions.grad,) = torch.autograd.grad(loss, [net[0].positions])
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]
