"""SSDLite: predictions at each place of six feature maps (Liu et al. 2016; Sandler et al. 2018)."""

from collections import OrderedDict
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.ops import Conv2dNormActivation

from networks.detection.options import check_options
from networks.detection.taps import Taps, taps
from networks.errors import InputError

SIDES = (45, 90, 135, 180, 225, 270, 315)  # of the squares at 320 pixels: the smaller of each level, the larger follows
STEPS = (16, 32, 64, 120, 160, 320)  # pixels between the anchors of each level, at 320; else evenly over the image
EXTRA = (512, 256, 256, 128)  # channels of the levels behind the backbone
OURS = ("backbone", "anchor_generator", "size", "num_classes", "head", "positive_fraction")
BACKGROUND = 0.99  # its probability before training, as in RetinaNet (Lin et al. 2017, section 3.3); ours


class Pyramid(nn.Module):
    """The maps of a backbone, and smaller ones behind them, each half as large."""

    def __init__(self, body: Taps) -> None:
        super().__init__()
        self.body = body
        self.extra = nn.ModuleList(_halve(before, after) for before, after in pairwise((body.channels[-1], *EXTRA)))
        self.channels = (*body.channels, *EXTRA)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = list(self.body(x).values())
        for block in self.extra:
            maps.append(block(maps[-1]))
        return OrderedDict((str(i), each) for i, each in enumerate(maps))


class SSDLite(SSD):
    """torchvision's SSD with the focal loss over all anchors, in place of cross-entropy over the hardest.

    Args:
        focal_gamma: exponent of (1 - p) in the loss of a class (Lin et al. 2017, eq. 4): 0, which is cross-entropy, or
            1 or more.
        arguments: of torchvision's SSD.
    """

    cost_parts: ClassVar = {"backbone": "backbone.body", "extra levels": "backbone.extra", "heads": "head"}

    def __init__(self, *arguments: Any, focal_gamma: float = 2.0, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.focal_gamma = focal_gamma
        self.side_operations = ("torchvision::nms",)

    def deployed_forward(self, x: Tensor) -> None:
        """All layers on one image, for counting; what depends on values is left out."""
        self.head(list(self.backbone(x).values()))

    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Tensor]:
        """Losses of boxes (smooth L1, summed) and classes (focal), each over the number of matched anchors."""
        matched = torch.stack(matched_idxs)  # (N, A), the object of each anchor in its image, -1 for background
        image, anchor = (matched >= 0).nonzero(as_tuple=True)
        counts = torch.tensor([0, *(len(target["labels"]) for target in targets[:-1])], device=matched.device)
        which = matched[image, anchor] + counts.cumsum(0)[image]  # among the objects of all images
        objects = max(1, len(which))
        boxes, labels = (torch.cat([target[name] for target in targets])[which] for name in ("boxes", "labels"))
        offsets = self.box_coder.encode_single(boxes, torch.stack(anchors)[image, anchor])
        box_loss = F.smooth_l1_loss(head_outputs["bbox_regression"][image, anchor], offsets, reduction="sum")
        classes = torch.zeros_like(matched)
        classes[image, anchor] = labels
        loss = F.cross_entropy(head_outputs["cls_logits"].flatten(0, 1), classes.flatten(), reduction="none")
        class_loss = ((1 - torch.exp(-loss)) ** self.focal_gamma * loss).sum()
        return {"bbox_regression": box_loss / objects, "classification": class_loss / objects}


def ssdlite(
    backbone: str | nn.Module = "rexnet",
    backbone_args: Mapping[str, Any] | None = None,
    num_classes: int = 91,
    pretrained: bool = False,
    img_size: tuple[int, int] = (320, 320),
    focal_gamma: float = 2.0,
    **options: Any,
) -> SSDLite:
    """SSDLite on the feature maps of stride 16 and before the classifier, and four smaller ones.

    Taps, levels and anchors give the parameters that Han et al. (CVPR 2021) print for SSDLite on ReXNet. Unconfirmed,
    and chosen to fit them, are the last widths of the levels and six anchors at every place; unconfirmed is the form of
    the focal loss, here of the softmax and without weights of classes.

    Args:
        backbone: timm name, import path, or a network.
        backbone_args: of a backbone by name, such as {"width": 0.9}.
        num_classes: with the background, which is 0.
        pretrained: take timm's ImageNet weights for the backbone.
        img_size: (H, W) to which images are resized; anchors grow with it.
        focal_gamma: see SSDLite.
        options: of torchvision's SSD, such as score_thresh, nms_thresh, detections_per_img.

    Shape:
        As torchvision's detectors: images, a list of (3, H, W) in 0 to 1, and targets in training.

    Raises:
        InputError: what `networks.create` and `Taps` refuse; sizes other than squares, another focal_gamma.
    """
    if len(set(img_size)) != 1:
        raise InputError(f"ssdlite takes squares, not {img_size}: give both sides, such as --data.image_size [320,320]")
    if focal_gamma != 0 and not focal_gamma >= 1:  # between them its gradient is infinite where a class is certain
        raise InputError(f"{focal_gamma=} must be 0, or 1 or more")
    check_options(options, SSD, OURS)
    body = taps(backbone, backbone_args, pretrained, (16,), final=True)
    if body.last_stride != 32:
        raise InputError(f"ssdlite takes a last map of stride 32, and this backbone has one of {body.last_stride}")
    pyramid = Pyramid(body)
    side = img_size[0]
    anchors = DefaultBoxGenerator(
        [[2, 3]] * len(STEPS), scales=[s / 320 for s in SIDES], steps=list(STEPS) if side == 320 else None
    )
    head = SSDLiteHead(list(pyramid.channels), anchors.num_anchors_per_location(), num_classes, nn.BatchNorm2d)
    for part, outputs in ((head.classification_head, 6 * num_classes), (head.regression_head, 24)):
        part.module_list[-1] = nn.Conv2d(EXTRA[-1], outputs, 1)  # on a single place 3x3 sees padding
        nn.init.normal_(part.module_list[-1].weight, std=0.03)  # as torchvision's heads
        nn.init.zeros_(part.module_list[-1].bias)
    _expect_background(head, num_classes)
    given = {"nms_thresh": 0.5, "detections_per_img": 100, "focal_gamma": focal_gamma, **body.statistics, **options}
    return SSDLite(pyramid, anchors, img_size, num_classes, head=head, **given)


def _halve(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        Conv2dNormActivation(before, after // 2, 1, activation_layer=nn.ReLU6),
        Conv2dNormActivation(after // 2, after // 2, 3, 2, groups=after // 2, activation_layer=nn.ReLU6),
        Conv2dNormActivation(after // 2, after, 1, activation_layer=None),
    )


def _expect_background(head: SSDLiteHead, num_classes: int) -> None:
    odds = BACKGROUND / (1 - BACKGROUND) * (num_classes - 1)
    for level in head.classification_head.module_list:
        conv: Any = level if isinstance(level, nn.Conv2d) else level[-1]
        with torch.no_grad():
            conv.bias.view(-1, num_classes)[:, 0] = torch.tensor(odds).log()
