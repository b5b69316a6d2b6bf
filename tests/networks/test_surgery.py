import re

import pytest
import timm
import torch
from torch import nn

from networks import InputError, surgery


class Special(nn.Linear):
    pass


def swap(layer: nn.Linear) -> nn.Linear:
    return nn.Linear(layer.in_features, layer.out_features, bias=False)


def test_replaces_exact_types_by_name_and_says_which():
    net = nn.Sequential(nn.Linear(2, 3), Special(3, 3), nn.Sequential(nn.Linear(3, 4), nn.ReLU()))
    special = net[1]
    assert surgery.replace(net, swap, (nn.Linear,), r"^2\.") == ["2.0"]
    assert net[0].bias is not None
    assert net[1] is special
    assert net[2][0].bias is None
    assert surgery.replace(net, swap, (nn.Linear,)) == ["0", "2.0"]
    assert net(torch.ones(1, 2)).shape == (1, 4)


def test_a_layer_in_two_places_stays_one_layer():
    shared = nn.Linear(2, 2)
    net = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared)})
    assert surgery.replace(net, swap, (nn.Linear,)) == ["a", "b.0"]
    assert net["a"] is net["b"][0]
    assert net["a"] is not shared


def test_new_layer_takes_over_device_dtype_mode_and_activation_bits():
    net = nn.Sequential(nn.Linear(2, 2)).to("meta", torch.float64).eval()
    net[0].activation_bits = 1
    surgery.replace(net, swap, (nn.Linear,))
    assert net[0].weight.device.type == "meta"
    assert net[0].weight.dtype == torch.float64
    assert not net[0].training
    assert net[0].activation_bits == 1


def test_refuses_a_bare_layer():
    with pytest.raises(InputError, match=r"single Linear: put it into an nn.Sequential"):
        surgery.replace(nn.Linear(2, 2), swap, (nn.Linear,))


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("mobilenetv3_small_050", r"\.se\."),
        ("regnety_002", r"\.se\."),
        ("legacy_seresnet18", r"\.se_module\."),
        ("nf_regnet_b0", r"\.attn\."),
        ("rexnet_100", r"\.se\."),
        ("skresnet18", r"conv\d\.attn\."),
        ("resnet18", "nowhere"),
    ],
)
def test_squeeze_and_excitation_is_found_by_its_class(name, inside):
    net = timm.create_model(name)  # not on the meta device: torch 2.4 has no unique there, for RegNet
    layers = {name: layer for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d)}
    found = surgery.inside_attention(net)
    assert {name for name, layer in layers.items() if layer in found} == {n for n in layers if re.search(inside, n)}


def test_special_layers_are_told_by_name_and_type():
    class Special(nn.Conv2d):
        pass

    net = nn.Sequential(nn.Conv2d(1, 1, 1), *[Special(1, 1, 1) for _ in range(5)], nn.Linear(1, 1))
    convs = (nn.Conv2d,)
    assert surgery.special(net, convs, convs) == "1 (Special), 2 (Special), 3 (Special) and 2 more"
    assert surgery.special(net, convs, convs, net[2:]) == "1 (Special)"
    assert surgery.special(net, convs, (*convs, Special)) == ""
