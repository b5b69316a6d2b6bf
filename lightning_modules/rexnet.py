"""ReXNet (Han et al., CVPR 2021)."""

from dataclasses import replace
from typing import Any

import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import nn

from lightning_modules.classifier import Classifier, Network, Schedule
from lightning_modules.initial import Weights
from networks.rexnet.release import from_release, is_release


class ReXNet(Classifier):
    """Trains ReXNet, its relatives and the networks of its search as the published command does.

    Weights decay but for biases and batch normalisation, as in timm's training script, which that command runs.
    Recipes are in configs/rexnet/; `frugal search` trains many of these.

    Args:
        network, num_classes, input_size, network_args, optimizer, schedule, drop_epochs, warmup_epochs,
            label_smoothing, mixup_alpha: as in Classifier.
        initial_checkpoint: as in Classifier, or a file of the authors' release.
        channels_last: lay feature maps out with channels innermost, in which depthwise networks train faster, on CPUs
            and in mixed precision on GPUs; results differ by rounding.

    Raises:
        InputError: all that Classifier refuses; a released file of another width.
    """

    def __init__(
        self,
        network: Network,
        num_classes: int | None = None,
        input_size: tuple[int, ...] | None = None,
        network_args: dict[str, Any] | None = None,
        optimizer: OptimizerCallable = lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-4),
        schedule: Schedule = "cosine",
        drop_epochs: tuple[int, ...] = (),
        warmup_epochs: int = 0,
        label_smoothing: float = 0.0,
        mixup_alpha: float = 0.0,
        initial_checkpoint: str | None = None,
        channels_last: bool = True,
    ) -> None:
        super().__init__(
            network,
            num_classes,
            input_size,
            network_args,
            optimizer,
            schedule,
            drop_epochs,
            warmup_epochs,
            label_smoothing,
            mixup_alpha,
            initial_checkpoint,
        )
        if channels_last:
            self.network.to(memory_format=torch.channels_last)  # convolutions give maps in the layout of their weights

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        return parameter.ndim > 1

    def start_from(self, weights: Weights) -> str:
        if is_release(weights.tensors):
            weights = replace(weights, tensors=from_release(weights.tensors, self.network))
        return super().start_from(weights)
