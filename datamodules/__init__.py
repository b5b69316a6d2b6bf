"""Data: every module says `num_classes` and `input_size` before it reads anything."""

from datamodules.cifar import CIFAR
from datamodules.coco import COCO
from datamodules.digits import Digits
from datamodules.esc50 import ESC50
from datamodules.fine_grained import FineGrained
from datamodules.imagenet import ImageNet

__all__ = ["CIFAR", "COCO", "ESC50", "Digits", "FineGrained", "ImageNet"]
