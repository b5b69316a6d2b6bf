"""Networks, layers and surgery in pure PyTorch. Importing it registers every architecture with timm.

A new method's folder needs no line here: all are imported. Those that stand here are known to type checkers by name.
"""

import importlib
import pkgutil

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

for _found in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_found.name)
