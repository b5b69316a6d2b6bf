"""Faster R-CNN (Ren et al. 2015) and Mask R-CNN (He et al. 2017) with feature pyramids (Lin et al. 2017)."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn
from torchvision.models import detection
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from networks.detection.options import check_options
from networks.detection.taps import Taps, taps

STRIDES = (4, 8, 16, 32)
WIDTH = 256


class FasterRCNN(detection.FasterRCNN):
    """torchvision's, which says what it costs."""

    cost_parts: ClassVar = {
        "backbone": "backbone.body",
        "neck": "backbone.fpn",
        "RPN head": "rpn",
        "box head": "roi_heads.box_",
        "mask head": "roi_heads.mask_",
    }

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.rpn.side_operations = self.roi_heads.side_operations = ("torchvision::nms",)
        for pool in (self.roi_heads.box_roi_pool, self.roi_heads.mask_roi_pool):
            if pool is not None:
                pool.side_operations = ("torchvision::roi_align",)

    def deployed_forward(self, x: Tensor) -> None:
        """All layers on one image and as many proposals and objects as are kept at most, for counting."""
        maps = list(self.backbone(x).values())
        self.rpn.head(maps)
        heads, channels = self.roi_heads, maps[0].shape[1]
        proposals, objects = self.rpn._post_nms_top_n["testing"], heads.detections_per_img
        side = heads.box_roi_pool.output_size[0]
        heads.box_predictor(heads.box_head(x.new_empty(proposals, channels, side, side)))
        if heads.has_mask():
            side = heads.mask_roi_pool.output_size[0]
            heads.mask_predictor(heads.mask_head(x.new_empty(objects, channels, side, side)))


class MaskRCNN(FasterRCNN, detection.MaskRCNN):
    """torchvision's, which says what it costs."""


class Pyramid(nn.Sequential):
    """A backbone and its feature pyramid: five maps of `out_channels`."""

    out_channels = WIDTH

    def __init__(self, body: Taps) -> None:
        fpn = FeaturePyramidNetwork(body.channels, WIDTH, LastLevelMaxPool())
        super().__init__(OrderedDict(body=body, fpn=fpn))


def fasterrcnn(
    backbone: str | nn.Module = "rexnet",
    backbone_args: Mapping[str, Any] | None = None,
    num_classes: int = 91,
    pretrained: bool = False,
    img_size: tuple[int, int] = (800, 1200),
    **options: Any,
) -> FasterRCNN:
    """Faster R-CNN with a feature pyramid on the maps of strides 4, 8, 16 and 32: torchvision's, on any backbone.

    Args:
        backbone: timm name, import path, or a network.
        backbone_args: of a backbone by name, such as {"width": 2.2}.
        num_classes: with the background, which is 0.
        pretrained: take timm's ImageNet weights for the backbone.
        img_size: (H, W) of a usual image; the short side is resized to that of this, as long as the long one stays
            within 1333 for 800.
        options: of torchvision's FasterRCNN, such as box_score_thresh, rpn_post_nms_top_n_test.

    Shape:
        As torchvision's detectors: images, a list of (3, H, W) in 0 to 1, and targets in training.

    Raises:
        InputError: what `networks.create` and `Taps` refuse.
    """
    return _build(FasterRCNN, backbone, backbone_args, num_classes, pretrained, img_size, options)


def maskrcnn(
    backbone: str | nn.Module = "rexnet",
    backbone_args: Mapping[str, Any] | None = None,
    num_classes: int = 91,
    pretrained: bool = False,
    img_size: tuple[int, int] = (800, 1200),
    **options: Any,
) -> MaskRCNN:
    """Mask R-CNN with a feature pyramid: `fasterrcnn` with torchvision's branch of masks; arguments as there."""
    return _build(MaskRCNN, backbone, backbone_args, num_classes, pretrained, img_size, options)


def longest_side(shortest: int) -> int:
    """The limit of the long side that goes with a short side: 1333 with 800."""
    return round(shortest * 1333 / 800)


def _build(
    kind: Any,
    backbone: str | nn.Module,
    backbone_args: Mapping[str, Any] | None,
    num_classes: int,
    pretrained: bool,
    img_size: tuple[int, int],
    options: dict[str, Any],
) -> Any:
    check_options(
        options, detection.MaskRCNN if kind is MaskRCNN else detection.FasterRCNN, {"backbone", "num_classes"}
    )
    body = taps(backbone, backbone_args, pretrained, STRIDES)
    sizes = {"min_size": min(img_size), "max_size": longest_side(min(img_size))}
    return kind(Pyramid(body), num_classes, **{**sizes, **body.statistics, **options})
