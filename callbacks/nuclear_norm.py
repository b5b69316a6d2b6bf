"""Measure how expressive a network's features are, by their singular values."""

import json
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from callbacks.features import classifiers
from callbacks.folder import log_folder, log_picture


class NuclearNorm(Callback):
    """`test` logs test/nuclear_norm, the sum of the singular values of the features of all test samples.

    Features are what the classifier gets, in evaluation (Han et al., CVPR 2021; which feature they took is not known):
    a matrix (samples, width). singular_values.json has all values, singular_values.png their cumulative distribution
    over the largest one.

      frugal test -c CONFIG --trainer.callbacks+=callbacks.NuclearNorm
    """

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []
        self._batch: Tensor | None = None
        self._parts: list[Tensor] = []

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._parts = []
        network = getattr(pl_module, "network", None)
        layers = classifiers(network) if isinstance(network, nn.Module) else []
        if not layers:
            rank_zero_info("no nuclear norm: the network has neither get_classifier() nor an nn.Linear")
        self._handles = [layer.register_forward_pre_hook(self._take) for layer in layers]

    def _take(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._batch = inputs[0].detach().flatten(1)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._batch is not None:
            self._parts.append(self._batch.to("cpu", torch.float32, copy=True))
            self._batch = None

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._handles:
            return
        for handle in self._handles:
            handle.remove()
        features = torch.cat(self._parts) if self._parts else torch.empty(0, 0)
        self._parts = []
        if trainer.world_size > 1:
            gathered: list[Tensor] = [features] * trainer.world_size
            torch.distributed.all_gather_object(gathered, features)
            features = torch.cat([part for part in gathered if part.numel()])
        if not features.isfinite().all():
            rank_zero_info("no nuclear norm: the network's features have NaN or infinite values")
            return
        values = torch.linalg.svdvals(features)
        pl_module.log("test/nuclear_norm", values.sum())
        folder = log_folder(trainer)
        if trainer.is_global_zero and trainer.loggers and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            _write(values, len(features), folder)
            log_picture(trainer, "singular_values", folder / "singular_values.png")
            rank_zero_info(f"singular values of {len(features)} test samples: {folder / 'singular_values.png'}")


def _write(values: Tensor, samples: int, folder: Path) -> None:
    content = {"samples": samples, "nuclear_norm": float(values.sum()), "singular_values": values.tolist()}
    (folder / "singular_values.json").write_text(json.dumps(content) + "\n")
    draw(values, folder / "singular_values.png")


def draw(values: Tensor, path: Path) -> None:
    """Draw the share of singular values below each multiple of the largest, into a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 4), layout="constrained")
    axes = figure.subplots()
    shares = torch.arange(1, len(values) + 1) / len(values)
    axes.step(values.flip(0) / values[0], shares, where="post")
    axes.set(
        xscale="log",
        xlabel="singular value / the largest",
        ylabel=f"share of the {len(values)} values below",
        ylim=(0, 1),
    )
    axes.set_xlim(left=1e-7)  # what is smaller is float32's rounding
    axes.set_title(f"{len(values)} singular values, nuclear norm {float(values.sum()):.1f}", fontsize=10)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
