"""Positions from a layer's input: gradients, the routing map, and the form that the authors released."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from networks.epitome import EpitomeConv2d, EpitomeLinear


def make(kind, *args, seed=0, at=None, **options):
    """A layer in double precision with positions `at`, or drawn between its entries, negative ones too."""
    torch.manual_seed(seed)
    layer = kind(*args, **options).double()
    for parameter in (layer.positions, getattr(layer, "routing_map", None)):
        if parameter is not None:
            drawn = 5 * torch.randn_like(parameter) if at is None else torch.as_tensor(at).double()
            parameter.data.copy_(drawn)
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    return layer


def inputs(*shape, seed=1):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


@pytest.mark.parametrize("kind", [EpitomeConv2d, EpitomeLinear])
def test_feature_gradients_reach_both_convolutions(kind):
    layer = make(kind, 6, 4, *([1] if kind is EpitomeConv2d else []), positions="feature", at=0.0)
    layer(inputs(*((4, 6, 5, 5) if kind is EpitomeConv2d else (4, 6)))).square().sum().backward()
    assert layer.learner.conv1.weight.grad.abs().max() > 0
    assert layer.learner.conv2.weight.grad.abs().max() > 0


def test_every_weight_of_a_learner_can_learn():
    """Also that of linear layers, whose inputs have no neighbours for a 3x3 convolution to see."""
    layer = make(EpitomeLinear, 6, 4, positions="feature", at=0.0)
    layer(inputs(32, 6)).square().sum().backward()
    assert layer.learner.conv1.weight.shape == (6, 6, 1, 1)
    assert (layer.learner.conv1.weight.grad != 0).all()


def test_the_map_follows_by_its_momentum_and_the_first_update_copies():
    """Spec 13.15: with constant p the error after k further updates is mu^k times the first."""
    layer = make(EpitomeLinear, 6, 4, positions="feature", map_momentum=0.9, at=0.0)
    layer._follow(torch.tensor([1.0, -2.0]).double())
    assert layer.routing_map.tolist() == [1.0, -2.0]
    for _ in range(5):
        layer._follow(torch.tensor([3.0, 0.0]).double())
    torch.testing.assert_close(layer.routing_map, torch.tensor([3.0, 0.0]).double() - 2 * 0.9**5)
    assert layer.map_updates == 6


def test_evaluation_reads_the_map_alone():
    """Spec 13.16: learner of NaN, other batch mates, a round trip through state_dict."""
    layer = make(EpitomeConv2d, 6, 4, 1, positions="feature", at=0.0)
    for seed in range(3):
        layer(inputs(4, 6, 5, 5, seed=seed))
    assert layer.routing_map.abs().min() > 0
    layer.eval()
    x = inputs(4, 6, 5, 5).detach()
    y = layer(x)
    for parameter in layer.learner.parameters():
        parameter.data.fill_(math.nan)
    assert layer(x).equal(y)
    torch.testing.assert_close(layer(x[:1]), y[:1])
    other = EpitomeConv2d(6, 4, 1, positions="feature").double().eval()
    other.load_state_dict(layer.state_dict())
    assert other(x).equal(y)


def test_positions_of_a_learner_lie_in_their_ranges():
    layer = make(EpitomeConv2d, 4, 6, 4, multiplier=0.5, share="out", epitome_size=(5, 6), positions="feature", at=0.0)
    z = inputs(6)
    p = layer._from_learner(z)
    torch.testing.assert_close(p[:, 0], 3 * z[0::3].sigmoid())  # an axis of 3 channels
    torch.testing.assert_close(p[:, 1], 1 * z[1::3].sigmoid())
    torch.testing.assert_close(p[:, 2], 2 * z[2::3].sigmoid())


def test_the_released_learner_is_a_free_vector():
    """Spec 5 (C): in training z is the last bias for any input, c = z / ||z||; a block is c*E + (1-c)*roll(E, -1)."""
    layer = make(EpitomeConv2d, 6, 4, 1, positions="feature_authors", map_momentum=0.0, bias=False, at=0.0)
    bias = torch.tensor([0.6, -0.3]).double()
    layer.learner.norm2.bias.data.copy_(bias)
    x = inputs(4, 6, 7, 7)
    c = bias / bias.norm()
    layer(x)
    torch.testing.assert_close(layer.routing_map, 1 - c)
    e = layer.epitome.detach()
    weight = torch.cat([c_r * e + (1 - c_r) * e.roll(-1, 1) for c_r in c], 1)  # the second one extrapolates
    torch.testing.assert_close(layer.weight.detach(), weight)
    torch.testing.assert_close(layer(x).detach(), F.conv2d(x, weight).detach())
    assert EpitomeConv2d(6, 4, 1, multiplier=1, positions="feature_authors").learner is None


@pytest.mark.parametrize("source", ["feature", "feature_authors"])
def test_learned_positions_are_float32_under_autocast(source):
    layer = EpitomeConv2d(64, 2, 1, positions=source)
    if source == "feature_authors":
        layer.learner.norm2.bias.data.copy_(torch.tensor([0.6, 0.8]))
    with torch.autocast("cpu", torch.bfloat16):
        positions = layer.route(torch.randn(4, 64, 5, 5))
        layer(torch.randn(4, 64, 5, 5)).float().sum().backward()
    assert positions.dtype == layer.routing_map.dtype == torch.float32
