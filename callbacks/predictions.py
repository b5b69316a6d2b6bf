"""Write predictions to a file."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import BasePredictionWriter
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn

from callbacks.folder import log_folder


class PredictionWriter(BasePredictionWriter):
    """`predict` writes predictions.csv: sample index, true label, predicted label, and a probability for each class.

    Rows stand in the data set's order, each sample once, whatever the number of processes. Classes go by the
    DataModule's `class_names` where it has them. Of a detector it writes detections_bbox.json, and
    with masks detections_segm.json, in COCO's format of results.
    """

    def __init__(self) -> None:
        super().__init__(write_interval="epoch")

    def write_on_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule, predictions: Sequence[Any], batch_indices: Sequence[Any]
    ) -> None:
        path = log_folder(trainer) / "predictions.csv"
        if predictions and all(isinstance(batch, dict) and "detections" in batch for batch in predictions):
            for kind in predictions[0]["detections"]:
                found = [row for batch in predictions for row in batch["detections"][kind]]
                self._write_detections(trainer, found, path.with_name(f"detections_{kind}.json"))
            return
        if not all(isinstance(batch, dict) and {"probabilities", "targets"} <= batch.keys() for batch in predictions):
            rank_zero_warn("no predictions.csv: predict_step does not return {'probabilities': ..., 'targets': ...}")
            return
        loader: Any = trainer.predict_dataloaders
        seen = loader.indices()[: len(predictions)] if hasattr(loader, "indices") else batch_indices[0]
        rows: dict[int, list[Any]] = {}
        for batch, indices in zip(predictions, seen, strict=True):
            probabilities, targets = batch["probabilities"].float().cpu(), batch["targets"].tolist()
            labels = probabilities.argmax(-1).tolist()
            for index, target, label, row in zip(indices, targets, labels, probabilities.tolist(), strict=True):
                rows[index] = [target, label, *row]
        rows = {index: row for part in _of_all_processes(trainer, rows) for index, row in part.items()}
        if trainer.is_global_zero:
            classes = range(predictions[0]["probabilities"].shape[-1])
            write(path, rows, getattr(trainer.datamodule, "class_names", classes))  # type: ignore[attr-defined]
            rank_zero_info(f"predictions of {len(rows)} samples: {path}")

    def _write_detections(self, trainer: Trainer, rows: list[dict[str, Any]], path: Path) -> None:
        rows = [row for part in _of_all_processes(trainer, rows) for row in part]
        if trainer.is_global_zero:
            path.write_text(json.dumps(sorted(rows, key=lambda row: row["image_id"])) + "\n")
            rank_zero_info(f"{len(rows)} objects, in COCO's format of results: {path}")


def _of_all_processes(trainer: Trainer, part: Any) -> list[Any]:
    """What each process has."""
    parts = [part] * trainer.world_size
    if trainer.world_size > 1:
        torch.distributed.all_gather_object(parts, part)
    return parts


def write(path: Path, rows: dict[int, list[Any]], names: Sequence[Any]) -> None:
    """Write rows {index: [target, predicted, *probabilities]} with the classes by name."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "label", "predicted", *(f"p({name})" for name in names)])
        for index, (target, predicted, *probabilities) in sorted(rows.items()):
            writer.writerow([index, names[target], names[predicted], *(f"{p:.6g}" for p in probabilities)])
