"""ReXNet (Han et al., CVPR 2021)."""

from dataclasses import replace

from torch import nn

from lightning_modules.classifier import Classifier
from lightning_modules.initial import Weights
from networks.rexnet.release import from_release, is_release


class ReXNet(Classifier):
    """Trains ReXNet, its relatives and the networks of its search as the published command does.

    Weights decay but for biases and batch normalisation, as in timm's training script, which that command runs.
    `initial_checkpoint` may also be a file of the authors' release. All else is Classifier's. Recipes are in
    configs/rexnet/; `frugal search` trains many of these.

    Raises:
        InputError: all that Classifier refuses; a released file of another width.
    """

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        return parameter.ndim > 1

    def start_from(self, weights: Weights) -> str:
        if is_release(weights.tensors):
            weights = replace(weights, tensors=from_release(weights.tensors, self.network))
        return super().start_from(weights)
