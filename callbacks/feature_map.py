"""Draw what a network makes of the test data."""

from collections.abc import Sequence
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from callbacks.features import classifiers, is_gate
from callbacks.folder import log_folder, log_picture
from networks import InputError

FEWEST = 10  # samples to draw
Panels = dict[str, tuple[Tensor, Sequence[Any]]]  # title -> (group of each sample (N,), name of each group)


class FeatureMap(Callback):
    """`test` draws features.png: t-SNE of the features before the classifier, by class and by chosen expert.

    Features are the input of `network.get_classifier()`, or else of the last nn.Linear that the network calls. Experts
    are those of the last gate that it calls: a module with an integer `num_experts` whose output is one-hot,
    (N, num_experts); without one there are the classes alone (Bulat et al., ICLR 2021, Fig. 1(b) shows experts).
    Several processes draw the share of the first.

    Args:
        samples: number of test samples, the first ones, that are drawn; at least 10.

    Raises:
        InputError: fewer.
    """

    def __init__(self, samples: int = 1000) -> None:
        if samples < FEWEST:
            raise InputError(f"{samples=}: a map of features takes at least {FEWEST}")
        self.samples = samples
        self._clear()

    def _clear(self) -> None:
        self._handles: list[RemovableHandle] = []
        self._parts: list[tuple[Tensor, Tensor, Tensor | None]] = []  # features, labels and choices of each batch
        self._features: Tensor | None = None  # of this batch
        self._choice: Tensor | None = None
        self._gate = ""

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or not trainer.loggers or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        network = getattr(pl_module, "network", None)
        layers = classifiers(network) if isinstance(network, nn.Module) else []
        if not layers:
            rank_zero_info("no features.png: the network has neither get_classifier() nor an nn.Linear")
            return
        self._handles += [layer.register_forward_pre_hook(self._take_features) for layer in layers]
        for name, module in network.named_modules():  # type: ignore[union-attr]
            if is_gate(module):
                self._handles.append(module.register_forward_hook(self._taker_of_choices(name)))

    def _take_features(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._features = inputs[0].detach()[: self.samples].clone()  # what follows may work in place

    def _taker_of_choices(self, name: str) -> Any:
        def take(gate: Any, inputs: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim == 2 and output.shape[1] == gate.num_experts:
                self._choice, self._gate = output.detach(), name

        return take

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not self._handles:
            return
        left = self.samples - sum(len(labels) for _, labels, _ in self._parts)
        labels = batch[1][:left].to("cpu", copy=True)
        features, choice, self._features, self._choice = self._features, self._choice, None, None
        rows = len(batch[1])
        if features is not None and len(features) == min(rows, self.samples):  # none where a share is empty
            features = features[:left].flatten(1).to("cpu", torch.float32)
            choice = choice[:left].to("cpu", copy=True) if choice is not None and len(choice) == rows else None
            self._parts.append((features, labels, choice))
        if left == len(labels):
            self._remove_hooks()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        path = log_folder(trainer) / "features.png"
        watched, parts, gate = bool(self._handles or self._parts), self._parts, self._gate
        self._remove_hooks()
        self._clear()
        if not watched:
            return
        features = torch.cat([part for part, _, _ in parts]) if parts else torch.empty(0)
        if len(features) < FEWEST or not features.isfinite().all() or (features == features[0]).all():
            wanted = f"{FEWEST} or more with features that are finite and differ"
            rank_zero_info(f"no features.png: the classifier saw {len(features)} samples, not {wanted}")
            return
        labels = torch.cat([part for _, part, _ in parts])
        names = getattr(trainer.datamodule, "class_names", range(int(labels.max()) + 1))  # type: ignore[attr-defined]
        panels: Panels = {"class": (labels, names)}
        choices = [choice for _, _, choice in parts if choice is not None and _is_one_hot(choice)]
        if len(choices) == len(parts):
            chosen = torch.cat(choices)
            shares = [f"{i} ({share:.0%})" for i, share in enumerate(chosen.float().mean(0).tolist())]
            panels[f"expert chosen by {gate}"] = chosen.argmax(1), shares
        draw(features, panels, str(path))
        log_picture(trainer, "features", path)
        rank_zero_info(f"features of {len(labels)} test samples by {' and '.join(panels)}: {path}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._remove_hooks()
        self._clear()

    def _remove_hooks(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


def _is_one_hot(choice: Tensor) -> bool:
    return bool(((choice == 0) | (choice == 1)).all() and (choice.sum(1) == 1).all())


def draw(features: Tensor, panels: Panels, path: str) -> None:
    """Draw features (N, D), finite and not all equal, by t-SNE, once for each panel, into a PNG file.

    Up to 20 groups are named.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from sklearn.manifold import TSNE

    centred = features.double() - features.double().mean(0)
    scaled = (centred / centred.abs().max()).float()  # t-SNE knows no scale, but squares
    scaled = scaled if scaled.shape[1] > 1 else scaled.repeat(1, 2)  # PCA begins with two components
    places = TSNE(perplexity=min(30, (len(scaled) - 1) / 3), init="pca", random_state=0).fit_transform(scaled)
    figure = Figure(figsize=(6.2 * len(panels), 5), layout="constrained")
    axes_of = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, (groups, names)) in zip(axes_of, panels.items(), strict=True):
        few = len(names) <= 20
        palette = colormaps["tab10" if len(names) <= 10 else "tab20" if few else "turbo"]
        colours = palette(groups.numpy() if few else groups.numpy() / (len(names) - 1))
        size = min(max(9000 / len(places), 8), 40)
        axes.scatter(*places.T, s=size, c=colours, alpha=0.8, linewidths=0)
        if few:
            for group, name in enumerate(names):
                axes.scatter([], [], s=40, color=palette(group), label=name)
            axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, handletextpad=0.1)
        axes.set(title=title if few else f"{title} (of {len(names)})", xticks=[], yticks=[])
    figure.suptitle(f"features of {len(places)} test samples, by t-SNE")
    figure.savefig(path, dpi=120)
