"""biprop: multi-prize lottery tickets (Diffenderfer & Kailkhura, ICLR 2021)."""

from typing import Any

import torch
from pytorch_lightning.cli import OptimizerCallable
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn

import networks
from lightning_modules.classifier import Classifier, Network, Schedule
from networks.biprop.layers import Binarize, GainCount, Init, Scale


class Biprop(Classifier):
    """Finds a multi-prize ticket: a random network is pruned and binarised, and no weight is ever trained.

    Every weight has a trained score. Each forward keeps, layer by layer, the fraction of weights with the largest
    score magnitude, replaces them by their signs times one gain, and sets the rest to zero; gradients reach the
    scores straight through. MPT-1/32 has real activations, MPT-1/1 the networks' form with `activation: sign`.
    Recipes are in configs/biprop/.

    Args:
        network, num_classes, input_size, network_args, optimizer, schedule, warmup_epochs, label_smoothing,
            initial_checkpoint: as in Classifier.
        keep_fraction: fraction of each layer's weights that is kept, 0 < k <= 1 (the paper prints the pruned 1 - k).
        init: distribution of the frozen weights.
        scale: divisor of their variance; None means "kept" without batch normalisation and "none" with it.
        binarize: "sign_gain" for biprop, "none" for edge-popup.
        gain_count: denominator of the gain.
        train_bn: train scale and shift of batch normalisation with the scores (the paper's +BN).

    Raises:
        InputError: a keep fraction outside (0, 1], and all that Classifier refuses.
    """

    defining = (*Classifier.defining, "keep_fraction", "binarize", "gain_count", "train_bn")

    def __init__(
        self,
        network: Network,
        num_classes: int | None = None,
        input_size: tuple[int, ...] | None = None,
        network_args: dict[str, Any] | None = None,
        optimizer: OptimizerCallable = lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-4),
        schedule: Schedule = "cosine",
        warmup_epochs: int = 0,
        label_smoothing: float = 0.0,
        initial_checkpoint: str | None = None,
        keep_fraction: float = 0.5,
        init: Init = "kaiming_normal",
        scale: Scale | None = None,
        binarize: Binarize = "sign_gain",
        gain_count: GainCount = "kept",
        train_bn: bool = False,
    ) -> None:
        super().__init__(
            network,
            num_classes,
            input_size,
            network_args,
            optimizer,
            schedule,
            warmup_epochs,
            label_smoothing,
            initial_checkpoint,
        )
        masked = networks.biprop.apply(
            self.network,
            keep_fraction,
            init=init,
            scale=scale,
            binarize=binarize,
            gain_count=gain_count,
            train_bn=train_bn,
        )
        rank_zero_info(f"biprop: {len(masked)} layers masked, keep fraction {keep_fraction}")
        rows = networks.complexity.count(self.network, self.input_size).layers
        idle = [layer.name for layer in rows if networks.complexity.NOT_CALLED in layer.uncounted]
        if idle:
            rank_zero_warn(
                f"the network uses the weights of {', '.join(idle)} without calling them: they stay unmasked"
            )
