"""Data: every module says `num_classes` and `input_size` before it reads anything."""

from datamodules.cifar import CIFAR
from datamodules.digits import Digits
from datamodules.imagenet import ImageNet

__all__ = ["CIFAR", "Digits", "ImageNet"]
