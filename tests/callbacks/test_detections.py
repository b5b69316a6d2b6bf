"""What detectors leave behind: pictures, and results in COCO's format."""

import json
from contextlib import redirect_stdout
from io import StringIO
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from pycocotools import coco
from pycocotools import mask as rle
from pycocotools.cocoeval import COCOeval
from pytorch_lightning import Trainer
from pytorch_lightning.loggers import CSVLogger
from torch import nn

from callbacks import DetectionPictures, PredictionWriter, detection_pictures
from callbacks.detection_results import as_results
from datamodules import COCO
from lightning_modules import Detector
from networks import InputError

SIZES = {8: (90, 160), 2: (160, 120), 5: (100, 130), 11: (130, 175), 9: (148, 148), 4: (90, 160), 7: (100, 100)}
IDS = sorted(SIZES)  # of images, in the data's order; image 5 has no objects
CATEGORIES = (1, 13, 90)


def rectangles(image_id, count, numbers):
    """Boxes (x1, y1, x2, y2), of which some are small, some not."""
    height, width = SIZES[image_id]
    sides = numbers.integers(8, [width - 10, height - 10], (count, 2)) // numbers.choice([1, 3], (count, 1))
    corners = (numbers.random((count, 2)) * ([width, height] - sides)).astype(int)
    return np.concatenate([corners, corners + sides], 1)


def truths():
    numbers, objects = np.random.default_rng(0), []
    for image_id in set(IDS) - {5}:
        for n, (x1, y1, x2, y2) in enumerate(rectangles(image_id, 7, numbers).tolist()):
            outline, box = [[x1, y1, x2, y1, x2, y2, x1, y2]], [x1, y1, x2 - x1, y2 - y1]
            if n == 6:  # a crowd, as runs
                height, width = SIZES[image_id]
                outline = np.zeros((height, width), np.uint8)
                outline[y1:y2, x1:x2] = 1
                outline = rle.encode(np.asfortranarray(outline))
                outline["counts"] = outline["counts"].decode()
            each = {"id": len(objects) + 1, "image_id": image_id, "category_id": CATEGORIES[n % 3], "iscrowd": n // 6}
            objects.append({**each, "bbox": box, "area": box[2] * box[3] * 0.9, "segmentation": outline})
    return objects


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """COCO's layout, with seven photographs that are each of one grey: ten times their place among the ids."""
    root = tmp_path_factory.mktemp("data")
    (root / "coco/annotations").mkdir(parents=True)
    images = [{"id": i, "file_name": f"{i}.jpg", "height": h, "width": w} for i, (h, w) in SIZES.items()]
    categories = [{"id": i, "name": str(i)} for i in CATEGORIES]
    content = json.dumps({"images": images, "annotations": truths(), "categories": categories})
    for split in ("train2017", "val2017"):
        (root / f"coco/{split}").mkdir()
        (root / f"coco/annotations/instances_{split}.json").write_text(content)
        for place, image_id in enumerate(IDS):
            grey = np.full((*SIZES[image_id], 3), 10 * place, np.uint8)
            Image.fromarray(grey).save(root / f"coco/{split}/{image_id}.jpg")
    return root


def detections(image_id):
    """Most of the objects, moved, and false ones; masks are the boxes without their first eighth."""
    numbers, (height, width) = np.random.default_rng(image_id), SIZES[image_id]
    kept = [each for each in truths() if each["image_id"] == image_id and numbers.random() < 0.8]
    boxes = np.array([each["bbox"] for each in kept], float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    boxes += numbers.choice([0, 0, 0.25, 2.5], (len(boxes), 4))
    boxes = np.concatenate([boxes, rectangles(image_id, 3, numbers)])
    boxes[:, [2, 3]] = boxes[:, [2, 3]].clip(max=(width, height))
    masks = torch.zeros(len(boxes), 1, height, width)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int).tolist(), strict=True):
        mask[0, y1:y2, x1 + (x2 - x1) // 8 : x2] = 0.9
    labels = [*(each["category_id"] for each in kept), *numbers.choice(CATEGORIES, 3).tolist()]
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32),
        "labels": torch.tensor(labels),
        "scores": torch.tensor(numbers.integers(0, 11, len(boxes)) / 10, dtype=torch.float32),
        "masks": masks,
    }


