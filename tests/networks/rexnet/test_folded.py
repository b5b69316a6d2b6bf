"""Several networks as one: the arithmetic of each, in training too."""

import pytest
import timm
import torch
from torch.nn import functional as F

from networks import InputError
from networks.rexnet import Folded


def build(seed, channels=(8, 12, 12, 20), **options):
    torch.manual_seed(seed)
    return timm.create_model("channel_search_net", channels=channels, penultimate=32, num_classes=10, **options)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_step_of_sgd_is_that_of_three_networks(layout):
    """In double precision, outputs, weights and running statistics after a step agree to rounding (spec 11.15)."""
    nets = [build(seed).double().to(memory_format=layout) for seed in range(3)]
    folded = Folded(nets)
    x = torch.randn(6, 3, 3, 16, 16, dtype=torch.float64)
    labels = torch.randint(0, 10, (6, 3))
    optimizer = torch.optim.SGD(folded.parameters(), 0.1, momentum=0.9)
    F.cross_entropy(folded(x).flatten(0, 1), labels.flatten(), reduction="sum").backward()
    optimizer.step()
    for i, net in enumerate(nets):
        own = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
        F.cross_entropy(net(x[:, i]), labels[:, i], reduction="sum").backward()
        own.step()
    folded.eval()
    with torch.no_grad():
        together = folded(x)
        for i, net in enumerate(nets):
            torch.testing.assert_close(together[:, i], net.eval()(x[:, i]), rtol=1e-9, atol=1e-9)


def test_parameters_are_those_of_all():
    nets = [build(seed) for seed in range(3)]
    total = sum(p.numel() for net in nets for p in net.parameters())
    assert sum(p.numel() for p in Folded(nets).parameters()) == total


def test_networks_are_copied():
    nets = [build(0), build(1)]
    before = [p.clone() for p in nets[0].parameters()]
    folded = Folded(nets)
    folded(torch.randn(2, 2, 3, 16, 16)).sum().backward()
    torch.optim.SGD(folded.parameters(), 0.1).step()
    assert all(torch.equal(a, b) for a, b in zip(before, nets[0].parameters(), strict=True))


def test_other_networks_are_refused():
    with pytest.raises(InputError, match="one channel list"):
        Folded([build(0), build(1, (8, 12, 12, 24))])
    for options in ({"activation": "silu"}, {"strided": (1, 2)}):  # of the same shapes
        with pytest.raises(InputError, match="one channel list"):
            Folded([build(0), build(1, **options)])
    with pytest.raises(InputError, match="only networks of channel_search_net"):
        Folded([timm.create_model("rexnet", num_classes=3)])
    with pytest.raises(InputError, match="only networks of channel_search_net"):
        Folded([timm.create_model("rexnet_lite", num_classes=3)])
