"""biprop: multi-prize lottery tickets (Diffenderfer & Kailkhura, ICLR 2021)."""

import warnings
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn

import networks
from lightning_modules.classifier import Classifier
from networks import InputError, bits
from networks.biprop import release, subnet_layers
from networks.biprop.layers import Binarize, GainCount, Init, Scale, ScoreGradient
from networks.biprop.selection import scheduled_keep_fraction
from networks.biprop.surgery import Selection


class Biprop(Classifier):
    """Finds a multi-prize ticket: a random network is pruned and binarised, and no weight is ever trained.

    Every weight has a trained score. Each forward keeps, layer by layer, the fraction of weights with the largest
    score magnitude, replaces them by their signs times one gain, and sets the rest to zero; gradients reach the
    scores straight through. MPT-1/32 has real activations, MPT-1/1 the networks' form with `activation: sign`.
    Recipes are in configs/biprop/. After each epoch it logs, for each layer, layers/kept_fraction, layers/gain and
    layers/mask_flips (the share of the layer's weights that were kept or pruned anew), drawn into layers.png.

    Args:
        network, num_classes, input_size, network_args, optimizer, schedule, drop_epochs, warmup_epochs,
            label_smoothing, mixup_alpha, initial_checkpoint: as in Classifier.
        keep_fraction: fraction of each layer's weights that is kept, 0 < k <= 1 (the paper prints the pruned 1 - k).
        init: distribution of the frozen weights.
        scale: divisor of their variance; None means "kept" without batch normalisation and "none" with it.
        binarize: "sign_gain" for biprop, "none" for edge-popup.
        gain_count: denominator of the gain.
        score_gradient: "weight" for the gradient that carries W, "sign" as an ablation for that with sign(W).
        selection: "layer" keeps the fraction in each layer, "global" in the network as a whole.
        selection_epochs: with global selection and a keep fraction of at most 0.5, the epochs in which the fraction
            goes down to it from 0.5; validation scores those networks too, so take last.ckpt, not best.ckpt.
        train_bn: train scale and shift of batch normalisation with the scores (the paper's +BN).
        dense_first: train the first layer's weights instead of masking them.
        dense_last: train the last layer's weights instead of masking them.

    Raises:
        InputError: a keep fraction outside (0, 1], a network without a layer to mask, and all that Classifier refuses.
    """

    release = release
    defining = (
        *Classifier.defining,
        "keep_fraction",
        "binarize",
        "gain_count",
        "selection",
        "train_bn",
        "dense_first",
        "dense_last",
    )

    def __init__(
        self,
        *args: Any,
        keep_fraction: float = 0.5,
        init: Init = "kaiming_normal",
        scale: Scale | None = None,
        binarize: Binarize = "sign_gain",
        gain_count: GainCount = "kept",
        score_gradient: ScoreGradient = "weight",
        selection: Selection = "layer",
        selection_epochs: int = 10,
        train_bn: bool = False,
        dense_first: bool = False,
        dense_last: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if selection_epochs < 0:
            raise InputError(f"{selection_epochs=} must not be negative")
        with warnings.catch_warnings():
            if selection == "global":  # its schedule keeps more at first; layer_metrics tells what is empty then
                warnings.filterwarnings("ignore", ".*keep no weight and give zeros")
            masked = networks.biprop.apply(
                self.network,
                keep_fraction,
                init=init,
                scale=scale,
                binarize=binarize,
                gain_count=gain_count,
                score_gradient=score_gradient,
                selection=selection,
                train_bn=train_bn,
                dense_first=dense_first,
                dense_last=dense_last,
            )
        self.keep_fraction, self.selection, self.selection_epochs = keep_fraction, selection, selection_epochs
        self._masks: dict[str, torch.Tensor] = {}  # of the last call of layer_metrics, packed
        rank_zero_info(f"biprop: {len(masked)} layers masked, keep fraction {keep_fraction}")
        rows = networks.complexity.count(self.network, self.input_size).layers
        idle = [layer.name for layer in rows if networks.complexity.NOT_CALLED in layer.uncounted]
        if idle:
            rank_zero_warn(
                f"the network uses the weights of {', '.join(idle)} without calling them: they stay unmasked"
            )
            for name in idle:  # scores without gradients would stop training on several devices
                self.network.get_submodule(name).requires_grad_(False)

    @property
    def architecture(self) -> dict[str, Any] | None:
        """Arguments of `networks.create` for the network; None where it was given as a module."""
        if "network" not in self.hparams:
            return None
        args = networks.registry.without_weights(self.hparams["network_args"])
        size = list(self.input_size)
        return {"name": self.hparams["network"], "input_size": size, "num_classes": self.num_classes, "args": args}

    def load_ticket(self, path: str | Path) -> None:
        """Take the ticket in a file for the network, to score it.

        Raises:
            InputError: it is damaged, or of another network.
        """
        ours = self.architecture
        self.network = networks.biprop.load_ticket(path, networks.create(**ours) if ours else None)
        rank_zero_info(f"biprop: the ticket in {path}")

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if not self.trainer.ckpt_path:  # a checkpoint has brought the fraction that it was saved with
            self.on_train_epoch_start()  # for what is measured before the first epoch

    def on_train_epoch_start(self) -> None:
        if self.selection == "global":
            fraction = scheduled_keep_fraction(self.keep_fraction, self.current_epoch, self.selection_epochs)
            networks.biprop.set_keep_fraction(self.network, fraction)

    def layer_metrics(self) -> dict[str, dict[str, float]]:
        """Kept fraction, gain and mask flips (since the last call) of each layer; warns of those that are empty."""
        kept, gain, flips = {}, {}, {}
        for name, layer in subnet_layers(self.network).items():
            mask = bits.pack(layer.mask())
            n, before = layer.weight.numel(), self._masks.get(name, mask)
            kept[name] = int(bits.unpack(mask, n).sum()) / n
            gain[name] = float(layer.gain())
            flips[name] = int(bits.unpack(mask ^ before, n).sum()) / n
            self._masks[name] = mask
        empty = [name for name, fraction in kept.items() if not fraction]
        if empty:
            rank_zero_warn(f"{', '.join(empty)} keep no weight and give zeros: take a larger keep fraction")
        return {"kept_fraction": kept, "gain": gain, "mask_flips": flips}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        layers = subnet_layers(self.network).values()
        checkpoint["biprop"] = {
            "masks": self._masks,
            "keep_fraction": next((layer.keep_fraction for layer in layers), self.keep_fraction),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        state = checkpoint.get("biprop", {"masks": {}, "keep_fraction": self.keep_fraction})
        self._masks = state["masks"]
        networks.biprop.set_keep_fraction(self.network, state["keep_fraction"])