class Seer(nn.Module):
    """A detector that knows each photograph by its grey."""

    def __init__(self):
        super().__init__()
        self.number, self.roi_heads = nn.Parameter(torch.ones(1)), SimpleNamespace(has_mask=lambda: True)
        self.known = [detections(image_id) for image_id in IDS]

    def forward(self, images, targets=None):
        if self.training:
            return {"number": self.number.square().sum()}
        return [dict(self.known[round(image.mean().item() * 25.5)]) for image in images]


def module():
    return Detector(Seer(), 91, (3, 90, 160))


def data(root):
    return COCO(root, batch_size=2, image_size=90, masks=True, num_workers=0)


class Logger(CSVLogger):
    """Takes images, as W&B's does."""

    def __init__(self, folder):
        super().__init__(folder, "", "")
        self.images = []

    def log_image(self, key, images):
        self.images += [(key, path, Image.open(path).size) for path in images]


def trainer(folder, *callbacks, **options):
    quiet = dict(enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    options = {"logger": Logger(folder), **quiet, **options}
    return Trainer(accelerator="cpu", default_root_dir=folder, callbacks=list(callbacks), **options)


def pictures(folder):
    return sorted(path.name for path in folder.rglob("*.png"))


@pytest.fixture
def drawn(monkeypatch):
    """What is given to `draw`."""
    seen, draw = [], detection_pictures.draw
    monkeypatch.setattr(detection_pictures, "draw", lambda *given: seen.append(given[1:]) or draw(*given))
    return seen


@pytest.mark.parametrize(("every", "epochs"), [(1, (1, 2, 3)), (2, (2, 3)), (5, (3,))])
def test_pictures_come_at_their_epochs_and_at_the_last(root, tmp_path, drawn, every, epochs):
    runner = trainer(tmp_path, DetectionPictures(images=3, every_n_epochs=every), max_epochs=3)
    runner.fit(module(), datamodule=data(root))
    names = [f"epoch_{epoch:03d}.png" for epoch in epochs]
    assert pictures(tmp_path) == names
    paths = [str(tmp_path / "detections" / name) for name in names]
    assert runner.logger.images == [("pictures/detections", path, (1260, 3 * 486)) for path in paths]
    assert len(drawn) == len(epochs) * 3 * 2  # none of the sanity check's


def test_pictures_show_the_first_images_with_what_is_found_and_what_is_true(root, tmp_path, drawn):
    """Three of seven images in batches of two."""
    dataset = data(root)
    trainer(tmp_path, DetectionPictures(images=3, min_score=0.5)).test(module(), datamodule=dataset, verbose=False)
    assert pictures(tmp_path) == ["test.png"]
    batches = list(dataset.test_dataloader())
    images, targets = ([each for batch in batches for each in batch[part]] for part in (0, 1))
    assert [(image.shape[1:], names) for image, _, names in drawn] == [
        (SIZES[image_id], dataset.class_names) for image_id in IDS[:3] for _ in range(2)
    ]
    left_out = 0
    for i, ((image, found, _), (again, true, _)) in enumerate(zip(drawn[::2], drawn[1::2], strict=True)):
        assert torch.equal(image, images[i])
        assert torch.equal(again, images[i])
        assert all(torch.equal(true[name], targets[i][name]) for name in targets[i])
        known = detections(IDS[i])
        good = known["scores"] >= 0.5
        left_out += (~good).sum()
        assert torch.equal(found["boxes"], known["boxes"][good])
        assert torch.equal(found["masks"], known["masks"][good][:, 0] > 0.5)
    assert 0 < left_out < sum(len(detections(i)["labels"]) for i in IDS[:3])


def test_no_more_images_than_there_are(root, tmp_path):
    runner = trainer(tmp_path, DetectionPictures(images=50))
    runner.test(module(), datamodule=data(root), verbose=False)
    assert runner.logger.images == [("pictures/detections", str(tmp_path / "detections/test.png"), (1260, 7 * 486))]


def test_a_validation_without_training_is_always_drawn(root, tmp_path):
    trainer(tmp_path, DetectionPictures(every_n_epochs=3)).validate(module(), datamodule=data(root), verbose=False)
    assert pictures(tmp_path) == ["validate.png"]


def test_a_trial_run_draws_nothing(root, tmp_path):
    trainer(tmp_path, DetectionPictures(), fast_dev_run=True).fit(module(), datamodule=data(root))
    assert list(tmp_path.iterdir()) == []


def test_boxes_masks_and_names_are_drawn():
    image = torch.arange(256, dtype=torch.uint8).repeat(3, 100, 1)[:, :, :200]
    objects = {"labels": torch.tensor([11, 2]), "boxes": torch.tensor([[20.0, 30, 120, 90], [0, 0, 10, 10]])}
    objects["scores"], objects["masks"] = torch.tensor([0.876, 0.5]), torch.zeros(2, 100, 200, dtype=torch.uint8)
    objects["masks"][0, 70:80, 40:60] = 1
    axes = Figure().subplots()
    detection_pictures.draw(axes, image, objects, [str(i) * 2 for i in range(12)])
    assert [patch.get_bbox().extents.tolist() for patch in axes.patches] == objects["boxes"].tolist()
    assert [text.get_text() for text in axes.texts] == ["1111 0.88", "22 0.50"]
    first, second = (patch.get_edgecolor() for patch in axes.patches)
    assert first != second
    plain = image.permute(1, 2, 0).numpy()
    (shown,) = (np.asarray(each.get_array()) for each in axes.images)
    mixed = plain[70:80, 40:60] / 2 + 255 * np.array(first[:3]) / 2
    assert np.abs(shown[70:80, 40:60] - mixed).max() <= 1
    outside = np.ones((100, 200), bool)
    outside[70:80, 40:60] = False
    assert (shown[outside] == plain[outside]).all()


def test_what_is_true_has_no_scores_and_labels_may_have_no_names():
    axes = Figure().subplots()
    objects = {"labels": torch.tensor([11]), "boxes": torch.tensor([[20.0, 30, 12, 9]])}  # a file may say so
    detection_pictures.draw(axes, torch.zeros(3, 16, 16), objects, None)
    assert [text.get_text() for text in axes.texts] == ["11"]


def test_bytes_and_floats_are_drawn_alike():
    image, nothing = torch.arange(256, dtype=torch.uint8).expand(3, 16, 256), {"labels": torch.zeros(0).long()}
    one, other = Figure().subplots(1, 2)
    detection_pictures.draw(one, image, nothing, None)
    detection_pictures.draw(other, image / 255, nothing, None)
    assert (one.images[0].get_array() == other.images[0].get_array()).all()


@pytest.mark.parametrize("options", [{"images": 0}, {"every_n_epochs": 0}, {"min_score": 1.5}, {"min_score": -0.1}])
def test_refused(options):
    ((name, value),) = options.items()
    with pytest.raises(InputError, match=f"{name}={value}"):
        DetectionPictures(**options)


def test_results_of_an_image():
    found = {
        "boxes": torch.tensor([[1.5, 2, 11.25, 6], [0, 0, 3, 3]]), "labels": torch.tensor([90, 1]),
        "scores": torch.tensor([0.75, 0.5]), "masks": torch.rand(2, 7, 12) > 0.5,
    }  # fmt: skip
    about = [
        {"image_id": 42, "category_id": 90, "score": 0.75},
        {"image_id": 42, "category_id": 1, "score": 0.5},
    ]
    boxes = [[1.5, 2.0, 9.75, 4.0], [0.0, 0.0, 3.0, 3.0]]
    assert as_results(found, 42, "bbox") == [{**row, "bbox": box} for row, box in zip(about, boxes, strict=True)]
    rows = json.loads(json.dumps(as_results(found, 42, "segm")))
    for row, mask in zip(rows, found["masks"].numpy(), strict=True):
        assert row["segmentation"]["size"] == [7, 12]
        assert (rle.decode(row.pop("segmentation")) == mask).all()
    assert rows == about
    assert as_results({name: each[:0] for name, each in found.items()}, 42, "segm") == []


def test_results_score_in_cocos_evaluation_as_they_did_here(root, tmp_path):
    dataset = data(root)
    (scores,) = trainer(tmp_path).test(module(), datamodule=dataset, verbose=False)
    trainer(tmp_path, PredictionWriter()).predict(module(), datamodule=dataset)
    figures, theirs = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"), {}
    with redirect_stdout(StringIO()):
        truth = coco.COCO(root / "coco/annotations/instances_val2017.json")
        for kind, name in (("bbox", "box"), ("segm", "mask")):
            rows = json.loads((tmp_path / f"detections_{kind}.json").read_text())
            assert [row["image_id"] for row in rows] == [i for i in IDS for _ in detections(i)["labels"]]
            evaluation = COCOeval(truth, truth.loadRes(rows), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            theirs |= {f"test/{name}_{figure}": value for figure, value in zip(figures, evaluation.stats, strict=False)}
    assert all(0.1 < value <= 1 for value in scores.values())
    assert scores == pytest.approx(theirs, abs=1e-6)
