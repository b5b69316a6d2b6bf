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
    ("name", "train_bn", "tensors", "values"),
    [
        ("cifar_resnet18", False, 21, 11_164_352),
        ("cifar_resnet18", True, 61, 11_173_952),
        ("wrn34", True, 109, 48_295_616),
    ],
)
def test_the_optimizer_gets_exactly_what_is_trained(name, train_bn, tensors, values):
    with torch.device("meta"):
        net = timm.create_model(name)
        names = networks.biprop.apply(net, keep_fraction=0.2, train_bn=train_bn)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad])
    (group,) = optimizer.param_groups
    assert len(group["params"]) == tensors
    assert sum(p.numel() for p in group["params"]) == values
    own = {id(p): name for name, p in net.named_parameters()}
    expected = {f"{name}.scores" for name in names}
    if train_bn:
        norms = [name for name, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)]
        expected |= {f"{name}.{part}" for name in norms for part in ("weight", "bias")}
    assert {own[id(p)] for p in group["params"]} == expected


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


@pytest.mark.parametrize("train_bn", [False, True])
@pytest.mark.parametrize("selection", ["layer", "global"])
def test_frozen_stays_frozen_and_what_is_trained_moves(train_bn, selection):
    torch.manual_seed(0)
    net = timm.create_model("conv2", activation="sign", img_size=8, in_chans=1)
    networks.biprop.apply(net, keep_fraction=0.5, train_bn=train_bn, selection=selection)
    before = copy.deepcopy(net.state_dict())
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):
        net(torch.randn(8, 1, 8, 8)).square().mean().backward()
        optimizer.step()
    norms = [name for name, m in net.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for name, value in net.state_dict().items():
        layer, part = name.rsplit(".", 1)
        assert torch.equal(value, before[name]) == (part == "sign_seed" or (part == "weight" and layer not in norms)), (
            name
        )
    assert {f"{name}.weight" in before for name in norms} == {train_bn}


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
        ("conv4", 0.8, "kaiming_normal", "release", 62),
        ("conv4", 0.2, "kaiming_normal", "release", 3.8e-3),
        ("conv4", 0.1, "kaiming_normal", "kept", 0.46),
        ("conv4", 0.5, "signed_constant", "none", 0.27),
        ("conv6", 0.1, "kaiming_normal", "release", 2.4e-5),
        ("conv6", 0.1, "kaiming_normal", "kept", 0.47),
        ("conv8", 0.8, "signed_constant", "none", 1.0),
        ("conv8", 0.5, "kaiming_normal", "none", 4.3e-3),
        ("conv8", 0.2, "kaiming_normal", "release", 1.6e-4),
        ("conv8", 0.2, "kaiming_normal", "kept", 0.32),
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


def test_names_what_it_passed_over_and_refuses_where_nothing_is_left():
    special = nn.modules.linear.NonDynamicallyQuantizableLinear(2, 2)
    net = nn.Sequential(nn.BatchNorm2d(3), special)
    with pytest.raises(InputError, match=r"no layer to mask but special ones, 1 \(NonDynamically.*\): Classifier"):
        networks.biprop.apply(net)
    assert trained(net) == {"0.weight", "0.bias", "1.weight", "1.bias"}  # left as it was
    net = nn.Sequential(nn.Linear(2, 2), special)
    with pytest.warns(UserWarning, match=r"left special layers dense and frozen: 1 \(NonDynamically"):
        assert networks.biprop.apply(net) == ["0"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_fraction": 1.5}, "KEPT"),
        ({"selection": "channel"}, "selection is one of layer, global; got 'channel'"),
        ({"init": "xavier"}, "init is one of kaiming_normal, .*; got 'xavier'"),
        ({"scale": "half"}, "scale is one of none, release, kept; got 'half'"),
        ({"binarize": "ternary"}, "binarize is one of sign_gain, none; got 'ternary'"),
        ({"gain_count": "n"}, "gain_count is one of kept, floor_kn; got 'n'"),
        ({"score_gradient": "none"}, "score_gradient is one of weight, sign; got 'none'"),
        ({"scale": "release", "keep_fraction": 1}, "keep fraction below 1"),
    ],
)
def test_a_wrong_option_changes_nothing(options, message):
    net = timm.create_model("conv2", width=0.1)
    before = str(net)
    with pytest.raises(InputError, match=message):
        networks.biprop.apply(net, **options)
    assert str(net) == before
    assert all(p.requires_grad for p in net.parameters())


def test_options_reach_every_layer():
    options = dict(
        init="signed_constant", scale="release", binarize="none", gain_count="floor_kn", score_gradient="sign"
    )
    net = timm.create_model("conv2", width=0.1)
    networks.biprop.apply(net, 0.3, **options)
    for layer in networks.biprop.subnet_layers(net).values():
        assert {name: getattr(layer, name) for name in options} == options
        assert (layer.keep_fraction, layer.selection) == (0.3, None)


