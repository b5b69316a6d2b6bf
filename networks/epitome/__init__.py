"""Epitomes: weights sampled from a small shared tensor at learned positions.

Zhou et al., "Neural Epitome Search for Architecture-Agnostic Network Compression" (NES), ICLR 2020, arXiv 1907.05642;
Jin et al., "WSNet: Compact and Efficient Networks Through Weight Sampling", ICML 2018, arXiv 1711.10067.
"""

from networks.epitome import models, sampler, sound
from networks.epitome.base import EpitomeLayer, quantize
from networks.epitome.conv1d import EpitomeConv1d, integral_map_conv1d
from networks.epitome.layers import EpitomeConv2d, EpitomeLinear
from networks.epitome.learner import IndexLearner
from networks.epitome.surgery import Rule, WindowRule, apply, epitome_layers, freeze, materialise

__all__ = [
    "EpitomeConv1d",
    "EpitomeConv2d",
    "EpitomeLayer",
    "EpitomeLinear",
    "IndexLearner",
    "Rule",
    "WindowRule",
    "apply",
    "epitome_layers",
    "freeze",
    "integral_map_conv1d",
    "materialise",
    "models",
    "quantize",
    "sampler",
    "sound",
]
