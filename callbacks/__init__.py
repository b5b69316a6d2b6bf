"""Callbacks that work with every method; they speak to layers through the protocols in networks/."""

from callbacks.complexity import ComplexityMonitor
from callbacks.curves import TrainingCurves
from callbacks.predictions import PredictionWriter

__all__ = ["ComplexityMonitor", "PredictionWriter", "TrainingCurves"]
