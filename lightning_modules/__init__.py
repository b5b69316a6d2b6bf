"""How networks are trained: one module per method over a shared Classifier, and Detector."""

from lightning_modules.biprop import Biprop
from lightning_modules.classifier import Classifier
from lightning_modules.detector import Detector
from lightning_modules.epitome import Epitome
from lightning_modules.expert_binary import ExpertBinary
from lightning_modules.rexnet import ReXNet

__all__ = ["Biprop", "Classifier", "Detector", "Epitome", "ExpertBinary", "ReXNet"]
