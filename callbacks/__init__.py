"""Callbacks that work with every method; they speak to layers through the protocols in networks/."""

from callbacks.channels_last import ChannelsLast
from callbacks.checkpoint_io import AtomicCheckpointIO
from callbacks.complexity import ComplexityMonitor
from callbacks.curves import TrainingCurves
from callbacks.detection_pictures import DetectionPictures
from callbacks.distillation import Distillation
from callbacks.exact_resume import ExactResume
from callbacks.feature_map import FeatureMap
from callbacks.finite_loss import FiniteLoss
from callbacks.known_monitors import KnownMonitors
from callbacks.last_checkpoint import LastCheckpoint
from callbacks.layer_monitor import LayerMonitor
from callbacks.learning_rates import LearningRates
from callbacks.nuclear_norm import NuclearNorm
from callbacks.predictions import PredictionWriter
from callbacks.progress import ProgressBar
from callbacks.sampling_map import SamplingMap
from callbacks.sync_batchnorm import SyncBatchNorm
from callbacks.temperature import TemperatureAnnealing
from callbacks.wandb_summary import WandbSummary

__all__ = [
    "AtomicCheckpointIO",
    "ChannelsLast",
    "ComplexityMonitor",
    "DetectionPictures",
    "Distillation",
    "ExactResume",
    "FeatureMap",
    "FiniteLoss",
    "KnownMonitors",
    "LastCheckpoint",
    "LayerMonitor",
    "LearningRates",
    "NuclearNorm",
    "PredictionWriter",
    "ProgressBar",
    "SamplingMap",
    "SyncBatchNorm",
    "TemperatureAnnealing",
    "TrainingCurves",
    "WandbSummary",
]
