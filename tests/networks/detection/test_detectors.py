"""Detectors are torchvision's, with the parameters of the paper's tables."""

import pytest
import torch
from torch.nn import functional as F
from torchvision.models import detection as torchvisions

import networks
from networks import InputError, complexity
from networks.detection import fasterrcnn, maskrcnn, ssdlite
from networks.detection.single_stage import BACKGROUND

X = "rexnet"
# Millions of parameters and multiply-adds (spec 4.3; 8.6 for EfficientNet): tolerances 0.01 and 0.05
COSTS = [
    (ssdlite, X, 0.9, 5.00, 846), (ssdlite, X, 1.0, 5.69, 963), (ssdlite, X, 1.3, 8.41, 1541),
    (ssdlite, "efficientnet_b0", None, 6.17, None), (ssdlite, "efficientnet_b1", None, 8.68, None),
    (ssdlite, "efficientnet_b2", None, 9.98, None),
    (fasterrcnn, X, 0.9, 20.16, 116_200), (fasterrcnn, X, 1.0, 20.70, 117_200), (fasterrcnn, X, 2.2, 33.07, 145_100),
    (fasterrcnn, "resnet50", None, 41.81, 194_600), (fasterrcnn, "efficientnet_b0", None, 21.04, 116_500),
    (fasterrcnn, "resnext101_32x4d", None, 60.43, None),
    (maskrcnn, X, 0.9, 22.80, None), (maskrcnn, X, 1.0, 23.35, None), (maskrcnn, X, 2.2, 35.72, None),
    (maskrcnn, "resnet50", None, 44.45, None), (maskrcnn, "efficientnet_b0", None, 23.69, None),
]  # fmt: skip


@pytest.mark.parametrize(("build", "backbone", "width", "params", "macs"), COSTS)
def test_costs(build, backbone, width, params, macs):
    with torch.device("meta"):
        network = build(backbone, {"width": width} if width else None)
    report = complexity.count(network, (3, 320, 320) if build is ssdlite else (3, 800, 1200))
    assert abs(report.params / 1e6 - params) <= 0.01
    assert report.params == sum(parameter.numel() for parameter in network.parameters())
    if macs:
        assert abs(report.flops / 1e6 - macs) <= (0.5 if build is ssdlite else 50)


def test_parts_are_the_whole_and_what_is_unknown_is_named():
    with torch.device("meta"):
        report = complexity.count(maskrcnn(), (3, 800, 1200))
    assert [part.name for part in report.parts] == ["backbone", "neck", "RPN head", "box head", "mask head"]
    for figure in ("params", "flops", "size_bits"):
        assert sum(getattr(part, figure) for part in report.parts) == getattr(report, figure)
    unknown = {layer.name: layer.uncounted for layer in report.layers if layer.uncounted}
    assert unknown == {
        "rpn": ("torchvision::nms",),
        "roi_heads": ("torchvision::nms",),
        "roi_heads.box_roi_pool": ("torchvision::roi_align",),
        "roi_heads.mask_roi_pool": ("torchvision::roi_align",),
    }
    assert report.overhead_flops is None
    assert all(f"unknown: {name}: {operations[0]}" in str(report) for name, operations in unknown.items())