@pytest.mark.parametrize("dense", [("conv1",), ("fc",), ("conv1", "fc")])
@pytest.mark.parametrize("train_bn", [False, True])
def test_dense_first_and_last_layers_keep_their_trained_weights_and_bias(dense, train_bn):
    with torch.device("meta"):
        net = timm.create_model("resnet18")
        layers = [name for name, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        weights = {name: net.get_submodule(name).weight for name in dense}
        names = networks.biprop.apply(
            net, 0.2, train_bn=train_bn, dense_first="conv1" in dense, dense_last="fc" in dense
        )
    assert names == [name for name in layers if name not in dense]
    assert [type(net.get_submodule(name)) for name in dense] == [
        {"conv1": nn.Conv2d, "fc": nn.Linear}[n] for n in dense
    ]
    assert all(net.get_submodule(name).weight is weight for name, weight in weights.items())
    expected = {f"{name}.scores" for name in names} | {f"{name}.weight" for name in dense}
    expected |= {"fc.bias"} & {f"{name}.bias" for name in dense}
    norms = {name for name, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)}
    expected |= {f"{name}.{part}" for name in norms for part in ("weight", "bias") if train_bn}
    assert trained(net) == expected
    kept = sum(layer.kept for layer in networks.biprop.subnet_layers(net).values())
    report = complexity.count(net, (3, 224, 224))
    assert report.binary_params == kept
    sizes = {"conv1": 64 * 3 * 49, "fc": 512 * 1000 + 1000}
    assert report.params == kept + sum(sizes[name] for name in dense) + 2 * 4800 * train_bn


def test_dense_layers_train_under_global_selection_and_are_not_ranked():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 30), nn.ReLU(), nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 4))
    assert networks.biprop.apply(net, 0.25, selection="global", dense_first=True, dense_last=True) == ["2"]
    assert net[2].kept == 225
    net(torch.randn(6, 4)).square().sum().backward()
    assert {name for name, p in net.named_parameters() if p.grad is not None} == {
        "0.weight", "0.bias", "2.scores", "4.weight", "4.bias"
    }  # fmt: skip


def test_another_keep_fraction_changes_masks_and_draws_nothing():
    net = timm.create_model("conv2", width=0.25, img_size=8)
    networks.biprop.apply(net, 0.2)
    before = copy.deepcopy(net.state_dict())
    networks.biprop.set_keep_fraction(net, 0.6)
    layers = networks.biprop.subnet_layers(net).values()
    assert all(layer.kept == layer.weight.numel() - int((1 - 0.6) * layer.weight.numel()) for layer in layers)
    assert all(int(layer.mask().sum()) == layer.kept for layer in layers)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    with pytest.raises(InputError, match="KEPT"):
        networks.biprop.set_keep_fraction(net, 0)
    assert {layer.keep_fraction for layer in layers} == {0.6}


def test_layers_that_keep_nothing_are_named():
    net = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2))
    with pytest.warns(UserWarning, match=r"^0, 2 keep no weight and give zeros: take a larger keep fraction"):
        networks.biprop.apply(net, 1e-20)
    assert net(torch.ones(1, 3)).tolist() == [[0, 0]]


class Branch(nn.Sequential):
    """A residual block whose branch has a scale, as those of ConvNeXt and CaiT."""

    def __init__(self, scale):
        super().__init__(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        self.gamma = nn.Parameter(torch.full((4,), scale))


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (Branch(1e-6), "^gamma scales its branch by 1e-06 .* network_args {ls_init_value: 1}"),
        (
            nn.Sequential(nn.Linear(4, 4), nn.Conv1d(2, 4, 3)),
            r"16 weights .* 24 others .*, such as 1.weight \(Conv1d\)",
        ),
        (nn.Sequential(nn.Linear(4, 4), networks.expert_binary.ExpertBinaryConv2d(8, 8, 1)), "1.weight .ExpertBinary"),
    ],
)
def test_what_would_be_frozen_and_decide_is_refused(net, message):
    before = str(net)
    with pytest.raises(InputError, match=message):
        networks.biprop.apply(net)
    assert str(net) == before
    assert all(p.requires_grad for p in net.parameters())


def test_a_normalisation_that_begins_at_zero_is_refused_if_it_would_stay_there():
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8), nn.BatchNorm2d(8))
    for norm in net[1:]:
        nn.init.zeros_(norm.weight)
    with pytest.raises(InputError, match=r"^1.weight scales its branch by 0 .*zero_init_last: false"):
        networks.biprop.apply(net)
    nn.init.ones_(net[1].weight)
    assert networks.biprop.apply(net) == ["0"]  # batch normalisation computes as with 1
    assert networks.biprop.apply(Branch(1.0)) == ["0", "2"]


def test_timms_linear_layer_is_one():
    with torch.device("meta"):
        net = timm.create_model("mobilenetv3_small_050")
        networks.biprop.apply(net)
        other = timm.create_model("mobilenetv3_small_050")
        networks.biprop.apply(other, dense_last=True)
    assert isinstance(net.classifier, SubnetLinear)
    assert {name for name in trained(other) if not name.endswith("scores")} == {"classifier.weight", "classifier.bias"}


def test_plus_bn_without_batch_norm_warns():
    with pytest.warns(UserWarning, match="no batch normalisation to train"):
        networks.biprop.apply(timm.create_model("conv2"), train_bn=True)
