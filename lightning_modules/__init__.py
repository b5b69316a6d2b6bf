"""How networks are trained: one module per method over a shared Classifier, and Detector.

A new method's file needs no line here: the tasks of all files are found. Those that stand here are known to type
checkers by name.
"""

import importlib
import pkgutil

from lightning_modules.biprop import Biprop
from lightning_modules.classifier import Classifier
from lightning_modules.detector import Detector
from lightning_modules.epitome import Epitome
from lightning_modules.expert_binary import ExpertBinary
from lightning_modules.rexnet import ReXNet
from lightning_modules.task import Task

__all__ = ["Biprop", "Classifier", "Detector", "Epitome", "ExpertBinary", "ReXNet", "Task"]

for _found in pkgutil.iter_modules(__path__, f"{__name__}."):
    for _name, _class in vars(importlib.import_module(_found.name)).items():
        if isinstance(_class, type) and issubclass(_class, Task) and _name not in __all__:
            globals()[_name] = _class
            __all__.append(_name)
