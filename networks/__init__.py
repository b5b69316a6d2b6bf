"""Networks, layers and surgery in pure PyTorch. Importing it registers every architecture with timm."""

from networks import (
    binarize,
    biprop,
    bits,
    complexity,
    detection,
    epitome,
    expert_binary,
    registry,
    rexnet,
    surgery,
)
from networks.errors import InputError
from networks.registry import compressed, create

__all__ = [
    "InputError",
    "binarize",
    "biprop",
    "bits",
    "complexity",
    "compressed",
    "create",
    "detection",
    "epitome",
    "expert_binary",
    "registry",
    "rexnet",
    "surgery",
]
