"""Annotations in COCO's format: which objects are in which photographs."""

import json
import os
from collections import Counter
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as rle
from pytorch_lightning.utilities import rank_zero_info

from networks import InputError

NUMBERS = ("id", "height", "width")  # of each image


@dataclass(frozen=True)
class Annotations:
    """Objects of N images one after the other, as arrays: lists of Python objects would be copied into every worker.

    Attributes:
        folder: of the photographs.
        names: (N,), bytes, of their files.
        image_ids: (N,), int64.
        sizes: (N, 2), int64, height and width.
        starts: (N + 1,), int64; image i has the objects starts[i] to starts[i + 1].
        boxes: (M, 4), float32, x1, y1, x2, y2 in pixels.
        labels: (M,), int64, ids of categories.
        areas: (M,), float32, of the object in pixels, as the file says.
        crowds: (M,), int64, 1 where the region is of many objects.
        outlines: M segmentations as JSON, one after the other; empty without masks.
        outline_starts: (M + 1,), int64, in bytes of `outlines`.
    """

    folder: Path
    names: np.ndarray
    image_ids: np.ndarray
    sizes: np.ndarray
    starts: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    crowds: np.ndarray
    outlines: np.ndarray
    outline_starts: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def objects(self, image: int) -> slice:
        """Where the objects of an image are."""
        return slice(int(self.starts[image]), int(self.starts[image + 1]))

    def masks(self, image: int) -> np.ndarray:
        """Masks (n, H, W), uint8, of the objects of an image."""
        height, width = self.sizes[image].tolist()
        each = [self._mask(i, height, width) for i in range(self.starts[image], self.starts[image + 1])]
        return np.stack(each) if each else np.zeros((0, height, width), np.uint8)

    def _mask(self, i: int, height: int, width: int) -> np.ndarray:
        outline = json.loads(self.outlines[self.outline_starts[i] : self.outline_starts[i + 1]].tobytes())
        if isinstance(outline, list):  # polygons, which may be several parts of one object
            return rle.decode(rle.merge(rle.frPyObjects(outline, height, width)))
        runs = rle.frPyObjects(outline, height, width) if isinstance(outline["counts"], list) else outline
        return rle.decode(runs)


def read(path: Path, folder: Path, categories: set[int], training: bool, masks: bool, limit: int | None) -> Annotations:
    """Read a file of annotations and say what was left out.

    For training crowd regions, boxes without area and images without objects are left out, and boxes are cut at the
    image's border; evaluation takes all as the file has it.

    Args:
        path: of the JSON file.
        folder: of the photographs.
        categories: ids that are allowed.
        masks: keep segmentations too.
        limit: number of images, the first by id.

    Raises:
        InputError: a file that is not there or not COCO's; an object of an unlisted image or category, without a box
            or, for masks, without a segmentation; photographs that are not there.
    """
    content = _load(path)
    images = {image["id"]: image for image in sorted(content["images"], key=lambda image: image["id"])}
    objects: dict[int, list[dict[str, Any]]] = {image_id: [] for image_id in images}
    left_out: Counter[str] = Counter()
    for each in content.get("annotations", ()):
        _check(each, images, categories, masks, path)
        reason = _reason_to_leave_out(each, images[each["image_id"]]) if training else None
        if reason:
            left_out[reason] += 1
        else:
            objects[each["image_id"]].append(each)
    if training:
        left_out["images without objects"] = sum(not found for found in objects.values())
    chosen = [image_id for image_id in images if objects[image_id] or not training][:limit]
    if training and not chosen:
        raise InputError(f"{path} has no object to train on: is it another split's?")
    _check_files(folder, [images[image_id]["file_name"] for image_id in chosen])
    counted = ", ".join(f"{count} {what}" for what, count in sorted(left_out.items()) if count)
    total = sum(len(objects[image_id]) for image_id in chosen)
    rank_zero_info(
        f"{path.name}: {len(chosen)} images, {total} objects" + (f"; left out: {counted}" if counted else "")
    )
    return _pack(folder, [images[i] for i in chosen], [objects[i] for i in chosen], training, masks)


