"""ReXNet (Han et al., CVPR 2021)."""

from torch import nn

from lightning_modules.classifier import Classifier
from networks.rexnet import release


class ReXNet(Classifier):
    """Trains ReXNet, its relatives and the networks of its search as the published command does.

    Weights decay but for biases and batch normalisation, as in timm's training script, which that command runs. All
    else is Classifier's. Recipes are in configs/rexnet/; `frugal search` trains many of these.
    """

    release = release

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        return parameter.ndim > 1
