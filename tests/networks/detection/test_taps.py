"""Backbones of detectors."""

import pytest
import timm
import torch
from torch import nn

from networks import InputError, biprop, complexity, epitome
from networks.detection import Taps, fasterrcnn, ssdlite

ZOO = (
    "rexnet", "resnet18", "wide_resnet50_2", "vgg11_bn", "mobilenetv2_100", "mobilenetv3_small_050", "efficientnet_b0",
    "regnety_002", "convnext_atto", "ghostnet_100", "mixnet_s", "densenet121", "inception_v3", "epitome_mobilenetv2",
)  # fmt: skip


def taps(name, strides, final=False, **args):
    return Taps(timm.create_model(name, **args), strides, final).eval()


def test_maps_of_rexnet():
    """Channels 38, 61, 128, 185 at strides 4, 8, 16, 32; before the classifier 1280 (spec 7.2, 11.6)."""
    x = torch.randn(1, 3, 64, 96)
    maps = taps("rexnet", (4, 8, 16, 32))(x)
    sizes = [(1, 38, 16, 24), (1, 61, 8, 12), (1, 128, 4, 6), (1, 185, 2, 3)]
    assert [tuple(each.shape) for each in maps.values()] == sizes
    maps = taps("rexnet", (16,), final=True)(x)
    assert [tuple(each.shape) for each in maps.values()] == [(1, 128, 4, 6), (1, 1280, 2, 3)]


def test_maps_are_those_of_timm():
    torch.manual_seed(0)
    features = timm.create_model("rexnet_100", features_only=True, out_indices=(1, 2, 3, 4)).eval()
    ours = taps("rexnet_100", (4, 8, 16, 32))
    by_timms_names = {
        name.replace("features.", "features_"): tensor for name, tensor in ours.network.state_dict().items()
    }
    features.load_state_dict(by_timms_names)
    x = torch.randn(2, 3, 64, 64)
    for one, other in zip(ours(x).values(), features(x), strict=True):
        assert torch.equal(one, other)


def test_map_before_the_classifier_is_what_the_classifier_sees():
    for name in ("rexnet_100", "efficientnet_b0", "mobilenetv3_small_050"):
        network = timm.create_model(name).eval()
        x = torch.randn(1, 3, 64, 64)
        seen = network.forward_features(x)
        assert torch.equal(Taps(network, (16,), final=True).eval()(x)["1"], seen)


def test_names_of_weights_are_the_classifiers():
    own = timm.create_model("rexnet", width=0.9).state_dict()
    inside = taps("rexnet", (4, 8, 16, 32), width=0.9).network.state_dict()
    assert inside.keys() < own.keys()
    assert {name.split(".")[0] for name in own.keys() - inside.keys()} == {"head", "features"}
    assert {name.split(".")[1] for name in own.keys() - inside.keys() if name.startswith("features")} == {"16"}


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("build", [fasterrcnn, ssdlite])
def test_backbones_of_the_zoo(name, build):
    """Channels are as said, and every parameter has a gradient: data-parallel training stops at one that has none."""
    body = build(name).backbone.body.train()
    maps = body(torch.randn(2, 3, 96, 128))
    assert [each.shape[1] for each in maps.values()] == body.channels
    sum(each.square().mean() for each in maps.values()).backward()
    assert [name for name, p in body.named_parameters() if p.grad is None] == []


def test_of_several_maps_of_a_stride_the_last():
    class Network(nn.Module):
        feature_info = ({"reduction": 4, "num_chs": 3}, {"reduction": 4, "num_chs": 5}, {"reduction": 8, "num_chs": 7})

        def forward_intermediates(self, x, indices, intermediates_only):
            return [x.new_zeros(1, self.feature_info[i]["num_chs"], 2, 2) for i in indices]

        def prune_intermediate_layers(self, indices, prune_norm):
            return indices

    body = Taps(Network(), (4, 8))
    assert body.indices == [1, 2]
    assert [each.shape[1] for each in body(torch.zeros(1)).values()] == body.channels == [5, 7]


