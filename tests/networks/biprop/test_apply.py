"""Surgery: any network becomes a ticket."""

import copy

import pytest
import timm
import torch
from torch import nn

import networks
from networks import InputError, complexity
from networks.biprop import SubnetConv2d, SubnetLinear


def trained(net):
    return {name for name, p in net.named_parameters() if p.requires_grad}


def test_resnet18_trains_scores_only_and_counts_to_the_unit():
    net = timm.create_model("resnet18")
    names = networks.biprop.apply(net, keep_fraction=0.2)
    assert trained(net) == {f"{name}.scores" for name in names}
    assert len(names) == 21
    report = complexity.count(net, (3, 224, 224))
    assert (report.dense_params, report.params) == (11_678_912, 2_335_792)  # spec 6.4


@pytest.mark.parametrize(
    ("name", "k", "n", "kept"),
    [("resnet34", 0.2, 21_779_648, 4_355_946), ("resnet50", 0.3, 25_502_912, 7_650_902)],
)
def test_counts_of_the_imagenet_resnets(name, k, n, kept):
    with torch.device("meta"):
        net = timm.create_model(name)
        networks.biprop.apply(net, keep_fraction=k)
    report = complexity.count(net, (3, 224, 224))
    assert (report.dense_params, report.params) == (n, kept)


def test_plus_bn_trains_scale_and_shift_from_one_and_zero():
    net = timm.create_model("resnet18")
    names = networks.biprop.apply(net, keep_fraction=0.2, train_bn=True)
    norms = {name: m for name, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)}
    expected = {f"{name}.{part}" for name in norms for part in ("weight", "bias")}
    assert trained(net) == expected | {f"{name}.scores" for name in names}
    assert all(bool((m.weight == 1).all()) and bool((m.bias == 0).all()) for m in norms.values())


def test_frozen_stays_frozen_and_scores_move():
    torch.manual_seed(0)
    net = timm.create_model("conv2", activation="sign", img_size=8, in_chans=1)
    networks.biprop.apply(net, keep_fraction=0.5)
    before = copy.deepcopy(net.state_dict())
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):
        net(torch.randn(8, 1, 8, 8)).square().mean().backward()
        optimizer.step()
    for name, value in net.state_dict().items():
        if name.endswith("weight"):
            assert torch.equal(value, before[name]), name
        if name.endswith("scores"):
            assert not torch.equal(value, before[name]), name


def test_batch_norm_makes_the_weights_scale_irrelevant():
    torch.manual_seed(0)
    net = timm.create_model("resnet18", num_classes=10)
    networks.biprop.apply(net, keep_fraction=0.3)
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eps = 1e-30  # without it the identity is exact
    net.double()
    x = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    gradients, logits = [], []
    for factor in (1.0, 3.7):
        with torch.no_grad():
            for layer in net.modules():
                if isinstance(layer, SubnetConv2d):
                    layer.weight.mul_(factor)
        net.zero_grad()
        logits.append(net(x))
        logits[-1].square().sum().backward()
        gradients.append(net.layer2[0].conv1.scores.grad.clone())
    assert (logits[0] - logits[1]).norm() < 1e-9 * logits[0].norm()
    assert (gradients[0] - gradients[1]).norm() < 1e-9 * gradients[0].norm()


# Mean logit standard deviation at initialisation, spec 3.3: batch 16 of standard-normal 32x32 inputs.
@pytest.mark.parametrize(
    ("name", "k", "init", "scale", "expected"),
    [
        ("conv2", 0.8, "kaiming_normal", "release", 19),
        ("conv2", 0.2, "kaiming_normal", "release", 1.6e-2),
        ("conv2", 0.2, "kaiming_normal", "kept", 0.51),
        ("conv2", 0.2, "kaiming_normal", "none", 9.2e-3),
        ("conv2", 0.2, "signed_constant", "none", 4.5e-2),
        ("conv6", 0.1, "kaiming_normal", "release", 2.4e-5),
        ("conv6", 0.1, "kaiming_normal", "kept", 0.47),
    ],
)
def test_logit_scale_of_networks_without_batch_norm(name, k, init, scale, expected):
    torch.manual_seed(0)
    net = timm.create_model(name)
    networks.biprop.apply(net, keep_fraction=k, init=init, scale=scale)
    with torch.no_grad():
        std = net(torch.randn(16, 3, 32, 32)).std().item()
    assert expected / 2 < std < expected * 2


def test_default_scale_depends_on_batch_norm():
    for activation, scale in (("relu", "kept"), ("sign", "none")):
        net = timm.create_model("conv2", activation=activation)
        networks.biprop.apply(net)
        assert {m.scale for m in net.modules() if isinstance(m, SubnetConv2d | SubnetLinear)} == {scale}


def test_grouped_and_depthwise_convolutions():
    with torch.device("meta"):
        net = timm.create_model("mobilenetv2_100")
        names = networks.biprop.apply(net, 0.5)
    assert isinstance(net.blocks[1][0].conv_dw, SubnetConv2d)
    assert net.blocks[1][0].conv_dw.groups == 96
    assert isinstance(net.classifier, SubnetLinear)
    assert trained(net) == {f"{name}.scores" for name in names}


def test_warns_when_nothing_was_replaced_and_names_what_it_passed_over():
    net = nn.Sequential(nn.BatchNorm2d(3))
    with pytest.warns(UserWarning, match="replaced no layer"):
        assert networks.biprop.apply(net) == []
    assert trained(net) == {"0.weight", "0.bias"}  # left as it was
    net = nn.Sequential(nn.Linear(2, 2), nn.modules.linear.NonDynamicallyQuantizableLinear(2, 2))
    with pytest.warns(UserWarning, match=r"left special layers dense and frozen: 1 \(NonDynamically"):
        assert networks.biprop.apply(net) == ["0"]


def test_a_wrong_option_changes_nothing():
    net = timm.create_model("conv2")
    before = str(net)
    with pytest.raises(InputError, match="KEPT"):
        networks.biprop.apply(net, keep_fraction=1.5)
    assert str(net) == before
    assert all(p.requires_grad for p in net.parameters())
