"""Detections in COCO's format of results."""

from typing import Any

import numpy as np
from faster_coco_eval.core import mask as rle
from torch import Tensor


def as_results(found: dict[str, Tensor], image_id: int) -> list[dict[str, Any]]:
    """The detections of an image as rows of the file that COCO's evaluation and its server take.

    Args:
        found: boxes (n, 4), labels (n,), scores (n,), and binary masks (n, H, W) where they are predicted.

    Returns:
        For each object image_id, category_id, bbox (x, y, width, height in pixels), score, and segmentation (run
        lengths) where there are masks.
    """
    boxes, labels, scores = (found[name].tolist() for name in ("boxes", "labels", "scores"))
    rows: list[dict[str, Any]] = [
        {"image_id": image_id, "category_id": label, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
        for (x1, y1, x2, y2), label, score in zip(boxes, labels, scores, strict=True)
    ]
    for row, mask in zip(rows, found.get("masks", ()), strict="masks" in found):
        runs = rle.encode(np.asfortranarray(mask.cpu().numpy().astype(np.uint8)))
        row["segmentation"] = {"size": list(runs["size"]), "counts": runs["counts"].decode()}
    return rows