def test_methods_of_ours_on_a_backbone():
    """The same argument takes a network in whose layers a method has put its own."""
    ticket, condensed = timm.create_model("rexnet"), timm.create_model("rexnet")
    biprop.apply(ticket, keep_fraction=0.25)
    epitome.apply(condensed, 0.25)
    plain = complexity.count(fasterrcnn("rexnet"), (3, 64, 96))
    for network, kind in ((ticket, biprop.SubnetConv2d), (condensed, epitome.EpitomeConv2d)):
        detector = fasterrcnn(network)
        assert any(isinstance(layer, kind) for layer in detector.backbone.body.modules())
        report = complexity.count(detector, (3, 64, 96))
        assert report.parts[0].params < 0.6 * plain.parts[0].params
        assert report.parts[0].flops <= plain.parts[0].flops
        assert report.parts[0].size_bits < 0.6 * plain.parts[0].size_bits
        assert report.parts[1:] == plain.parts[1:]


def test_methods_of_ours_by_name():
    args = {"network": "rexnet", "method": "biprop", "method_args": {"keep_fraction": 0.25}, "width": 0.9}
    detector = ssdlite("networks.compressed", args).train()
    layers = [layer for layer in detector.backbone.body.modules() if isinstance(layer, biprop.SubnetConv2d)]
    assert {layer.keep_fraction for layer in layers} == {0.25}
    target = {"boxes": torch.tensor([[20.0, 30, 200, 220]]), "labels": torch.tensor([7])}
    sum(detector([torch.rand(3, 320, 320)] * 2, [target] * 2).values()).backward()
    assert all(layer.scores.grad is not None and layer.weight.grad is None for layer in layers)
    assert layers[0].scores.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "rexnett"}, "no network is called 'rexnett'; did you mean rexnet"),
        ({"backbone": "rexnet_lite"}, "BottleneckNet gives no feature maps of inner layers: take another backbone"),
        ({"backbone": "swin_tiny_patch4_window7_224"}, "SwinTransformer is no backbone for detectors"),
        ({"backbone_args": {"width": 0.9}, "pretrained": True}, "pretrained false starts from random weights"),
        ({"backbone_args": {"widht": 0.9}}, "cannot be built with {'widht': 0.9}"),
        (
            {"backbone": "resnet18", "backbone_args": {"width": 0.9}},
            "such arguments: --model.network_args.backbone_args {}",
        ),
        ({"backbone_args": 3}, "backbone_args=3 are arguments by name"),
        ({"backbone": 3}, "backbone=3 is neither a name nor a network"),
        ({"box_score_thresh": "abc"}, "box_score_thresh='abc' must be a number"),
        ({"backbone": "networks.compressed", "backbone_args": {"network": "rexnet"}}, "'method'"),
        (
            {
                "backbone": "networks.compressed",
                "backbone_args": {"network": "rexnet", "method": "biprop", "method_args": {"keep": 0.1}},
            },
            "'keep'",
        ),
        ({"backbone": nn.Identity(), "pretrained": True}, "go with a backbone by name"),
        ({"backbone": nn.Identity()}, "Identity gives no feature maps"),
        (
            {"backbone": "networks.compressed", "backbone_args": {"network": "rexnet", "method": "bitprop"}},
            "no method is called 'bitprop': biprop, epitome, expert_binary are",
        ),
        ({"box_score_tresh": 0.1}, "has no option box_score_tresh; did you mean box_score_thresh"),
    ],
)
def test_refused(arguments, message):
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        fasterrcnn(**arguments)


def test_images_are_normalised_as_for_timms_weights():
    assert timm.get_pretrained_cfg("efficientnet_b1").mean == (0.5, 0.5, 0.5)
    assert ssdlite("efficientnet_b1").transform.image_mean == [0.5, 0.5, 0.5]
    assert fasterrcnn("rexnet").transform.image_std == [0.229, 0.224, 0.225]
    assert fasterrcnn("efficientnet_b1", image_mean=[0.1] * 3).transform.image_mean == [0.1] * 3


def test_ssdlite_refuses_a_last_map_of_another_stride():
    with pytest.raises(InputError, match="ssdlite takes a last map of stride 32, and this backbone has one of 16"):
        ssdlite("resnet18", {"output_stride": 16})


def test_a_stride_that_is_not_there():
    with pytest.raises(InputError, match=r"ResNet has feature maps at strides \[2, 4, 8, 16, 32\], not at \[64\]"):
        taps("resnet18", (4, 64))
