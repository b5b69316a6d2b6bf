"""Detections in COCO's format of results."""

from typing import Any, Literal

import numpy as np
from faster_coco_eval.core import mask as rle
from torch import Tensor


def as_results(found: dict[str, Tensor], image_id: int, kind: Literal["bbox", "segm"]) -> list[dict[str, Any]]:
    """The detections of an image as rows of the file that COCO's evaluation and its server take.

    Boxes and masks go to two files: where a row has both, the evaluation takes the size of a mask from its box.

    Args:
        found: boxes (n, 4), labels (n,), scores (n,), and for "segm" binary masks (n, H, W).

    Returns:
        For each object image_id, category_id, score, and bbox (x, y, width, height in pixels) or segmentation (run
        lengths).
    """
    rows: list[dict[str, Any]] = [
        {"image_id": image_id, "category_id": label, "score": score}
        for label, score in zip(found["labels"].tolist(), found["scores"].tolist(), strict=True)
    ]
    if kind == "bbox":
        for row, (x1, y1, x2, y2) in zip(rows, found["boxes"].tolist(), strict=True):
            row["bbox"] = [x1, y1, x2 - x1, y2 - y1]
        return rows
    for row, mask in zip(rows, found["masks"], strict=True):
        runs = rle.encode(np.asfortranarray(mask.cpu().numpy().astype(np.uint8)))
        row["segmentation"] = {"size": list(runs["size"]), "counts": runs["counts"].decode()}
    return rows