def test_heads_by_hand():
    """1000 proposals of 256 x 7 x 7 through two layers of 1024; 100 objects through 3x3 convolutions at 14 x 14."""
    with torch.device("meta"):
        parts = {part.name: part.flops for part in complexity.count(maskrcnn(), (3, 800, 1200)).parts}
    places = sum(-(-800 // stride) * -(-1200 // stride) for stride in (4, 8, 16, 32, 64))
    assert parts["RPN head"] == places * (256 * 256 * 9 + 256 * 3 + 256 * 12)
    assert parts["box head"] == 1000 * (256 * 49 * 1024 + 1024 * 1024 + 1024 * 91 * 5)
    deconvolution, scores = 256 * 256 * 4 * 14 * 14, 256 * 91 * 28 * 28
    assert parts["mask head"] == 100 * (4 * 256 * 256 * 9 * 14 * 14 + deconvolution + scores)


def test_proposals_are_counted_as_many_as_are_kept():
    with torch.device("meta"):
        few, many = (fasterrcnn(rpn_post_nms_top_n_test=count) for count in (10, 1000))
    few, many = (complexity.count(network, (3, 320, 480)).parts[-1].flops for network in (few, many))
    assert many == 100 * few


def test_faster_rcnn_is_torchvisions():
    """With the weights of torchvision's own, the same detections."""
    torch.manual_seed(0)
    args = {"weights": None, "weights_backbone": None, "min_size": 96, "max_size": 160, "box_score_thresh": 0.011}
    theirs = torchvisions.fasterrcnn_resnet50_fpn(**args).eval()
    norm = {"norm_layer": torch.nn.BatchNorm2d}
    theirs = torchvisions.fasterrcnn_resnet50_fpn(**args, **norm).eval()
    ours = fasterrcnn("resnet50", img_size=(96, 144), box_score_thresh=0.011).eval()
    ours.load_state_dict(
        {name.replace("backbone.body.", "backbone.body.network."): t for name, t in theirs.state_dict().items()}
    )
    images = [torch.rand(3, 100, 150), torch.rand(3, 150, 90)]
    for one, other in zip(ours(images), theirs(images), strict=True):
        assert len(one["boxes"]) > 0
        assert all(torch.allclose(one[name], other[name], atol=1e-5) for name in other)


def anchors(network, side=320):
    features = network.backbone(torch.zeros(1, 3, side, side))
    images = torchvisions.image_list.ImageList(torch.zeros(1, 3, side, side), [(side, side)])
    return network.anchor_generator(images, list(features.values()))[0]


def test_anchors_of_ssdlite():
    """3234; squares of 45 and of the mean of 45 and 90, then ratios 2, 1/2, 3 and 1/3 of the area (spec 7.2)."""
    network = ssdlite().eval()
    boxes = anchors(network)
    assert len(boxes) == (400 + 100 + 25 + 9 + 4 + 1) * 6 == 3234
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    root = 45 * torch.tensor([2.0, 3.0]).sqrt()
    sides = torch.tensor([45.0, (45 * 90) ** 0.5, root[0], 45**2 / root[0], root[1], 45**2 / root[1]])
    assert torch.allclose(width[:6], sides, atol=1e-3)
    assert torch.allclose(height[:6], sides[[0, 1, 3, 2, 5, 4]], atol=1e-3)
    centres = (boxes[:, 2:] + boxes[:, :2]) / 2
    starts = [0, 2400, 3000, 3150, 3204, 3228]
    assert torch.allclose(centres[starts, 0], torch.tensor([8.0, 16, 32, 60, 80, 160]), atol=1e-3)
    assert torch.allclose(width[starts], torch.tensor([45.0, 90, 135, 180, 225, 270]), atol=1e-3)


def test_thresholds_of_ssdlite():
    network = ssdlite()
    assert (network.nms_thresh, network.detections_per_img, network.proposal_matcher.high_threshold) == (0.5, 100, 0.5)
    assert all(abs(part.module_list[-1].weight.std() - 0.03) < 0.005 for part in network.head.children())


def test_anchors_grow_with_the_size():
    """Twice as large, at places that stay 16 pixels apart."""
    boxes = anchors(ssdlite(img_size=(640, 640)).eval(), 640)
    assert torch.allclose(boxes[0], torch.tensor([-37.0, -37, 53, 53]))
    assert torch.allclose(boxes[6] - boxes[0], torch.tensor([16.0, 0, 16, 0]))


def test_before_training_all_is_background():
    network = ssdlite(num_classes=7).eval()
    logits = network.head(list(network.backbone(torch.rand(1, 3, 320, 320)).values()))["cls_logits"]
    assert abs(logits.softmax(-1)[..., 0].mean() - BACKGROUND) < 0.005


@pytest.mark.parametrize("gamma", [0.0, 2.0, 1.5])
def test_losses_of_ssdlite(gamma):
    """Against loops over anchors, one of the images without objects."""
    torch.manual_seed(0)
    network = ssdlite(num_classes=5, focal_gamma=gamma)
    boxes = torch.tensor([[10.0, 10, 110, 110], [150, 40, 300, 200]])
    targets = [
        {"boxes": boxes, "labels": torch.tensor([3, 1])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()},
    ]
    each = anchors(network.eval())
    matched = [network.proposal_matcher(torchvisions.ssd.box_ops.box_iou(boxes, each)), torch.full((3234,), -1)]
    head = {"bbox_regression": torch.randn(2, 3234, 4), "cls_logits": torch.randn(2, 3234, 5)}
    found = network.compute_loss(targets, head, [each, each], matched)
    box_loss = class_loss = objects = 0.0
    for i in range(2):
        for a in range(3234):
            match = int(matched[i][a])
            label = 0 if match < 0 else int(targets[i]["labels"][match])
            p = head["cls_logits"][i, a].softmax(0)[label]
            class_loss += -((1 - p) ** gamma) * p.log()
            if match >= 0:
                objects += 1
                offsets = network.box_coder.encode_single(boxes[match : match + 1], each[a : a + 1])
                box_loss += F.smooth_l1_loss(head["bbox_regression"][i, a : a + 1], offsets, reduction="sum")
    assert objects > 2
    assert torch.allclose(found["classification"], class_loss / objects, rtol=1e-4)
    assert torch.allclose(found["bbox_regression"], box_loss / objects, rtol=1e-4)


def test_loss_of_boxes_is_torchvisions():
    torch.manual_seed(0)
    network = ssdlite().train()
    images = [torch.rand(3, 320, 320)] * 2
    targets = [{"boxes": torch.tensor([[20.0, 30, 200, 220]]), "labels": torch.tensor([7])}] * 2
    ours = network(images, targets)
    network.__class__ = torchvisions.ssd.SSD
    assert torch.allclose(ours["bbox_regression"], network(images, targets)["bbox_regression"])


def test_no_object_in_any_image():
    network = ssdlite().train()
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    losses = network([torch.rand(3, 320, 320)] * 2, [nothing, nothing])
    assert losses["bbox_regression"] == 0
    assert 0 < losses["classification"] < 3234 * 2


def test_offsets_have_variances_of_a_tenth_and_a_fifth():
    """An object as large as its anchor and a tenth of it aside has the offset 1; one e^0.2 as large too (spec 7.2)."""
    coder = ssdlite().box_coder
    anchor = torch.tensor([[0.0, 0, 100, 100]])
    assert torch.allclose(coder.encode_single(anchor + 10, anchor), torch.tensor([[1.0, 1, 0, 0]]), atol=1e-5)
    half = 50 * torch.tensor(0.2).exp()
    larger = torch.stack([50 - half, 50 - half, 50 + half, 50 + half])[None]
    assert torch.allclose(coder.encode_single(larger, anchor), torch.tensor([[0.0, 0, 1, 1]]), atol=1e-5)


def test_refused():
    with pytest.raises(InputError, match=r"ssdlite takes squares, not \(320, 480\)"):
        ssdlite(img_size=(320, 480))
    with pytest.raises(InputError, match="SSD has no option nms_tresh; did you mean nms_thresh"):
        ssdlite(nms_tresh=0.4)
    with pytest.raises(InputError, match="SSD has no option positive_fraction"):
        ssdlite(positive_fraction=0.5)
    for gamma in (-1, 0.5, float("nan")):
        with pytest.raises(InputError, match="must be 0, or 1 or more"):
            ssdlite(focal_gamma=gamma)
    with pytest.raises(InputError, match=r"num_classes of .*ssdlite come from the data"):
        networks.create("networks.detection.ssdlite", (3, 320, 320), 7, {"num_classes": 9})
    with pytest.raises(InputError, match="MaskRCNN has no option masks; it has min_size"):
        maskrcnn(masks=True)


def test_by_import_path():
    network = networks.create("networks.detection.ssdlite", (3, 320, 320), 7, {"backbone_args": {"width": 0.9}})
    assert isinstance(network, networks.detection.SSDLite)
    assert network.head.classification_head.num_columns == 7
