"""COCO's average precision over all processes, each image once."""

from typing import Any

import numpy as np
import torch
from pytorch_lightning.strategies import Strategy
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision

# torchmetrics' names of what we report, without the prefix of boxes or masks
NAMES = {
    "ap": "map", "ap50": "map_50", "ap75": "map_75",
    "ap_small": "map_small", "ap_medium": "map_medium", "ap_large": "map_large",
}  # fmt: skip


class AveragePrecision:
    """Keeps detections and truths on the CPU; torchmetrics and faster-coco-eval evaluate them.

    torchmetrics' own gathering waits forever where processes have unequal numbers of images, and asks the device for
    each object; hence this.

    Args:
        masks: score masks beside boxes.
    """

    def __init__(self, masks: bool) -> None:
        self.kinds = {"bbox": "box", "segm": "mask"} if masks else {"bbox": "box"}
        with torch.device("cpu"):  # also where networks are being built on the meta device
            self.metric: Any = MeanAveragePrecision(
                iou_type=tuple(self.kinds),  # type: ignore[arg-type]
                iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),  # torchmetrics' own are float32, which
                rec_thresholds=np.linspace(0, 1, 101).tolist(),  # misses recalls that COCO's evaluation reaches
                backend="faster_coco_eval",
                sync_on_compute=False,
            )
        self.metric.warn_on_many_detections = False  # of a category the best 100 of an image count, as in COCO
        self.image_ids: list[int] = []

    def update(self, detections: list[dict[str, Tensor]], targets: list[dict[str, Tensor]]) -> None:
        """Add images: their detections, and what the data say of them."""
        self.image_ids += [int(target["image_id"]) for target in targets]
        self.metric.update(
            *([{name: t.cpu() for name, t in each.items()} for each in part] for part in (detections, targets))
        )

    def compute(self, strategy: Strategy) -> dict[str, float]:
        """The precisions on every process, by names such as box_ap50; begins anew."""
        parts = [(self.image_ids, self._states())]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            gathered: Any = [None] * strategy.world_size if strategy.global_rank == 0 else None  # type: ignore[attr-defined]
            torch.distributed.gather_object(parts[0], gathered)
            parts = gathered or parts
        values = self._evaluate(parts) if strategy.is_global_zero else {}
        self.metric.reset()
        self.image_ids = []
        return strategy.broadcast(values)

    def _states(self) -> dict[str, list[Any]]:
        """One entry for each image; empty of what is not scored."""
        return {name: getattr(self.metric, name) for name in self.metric._defaults}

    def _evaluate(self, parts: list[tuple[list[int], dict[str, list[Any]]]]) -> dict[str, float]:
        # In the images' order, for equal scores count in the order in which they come.
        ids = [image_id for ids, _ in parts for image_id in ids]
        order = sorted(range(len(ids)), key=ids.__getitem__)
        for name in self.metric._defaults:
            entries = [entry for _, states in parts for entry in states[name]]
            setattr(self.metric, name, [entries[i] for i in order] if entries else [])
        self.metric._update_count = max(1, len(ids))
        result = self.metric.compute()
        prefixes = {kind: f"{kind}_" if len(self.kinds) > 1 else "" for kind in self.kinds}
        return {
            f"{name}_{short}": float(result[prefixes[kind] + long])
            for kind, name in self.kinds.items()
            for short, long in NAMES.items()
        }
