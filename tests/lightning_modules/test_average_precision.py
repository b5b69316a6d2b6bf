"""Average precision against COCO's own evaluation: the same detections, the same figures."""

import os
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import coco
from pycocotools import mask as rle
from pycocotools.cocoeval import COCOeval
from pytorch_lightning.strategies import SingleDeviceStrategy

from datamodules import COCO
from lightning_modules.average_precision import AveragePrecision

DATA = Path(os.environ.get("FRUGAL_DATA", "nowhere")).expanduser()
FIGURES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
COUNT = 40
KINDS = {"bbox": "box", "segm": "mask"}


def scores_of(detections, targets, masks=True, sizes=(5, 3, 8)):
    """Ours, over updates of several sizes."""
    metric, start = AveragePrecision(masks), 0
    while start < len(targets):
        end = start + sizes[start % len(sizes)]
        metric.update(detections[start:end], targets[start:end])
        start = end
    return metric.compute(SingleDeviceStrategy("cpu"))


def rows(detections, targets, kind):
    """In COCO's format; with boxes in them, masks would be sorted into small and large by their boxes."""
    for found, target in zip(detections, targets, strict=True):
        for box, mask, label, score in zip(*(found[n] for n in ("boxes", "masks", "labels", "scores")), strict=True):
            if kind == "bbox":
                x1, y1, x2, y2 = box.tolist()
                where = {"bbox": [x1, y1, x2 - x1, y2 - y1]}
            else:
                where = {"segmentation": rle.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))}
            known = {"image_id": int(target["image_id"]), "category_id": int(label), "score": float(score)}
            yield {**known, **where}


