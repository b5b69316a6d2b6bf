"""Object detectors of torchvision on any backbone of timm: SSDLite, Faster R-CNN and Mask R-CNN with FPN."""

from networks.detection.single_stage import SSDLite, ssdlite
from networks.detection.taps import Taps
from networks.detection.two_stage import FasterRCNN, MaskRCNN, fasterrcnn, maskrcnn

__all__ = ["FasterRCNN", "MaskRCNN", "SSDLite", "Taps", "fasterrcnn", "maskrcnn", "ssdlite"]