def _load(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
        if not content["images"]:
            raise InputError(f"{path} lists no images: it is not COCO's, or not complete")
        for image in content["images"]:
            if not (isinstance(image["file_name"], str) and all(isinstance(image[n], int) for n in NUMBERS)):
                raise TypeError(f"an image is {image}")
        if not all(isinstance(each, dict) for each in content.get("annotations", ())):
            raise TypeError("annotations are no objects")
        return content
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        if isinstance(error, FileNotFoundError):
            labelled = "annotations_trainval2017.zip, train2017.zip and val2017.zip"
            archives = f"{path.stem}.zip and test2017.zip" if path.stem.startswith("image_info") else labelled
            raise InputError(
                f"no COCO annotations at {path}: fetch {archives} from cocodataset.org and unpack them into "
                f"{path.parent.parent}, or say with --data.root or FRUGAL_DATA where coco/ is"
            ) from error
        raise InputError(f"{path} is no file of COCO annotations, or cut short ({error!r}): unpack it again") from error


def _check(each: dict[str, Any], images: dict[int, Any], categories: set[int], masks: bool, path: Path) -> None:
    where = f"{path}: annotation {each.get('id')}"
    for name in ("area", "iscrowd"):
        if not isinstance(each.get(name, 0), int | float):
            raise InputError(f"{where} has the {name} {each[name]!r}, which is no number")
    if not isinstance(each.get("image_id"), int) or each["image_id"] not in images:
        raise InputError(f"{where} is of image {each.get('image_id')}, which the file does not list")
    if not isinstance(each.get("category_id"), int) or each["category_id"] not in categories:
        raise InputError(f"{where} has category {each.get('category_id')}, which is none of COCO's 80 categories")
    box = each.get("bbox")
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
        raise InputError(f"{where} has the box {box}, not x, y, width, height")
    if masks and not each.get("segmentation"):
        raise InputError(f"{where} has no segmentation: without masks, give --data.masks false and another network")
    if masks and not _is_outline(each["segmentation"], images[each["image_id"]]):
        raise InputError(f"{where} has a segmentation that is neither polygons nor run lengths of its image's size")


def _is_outline(outline: Any, image: dict[str, Any]) -> bool:
    if isinstance(outline, dict):
        counts: Any = outline.get("counts")
        size = [image["height"], image["width"]]
        if isinstance(counts, list):
            whole = all(isinstance(n, int) and n >= 0 for n in counts) and sum(counts) == size[0] * size[1]
        else:
            whole = isinstance(counts, str)
        return whole and outline.get("size") == size
    parts: list[Any] = outline if isinstance(outline, list) else [None]
    polygons = all(isinstance(part, list) and len(part) >= 6 and len(part) % 2 == 0 for part in parts)
    return polygons and all(_is_number(n) for part in parts for n in part)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and isfinite(value)


def _reason_to_leave_out(each: dict[str, Any], image: dict[str, Any]) -> str | None:
    if each.get("iscrowd"):
        return "crowd regions"
    left, top, right, bottom = _corners(each["bbox"])
    if right <= left or bottom <= top:
        return "boxes without area"
    if min(right, image["width"]) <= max(left, 0) or min(bottom, image["height"]) <= max(top, 0):
        return "boxes outside of their image"
    return None


def _corners(box: list[float]) -> tuple[float, float, float, float]:
    return box[0], box[1], box[0] + box[2], box[1] + box[3]


def _check_files(folder: Path, names: list[str]) -> None:
    """One listing of the folder, which takes a second where asking for each file may take minutes."""
    there = set(os.listdir(folder)) if folder.is_dir() else set()
    if missing := [name for name in names if name not in there]:
        raise InputError(
            f"{len(missing)} of {len(names)} photographs are not in {folder}, such as {missing[0]}: unpack "
            f"{folder.name}.zip from cocodataset.org there, again if it is not complete"
        )


def _pack(
    folder: Path, images: list[dict[str, Any]], objects: list[list[dict[str, Any]]], training: bool, masks: bool
) -> Annotations:
    flat = [each for found in objects for each in found]
    sizes = np.array([(image["height"], image["width"]) for image in images], np.int64)
    counts = [len(found) for found in objects]
    boxes = np.array([_corners(each["bbox"]) for each in flat], np.float64).reshape(-1, 4)
    if training:
        boxes = boxes.clip(0, np.repeat(sizes[:, [1, 0, 1, 0]], counts, axis=0))
    outlines = [json.dumps(each["segmentation"]).encode() for each in flat] if masks else []
    return Annotations(
        folder,
        names=np.array([os.fsencode(image["file_name"]) for image in images]),
        image_ids=np.array([image["id"] for image in images], np.int64),
        sizes=sizes,
        starts=np.cumsum([0, *counts]),
        boxes=boxes.astype(np.float32),
        labels=np.array([each["category_id"] for each in flat], np.int64),
        areas=np.array([each.get("area", 0) for each in flat], np.float32),
        crowds=np.array([each.get("iscrowd", 0) for each in flat], np.int64),
        outlines=np.frombuffer(b"".join(outlines), np.uint8),
        outline_starts=np.cumsum([0, *map(len, outlines)]),
    )
