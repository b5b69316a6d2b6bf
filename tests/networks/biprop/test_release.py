"""Checkpoints in the layout of the authors' release, against networks that are written as theirs are."""

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

import networks
from networks import InputError
from networks.biprop import from_release

KEEP = 0.3


class ReleasedConv(nn.Conv2d):
    """Sorts scores, keeps int((1 - k) n) fewer, divides by int(k n)."""

    def __init__(self, cin, cout, size, stride=1):
        super().__init__(cin, cout, size, stride, padding=size // 2, bias=False)
        self.scores = nn.Parameter(torch.randn_like(self.weight))

    def forward(self, x):
        magnitude, n = self.scores.abs().flatten(), self.scores.numel()
        mask = torch.ones(n)
        mask[magnitude.argsort(stable=True)[: int((1 - KEEP) * n)]] = 0
        mask = mask.view(self.weight.shape)
        gain = (self.weight.abs() * mask).sum() / int(KEEP * n)
        return F.conv2d(x, gain * self.weight.sign() * mask, None, self.stride, self.padding)


class ReleasedConv2(nn.Module):
    """MPT-1/1 form: linear layers are 1x1 convolutions."""

    def __init__(self):
        super().__init__()
        c, bn = ReleasedConv, nn.BatchNorm2d
        self.convs = nn.Sequential(c(3, 64, 3), bn(64), Sign(), c(64, 64, 3), nn.MaxPool2d(2), bn(64), Sign())
        self.linear = nn.Sequential(
            c(64 * 16 * 16, 256, 1), bn(256), Sign(), c(256, 256, 1), bn(256), Sign(), c(256, 10, 1)
        )

    def forward(self, x):
        x = self.convs(x)
        return self.linear(x.view(x.size(0), 64 * 16 * 16, 1, 1)).flatten(1)


class Sign(nn.Module):
    def forward(self, x):
        return x.sign()


class ReleasedBlock(nn.Module):
    def __init__(self, cin, cout, stride):
        super().__init__()
        self.conv1, self.bn1 = ReleasedConv(cin, cout, 3, stride), nn.BatchNorm2d(cout)
        self.conv2, self.bn2 = ReleasedConv(cout, cout, 3), nn.BatchNorm2d(cout)
        self.shortcut = nn.Sequential()
        if stride != 1 or cin != cout:
            self.shortcut = nn.Sequential(ReleasedConv(cin, cout, 1, stride), nn.BatchNorm2d(cout))

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class ReleasedResNet18(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = ReleasedConv(3, 64, 3), nn.BatchNorm2d(64)
        cin = 64
        for stage, cout in enumerate((64, 128, 256, 512)):
            blocks = ReleasedBlock(cin, cout, 1 + (stage > 0)), ReleasedBlock(cout, cout, 1)
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
            cin = cout
        self.fc = ReleasedConv(512, 10, 1)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(F.avg_pool2d(x, 4)).flatten(1)


def released(network):
    """A checkpoint's state_dict, with batch normalisation that has seen data, by nn.DataParallel."""
    with torch.no_grad():
        network(torch.randn(8, 3, 32, 32))
    return {f"module.{name}": tensor for name, tensor in network.eval().state_dict().items()}


@pytest.mark.parametrize(
    ("theirs", "name", "arguments"),
    [(ReleasedConv2, "conv2", {"activation": "sign"}), (ReleasedResNet18, "cifar_resnet18", {})],
)
def test_computes_what_the_release_computes(theirs, name, arguments):
    torch.manual_seed(0)
    other = theirs()
    state = released(other)
    other.double()  # rounding moves no sign then
    net = timm.create_model(name, **arguments)
    networks.biprop.apply(net, KEEP, gain_count="floor_kn")
    net.load_state_dict(from_release(state, net))  # strict
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(net.eval().double()(x), other(x), rtol=1e-9, atol=1e-9)


def test_plus_bn_keeps_its_scale_and_shift():
    torch.manual_seed(0)
    other = ReleasedResNet18()
    nn.init.uniform_(other.layer2[0].bn1.weight, 0.5, 2)
    state = released(other)
    net = timm.create_model("cifar_resnet18")
    networks.biprop.apply(net, KEEP)
    with pytest.raises(InputError, match=r"trained layer2\.0\.bn1\.weight: it is of a \+BN ticket, give train_bn"):
        from_release(state, net)
    net = timm.create_model("cifar_resnet18")
    networks.biprop.apply(net, KEEP, train_bn=True)
    net.load_state_dict(from_release(state, net))
    assert torch.equal(net.layer2[0].bn1.weight, other.layer2[0].bn1.weight)


def test_another_network_is_refused():
    net = timm.create_model("conv4", activation="sign")
    networks.biprop.apply(net, KEEP)
    with pytest.raises(InputError, match=r"of another network: .* are missing, 0 unknown"):
        from_release(released(ReleasedConv2()), net)
