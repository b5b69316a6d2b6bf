"""Epitomes: weights sampled from a small shared tensor (NES, ICLR 2020; WSNet, ICML 2018)."""

from dataclasses import asdict
from typing import Any

from pytorch_lightning import Callback
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor, nn

import networks
from lightning_modules.classifier import Classifier
from networks import InputError
from networks.epitome import EpitomeLayer, epitome_layers
from networks.epitome.base import Positions, check_bits
from networks.epitome.surgery import AnyRule, as_rule


class Epitome(Classifier):
    """Trains a network whose weights are sampled from epitomes, at fixed positions (WSNet) or learned ones (NES).

    Of each layer a tensor smaller than its weight is stored, the epitome, and the weight is cut out of it in each
    forward. Fractional positions interpolate, so that they are trained with the rest. Scales, biases and positions do
    not decay. Recipes are in configs/epitome/. After each epoch it logs, for each layer, layers/offset and
    layers/offset_max (how far positions are from plain sampling, mean and largest, in entries) and layers/coverage
    (share of the epitome's entries that are read), drawn into layers.png; epitomes.png has all offsets and how often
    each entry is read. For averaged weights add Lightning's EMAWeightAveraging with use_buffers false, which copies
    buffers.

    Args:
        network: "wsnet_esc50", "epitome_mobilenetv2" and others come with epitomes (`timm.list_models("*epitome*")`);
            of any other network `rules` says which layers get them.
        num_classes, input_size, network_args, optimizer, schedule, drop_epochs, warmup_epochs, label_smoothing,
            mixup_alpha, initial_checkpoint: as in Classifier.
        rules: of networks without epitomes: a multiplier for all inner layers, which then share input channels, or a
            list of networks.epitome.Rule and WindowRule; None is 0.5. An empty list leaves the network dense, for
            baselines with the same recipe. See networks.epitome.apply.
        positions: of those layers: "none", "param", or "feature"; networks that come with epitomes have it among
            their network_args.
        quantize_bits: compute with epitomes on 2^bits levels; a trained network can be tested with it.
        position_lr_factor: learning rate of positions over that of weights.

    Raises:
        InputError: rules for a network that has its epitomes, rules that fit no layer, and all that Classifier refuses.
    """

    defining = (*Classifier.defining, "rules", "positions")

    def __init__(
        self,
        *args: Any,
        rules: float | list[AnyRule] | None = None,
        positions: Positions | None = None,
        quantize_bits: int | None = None,
        position_lr_factor: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        # Checkpoints hold plain types alone, and give them back.
        chosen = [as_rule(rule) for rule in rules] if isinstance(rules, list) else rules
        if isinstance(chosen, list):
            self.save_hyperparameters({"rules": [asdict(rule) for rule in chosen]})
        check_bits(quantize_bits)
        if not position_lr_factor >= 0:
            raise InputError(f"{position_lr_factor=} must not be negative")
        if self.layers and (rules is not None or positions is not None):
            given = "rules" if rules is not None else "positions"
            raise InputError(f"the network has its epitomes already: drop model.{given}, or give network_args")
        if not self.layers and chosen != []:
            networks.epitome.apply(self.network, 0.5 if chosen is None else chosen, positions=positions or "param")
        self.position_lr_factor = position_lr_factor
        if quantize_bits is not None:
            for layer in self.layers.values():
                layer.quantize_bits = quantize_bits
        stored = sum(layer.epitome.numel() for layer in self.layers.values())
        rank_zero_info(f"epitome: {len(self.layers)} layers, {stored:,} stored weights")

    @property
    def layers(self) -> dict[str, EpitomeLayer]:
        """The epitome layers by their names in the network."""
        return epitome_layers(self.network)

    def configure_callbacks(self) -> list[Callback]:
        return super().configure_callbacks() if self.layers else []

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Weights alone: no scale, bias or other 1-D tensor (as in the authors' code), and no positions."""
        return parameter.ndim > 1 and not name.endswith(".positions")

    def rate_factor(self, name: str, parameter: nn.Parameter) -> float:
        return self.position_lr_factor if name.endswith(".positions") else 1.0

    def layer_metrics(self) -> dict[str, dict[str, float]]:
        """Mean and largest distance of positions from plain sampling, and the share of entries that are read."""
        metrics: dict[str, dict[str, float]] = {}
        for name, layer in self.layers.items():
            offsets = layer.offsets()
            if offsets is not None:
                moved = offsets.detach().abs()
                metrics.setdefault("offset", {})[name] = float(moved.mean())
                metrics.setdefault("offset_max", {})[name] = float(moved.max())
            metrics.setdefault("coverage", {})[name] = float((layer.coverage() != 0).float().mean())
        return metrics

    def sampling(self) -> dict[str, tuple[Tensor | None, Tensor]]:
        """Of each layer its offsets, and how often it reads the entries along the sampled axis."""
        profiles = {}
        for name, layer in self.layers.items():
            offsets = layer.offsets()
            profiles[name] = None if offsets is None else offsets.detach(), layer.reads()
        return profiles
