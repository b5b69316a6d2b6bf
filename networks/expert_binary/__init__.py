"""Expert binary networks: binary convolutions that pick one of N experts for each image.

Bulat, Martinez & Tzimiropoulos, "High-Capacity Expert Binary Networks", ICLR 2021, arXiv 2010.03558.
"""

from networks.expert_binary.layers import STEPS, ExpertBinaryConv2d, Gate, winner_takes_all
from networks.expert_binary.models import ExpertBinaryResNet
from networks.expert_binary.packed import pack
from networks.expert_binary.release import from_release
from networks.expert_binary.surgery import apply, expert_layers, replicate, set_step

__all__ = [
    "STEPS",
    "ExpertBinaryConv2d",
    "ExpertBinaryResNet",
    "Gate",
    "apply",
    "expert_layers",
    "from_release",
    "pack",
    "replicate",
    "set_step",
    "winner_takes_all",
]