def expected(truths, detections, targets):
    """What pycocotools says, by our names."""
    figures = {}
    for kind, name in KINDS.items():
        with redirect_stdout(StringIO()):
            evaluation = COCOeval(truths, truths.loadRes(list(rows(detections, targets, kind))), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        figures |= {f"{name}_{figure}": value for figure, value in zip(FIGURES, evaluation.stats[:6], strict=True)}
    return figures


def detections_from(targets, rng):
    """The truths, of which boxes and masks have moved, some labels are others, some are missing and others false."""
    every = []
    for target in targets:
        height, width = target["masks"].shape[1:]
        boxes, masks, labels = [], [], []
        for box, mask, label, crowd in zip(
            *(target[name].numpy() for name in ("boxes", "masks", "labels", "iscrowd")), strict=True
        ):
            if rng.random() < 0.15:
                continue
            shift = rng.integers(-6, 7, 2) if rng.random() < 0.6 else (0, 0)
            for _ in range(6 if crowd else rng.choice([1, 1, 2])):  # several in a crowd, some objects twice
                size = np.tile(box[2:] - box[:2], 2)
                boxes.append(box + (rng.normal(0, 0.08, 4) * size if rng.random() < 0.7 else 0))
                if crowd:  # a part of the region
                    left, top = box[:2] + rng.random(2) * size[:2] * 0.6
                    boxes[-1] = np.array([left, top, left + size[0] * 0.3, top + size[1] * 0.3])
                masks.append(np.roll(mask, shift, (0, 1)))
                masks[-1][: int(box[1] + rng.choice([0, 0.1, 0.4]) * size[1])] = 0  # of some the upper part
                labels.append(label if rng.random() < 0.85 else rng.choice(target["labels"]))
        for _ in range(rng.integers(0, 4) * rng.integers(0, 2)):
            left, top = rng.random(2) * (width - 12, height - 12)
            boxes.append(np.array([left, top, left + 3 + rng.random() * 100, top + 3 + rng.random() * 100]))
            masks.append(np.zeros((height, width), np.uint8))
            masks[-1][int(top) : int(top) + 11, int(left) : int(left) + 12] = 1
            labels.append(rng.choice([1, 3, 62, 90]))
        every.append(as_tensors(boxes, masks, labels, rng.integers(0, 21, len(labels)) / 20, (height, width)))
    return every


def as_tensors(boxes, masks, labels, scores, size):
    return {
        "boxes": torch.tensor(np.array(boxes, np.float32).reshape(-1, 4)),
        "masks": torch.tensor(np.array(masks, bool).reshape(-1, *size)),
        "labels": torch.tensor(np.array(labels, np.int64)),
        "scores": torch.tensor(np.array(scores, np.float32)),
    }


def made_truths(count, rng):
    """Images with 0 to 5 ellipses of three categories, small to large, some of them crowds."""
    targets = []
    for image_id in rng.permutation(1000)[:count].tolist():
        size, objects = rng.integers(150, 260, 2), rng.integers(0, 6)
        y, x = np.mgrid[: size[0], : size[1]]
        masks, boxes = [], []
        for radius in rng.choice([8, 30, 70], objects):
            a, b = radius * (0.6 + 0.4 * rng.random(2))
            masks.append(
                ((x - rng.uniform(a, size[1] - a)) / a) ** 2 + ((y - rng.uniform(b, size[0] - b)) / b) ** 2 < 1
            )
            boxes.append([np.flatnonzero(masks[-1].any(0))[0], np.flatnonzero(masks[-1].any(1))[0], 0, 0])
            boxes[-1][2:] = np.flatnonzero(masks[-1].any(0))[-1] + 1, np.flatnonzero(masks[-1].any(1))[-1] + 1
        each = as_tensors(boxes, masks, rng.choice([1, 3, 90], objects), [], size)
        each["masks"], each["image_id"] = each["masks"].byte(), torch.tensor(image_id)
        each["area"] = each["masks"].sum((1, 2)).float()
        each["iscrowd"] = torch.tensor((rng.random(objects) < 0.2).astype(np.int64))
        targets.append({name: tensor for name, tensor in each.items() if name != "scores"})
    return targets


def as_reference(targets):
    """The truths as pycocotools has them from a file."""
    images, objects = [], []
    for target in targets:
        height, width = target["masks"].shape[1:]
        images.append({"id": int(target["image_id"]), "height": height, "width": width})
        for box, mask, label, area, crowd in zip(
            *(target[name].tolist() for name in ("boxes", "masks", "labels", "area", "iscrowd")), strict=True
        ):
            runs = rle.encode(np.asfortranarray(np.array(mask, np.uint8)))
            where = {"bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]], "segmentation": runs, "area": area}
            owner = {"id": len(objects) + 1, "image_id": int(target["image_id"]), "category_id": label}
            objects.append({**owner, **where, "iscrowd": crowd})
    truths = coco.COCO()
    categories = [{"id": label, "name": str(label)} for label in (1, 3, 62, 90)]
    truths.dataset = {"images": images, "annotations": objects, "categories": categories}
    with redirect_stdout(StringIO()):
        truths.createIndex()
    return truths


@pytest.fixture(scope="module")
def made():
    rng = np.random.default_rng(2)
    targets = made_truths(COUNT, rng)
    return targets, detections_from(targets, rng)


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert ours == pytest.approx(theirs, abs=1e-6, rel=0)


@pytest.mark.skipif(not (DATA / "coco").is_dir(), reason="no COCO in FRUGAL_DATA")
def test_on_the_real_annotations_it_is_what_cocos_evaluation_says():
    data = COCO(DATA, batch_size=8, masks=True, num_workers=0)
    data.setup("validate")
    targets = [target for _, batch in data.val_dataloader() for target in batch]
    assert sum(int(target["iscrowd"].sum()) for target in targets) > 5
    assert [target["image_id"].item() for target in targets] == sorted(data.val_set.given.image_ids.tolist())
    detections = detections_from(targets, np.random.default_rng(0))
    with redirect_stdout(StringIO()):
        truths = coco.COCO(DATA / "coco/annotations/instances_val2017.json")
    theirs = expected(truths, detections, targets)
    assert all(0.1 < value < 0.9 for value in theirs.values())
    assert_same(scores_of(detections, targets), theirs)


def test_on_made_annotations_it_is_what_cocos_evaluation_says(made):
    targets, detections = made
    theirs = expected(as_reference(targets), detections, targets)
    assert all(0.05 < value < 0.9 for value in theirs.values())
    counts = [(len(found["labels"]), len(target["labels"])) for found, target in zip(detections, targets, strict=True)]
    assert {(bool(found), bool(there)) for found, there in counts} >= {(False, False), (True, False), (True, True)}
    assert_same(scores_of(detections, targets), theirs)
    boxes = scores_of(detections, targets, masks=False)
    assert boxes == {name: value for name, value in scores_of(detections, targets).items() if "box" in name}


@pytest.mark.parametrize("order", ["reversed", "shuffled"])
@pytest.mark.parametrize("sizes", [(1,), (2, 7), (COUNT,)])
def test_neither_order_nor_batches_matter(made, order, sizes):
    """Though many scores are equal: they count in the order of the images' ids."""
    targets, detections = made
    first = np.argsort([int(target["image_id"]) for target in targets])
    expected = scores_of([detections[i] for i in first], [targets[i] for i in first], sizes=(3,))
    other = first[::-1] if order == "reversed" else np.random.default_rng(2).permutation(COUNT)
    assert scores_of([detections[i] for i in other], [targets[i] for i in other], sizes=sizes) == expected


def test_equal_scores_would_count_in_another_order_otherwise(made):
    """Without it the test above could not fail."""
    targets, detections = made
    renamed = [{**target, "image_id": torch.tensor(-int(target["image_id"]))} for target in targets]
    assert scores_of(detections, renamed) != scores_of(detections, targets)


def test_computing_begins_anew(made):
    targets, detections = made
    metric, alone = AveragePrecision(True), SingleDeviceStrategy("cpu")
    metric.update(detections[: COUNT // 2], targets[: COUNT // 2])
    first = metric.compute(alone)
    assert set(metric.compute(alone).values()) == {-1.0}
    metric.update(detections[COUNT // 2 :], targets[COUNT // 2 :])
    assert metric.compute(alone) == scores_of(detections[COUNT // 2 :], targets[COUNT // 2 :]) != first


def test_a_hundred_detections_of_a_category_count_in_an_image():
    """As in COCO's evaluation: the best of each category, here without the only right one."""
    rng = np.random.default_rng(3)
    target = {
        "boxes": torch.tensor([[10.0, 10, 50, 60]]), "labels": torch.tensor([1]), "image_id": torch.tensor(7),
        "masks": torch.zeros(1, 70, 90, dtype=torch.uint8), "area": torch.tensor([2000.0]),
        "iscrowd": torch.tensor([0]),
    }  # fmt: skip
    target["masks"][0, 10:60, 10:50] = 1
    wrong = [[left, 5, left + 8, 15] for left in rng.random(150) * 70]
    false = np.zeros((150, 70, 90), bool)
    false[:, 62:68, 2:9] = True
    for rank, expect in ((99, 0.01), (100, 0.0)):
        boxes, masks = [*wrong[:rank], [10, 10, 50, 60], *wrong[rank:]], np.insert(false, rank, target["masks"][0], 0)
        found = as_tensors(boxes, masks, [1] * 151, np.linspace(1, 0.1, 151), (70, 90))
        others = {**found, "labels": torch.full((151,), 3)}  # of a category that is counted for itself
        both = {name: torch.cat([others[name], found[name]]) for name in found}
        theirs = expected(as_reference([target]), [both], [target])
        assert theirs["box_ap"] == theirs["mask_ap"] == pytest.approx(expect)
        assert_same(scores_of([both], [target]), theirs)


def test_without_objects_or_images_there_is_no_precision(made):
    names = {f"{kind}_{figure}" for kind in ("box", "mask") for figure in FIGURES}
    assert scores_of([], []) == dict.fromkeys(names, -1.0)
    assert scores_of([], [], masks=False) == {name: -1.0 for name in names if name.startswith("box")}
    empty = as_tensors([], [], [], [], (9, 9))
    nothing = {**empty, "image_id": torch.tensor(1), "area": torch.zeros(0), "iscrowd": torch.zeros(0).long()}
    assert scores_of([empty], [nothing]) == dict.fromkeys(names, -1.0)
    targets, detections = made
    assert scores_of([detections[0]], [{**nothing, "image_id": targets[0]["image_id"]}]) == dict.fromkeys(names, -1.0)
    missed = scores_of([empty], [next(target for target in targets if 0 in target["iscrowd"])])
    assert missed["box_ap"] == missed["mask_ap"] == 0
