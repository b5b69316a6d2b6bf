"""How a detector is trained and scored: losses of its heads, COCO's average precision."""

import math
from dataclasses import replace
from typing import Any, Literal

import timm
import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric

import networks
from callbacks.detection_results import as_results
from lightning_modules import initial
from lightning_modules.average_precision import AveragePrecision
from lightning_modules.schedules import check_schedule
from lightning_modules.task import Network, Schedule, Task
from networks import InputError

Images = Tensor | list[Tensor]
Batch = tuple[Images, list[dict[str, Tensor]]]
Detections = dict[str, list[dict[str, Tensor]]]  # with boxes, labels, scores and masks of each image
KNOWN = ("ssdlite", "fasterrcnn", "maskrcnn")


class Detector(Task):
    """Trains any of torchvision's detectors, ours of networks.detection first, and scores it as COCO does.

    Logs train/loss, a mean of each loss of the detector as train/<its name>, and in validation and test box_ap,
    box_ap50, box_ap75, box_ap_small, box_ap_medium and box_ap_large, with masks mask_ap and so on: average precision
    over IoU 0.50 to 0.95 (at 0.5, at 0.75, of small objects ...), 0 to 1, -1 where there are no such objects.
    Batches are images, a list or stack of (3, H, W), bytes or 0 to 1, and for each a dict: boxes (n, 4) as x1, y1, x2,
    y2 in pixels, labels (n,), image_id; with masks (n, H, W); in evaluation iscrowd and area too.

    Args:
        network: "ssdlite", "fasterrcnn" or "maskrcnn" of networks.detection, the import path of your own, or, from
            Python, any module with the interface of torchvision's detectors.
        num_classes: with the background; the command takes it from the data.
        input_size: (3, H, W) of a usual image; the command takes it from the data.
        network_args: arguments for a network given by name, such as {"backbone": "rexnet", "backbone_args": {"width":
            0.9}, "pretrained": true}.
        optimizer: builds the optimiser from parameter groups.
        schedule: "cosine" to 0 over all steps, "steps", or "constant", changing every step; or a class of torch's,
            every epoch.
        drop_epochs: with "steps", epochs from which on the rate is a tenth of what it was.
        warmup_steps: w steps in which the rate grows linearly; the cosine begins behind them.
        warmup_factor: of the rate in the first of them; (0, 1].
        decay_norms: whether weight decay acts on biases and normalisation too.
        initial_checkpoint: file whose weights training starts from: of a detector, or of a classifier for the backbone;
            or the config of such a run. What matches by name and size is taken, the rest reported.

    Raises:
        InputError: an unknown network or arguments that it does not take; initial weights that do not match at all; in
            `setup`, data without masks for a network with them.
    """

    score, learns = "box_ap", "objects"

    def __init__(
        self,
        network: Network = "ssdlite",
        num_classes: int | None = None,
        input_size: tuple[int, ...] | None = None,
        network_args: dict[str, Any] | None = None,
        optimizer: OptimizerCallable = lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, weight_decay=1e-4),
        schedule: Schedule = "cosine",
        drop_epochs: tuple[int, ...] = (),
        warmup_steps: int = 0,
        warmup_factor: float = 1 / 3,
        decay_norms: bool = True,
        initial_checkpoint: str | None = None,
    ) -> None:
        super().__init__(num_classes, input_size, optimizer, schedule, initial_checkpoint)
        objects = {"optimizer": optimizer, "schedule": schedule, "network": network}
        self.save_hyperparameters(ignore=[name for name, value in objects.items() if not isinstance(value, str)])
        if warmup_steps < 0 or not 0 < warmup_factor <= 1:
            raise InputError(f"{warmup_steps=} must not be negative, {warmup_factor=} must lie in (0, 1]")
        check_schedule(schedule, drop_epochs, warmup_steps=warmup_steps)
        if isinstance(network, str):
            if network not in KNOWN and "." not in network:
                backbone = f": give it as --model.network_args.backbone {network}" if timm.is_model(network) else ""
                raise InputError(f"no detector is called {network!r}, but {', '.join(KNOWN)}{backbone}")
            path = f"networks.detection.{network}" if network in KNOWN else network
            network = networks.create(path, self.input_size, num_classes, network_args)
        self.network = network
        heads = getattr(network, "roi_heads", None)
        self.masks = heads is not None and heads.has_mask()
        self.drop_epochs, self.warmup_steps, self.warmup_factor = tuple(drop_epochs), warmup_steps, warmup_factor
        self.decay_norms = decay_norms
        self.train_loss = MeanMetric(nan_strategy="disable")
        self.precision_of = {stage: AveragePrecision(self.masks) for stage in ("val", "test")}

    def check_data(self, data: Any) -> None:
        super().check_data(data)
        if self.masks and not getattr(data, "masks", True):
            raise InputError("the network predicts masks and the data come without: give --data.masks true")

    def forward(self, images: Images) -> list[dict[str, Tensor]]:
        """Detections of each image: boxes (n, 4) in its pixels, labels (n,), scores (n,), with masks (n, 1, H, W)."""
        return self.network(_scaled(images))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, targets = batch
        losses = self.network(_scaled(images), targets)
        for name, value in losses.items():
            self.log_mean(f"train/{name}", value.expand(len(images)))
        loss = torch.stack(list(losses.values())).sum()
        self.log("train/loss_step", loss, prog_bar=True)
        self.train_loss.update(loss.detach().expand(len(images)))
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> Detections:
        return self._evaluate("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> Detections:
        return self._evaluate("test", batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, dict[str, list[dict[str, Any]]]]:
        """Detections in COCO's format of results: rows of boxes, and of masks, each with the id of its image.

        Masks are as large as their images; as they are, those of a whole data set would fill any memory.
        """
        rows: dict[str, list[dict[str, Any]]] = {kind: [] for kind in (("bbox", "segm") if self.masks else ("bbox",))}
        for found, target in zip(self._detect(batch[0]), batch[1], strict=True):
            for kind in rows:
                rows[kind] += as_results(found, int(target["image_id"]), kind)  # type: ignore[arg-type]
        return {"detections": rows}

    def _evaluate(self, stage: Literal["val", "test"], batch: Batch) -> Detections:
        images, targets = batch
        detections = self._detect(images)
        self.precision_of[stage].update(detections, targets)
        return {"detections": detections}

    def _detect(self, images: Images) -> list[dict[str, Tensor]]:
        """Detections with binary masks (n, H, W); a process may have no share of the last batch."""
        detections = self(images) if len(images) else []
        for found in detections:
            if "masks" in found:
                found["masks"] = found["masks"].squeeze(1) > 0.5
        return detections

    def on_validation_epoch_end(self) -> None:
        self._log_precision("val")

    def on_test_epoch_end(self) -> None:
        self._log_precision("test")

    def _log_precision(self, stage: Literal["val", "test"]) -> None:
        values = self.precision_of[stage].compute(self.trainer.strategy)
        for name, value in values.items():
            self.log(f"{stage}/{name}", value, prog_bar=name == self.score)

    def decays(self, name: str, parameter: torch.nn.Parameter) -> bool:
        return self.decay_norms or parameter.ndim > 1

    def schedule_config(self, optimizer: Optimizer) -> dict[str, Any] | None:
        if self.schedule == "constant" and not self.warmup_steps:
            return None
        if not isinstance(self.schedule, str):
            return {"scheduler": self.schedule(optimizer), "interval": "epoch"}
        return {"scheduler": LambdaLR(optimizer, self.rate_at), "interval": "step"}

    def rate_at(self, step: int) -> float:
        """The rate of a step, counted from 0, over the optimiser's."""
        w = self.warmup_steps
        warmth = self.warmup_factor + (1 - self.warmup_factor) * step / w if step < w else 1.0
        if step == 0:  # before Lightning knows how many steps there are; asked for, it would forget where to resume
            return warmth
        if self.schedule == "cosine" and step >= w:
            return (1 + math.cos(math.pi * (step - w) / (self.steps - w))) / 2
        return warmth * 0.1 ** sum(step >= epoch * self.steps_per_epoch for epoch in self.drop_epochs)

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)

    @property
    def steps(self) -> float:
        """Of the whole run."""
        epochs, steps = self.trainer.max_epochs, self.trainer.max_steps
        by_epochs = epochs * self.steps_per_epoch if epochs is not None and epochs >= 0 else math.inf
        return min(by_epochs, steps if steps >= 0 else math.inf)

    def check_epochs(self, epochs: int, steps: int | None) -> None:
        if steps is not None and epochs >= 0:
            self._check_steps(epochs * steps)

    def _check_steps(self, steps: float) -> None:
        if self.schedule == "cosine" and steps == math.inf:
            raise InputError("the cosine schedule ends with the run: give --trainer.max_epochs or --trainer.max_steps")
        if self.schedule == "cosine" and steps <= self.warmup_steps:
            raise InputError(f"the run has {steps} steps: take fewer of --model.warmup_steps {self.warmup_steps}")

    def check_share(self, samples: int) -> None:
        if samples == 1 and isinstance(self.network, networks.detection.SSDLite):
            raise InputError(
                "ssdlite has a map of 1x1, whose batch normalisation takes more than one image: give a data.batch_size "
                "of which each device gets at least 2 in a step"
            )

    def on_train_start(self) -> None:
        if self.trainer.lr_scheduler_configs:  # none in a trial run
            self._check_steps(self.steps)
        super().on_train_start()

    def definition(self, name: str, value: Any) -> Any:
        """Thresholds and sizes may change after training; layers may not, and they are compared anyway."""
        if name != "network_args":
            return value
        return {key: (value or {}).get(key) for key in ("backbone", "backbone_args")}

    def start_from(self, weights: initial.Weights) -> str:
        """A classifier's weights go to the backbone."""
        own = self.state_dict()
        body = "network.backbone.body.network."
        if not any(name in own or f"network.{name}" in own for name in weights.tensors):
            renamed = {body + name.removeprefix("network."): each for name, each in weights.tensors.items()}
            weights = replace(weights, tensors=renamed)
        return initial.copy_into(self, weights)


def _scaled(images: Images) -> list[Tensor]:
    """Bytes to 0 to 1, as torchvision's detectors take them."""
    if isinstance(images, Tensor):
        images = list((images if images.is_floating_point() else images.float() / 255).unbind())
    return [image if image.is_floating_point() else image.float() / 255 for image in images]
