"""COCO: a small one in its layout, augmentation of pixels, boxes and masks together; and the real one's sample."""

import json
import os
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import COCO
from datamodules.randomness import Draw
from networks import InputError

DATA = Path(os.environ.get("FRUGAL_DATA", "nowhere")).expanduser()
SIZES = {8: (40, 60), 2: (60, 40), 5: (40, 60), 11: (30, 75), 9: (48, 48)}  # height and width by id; 5 has no objects
ALIKE = dict.fromkeys((1, 2, 3, 4, 6, 7), (48, 64))


def objects(sizes):
    """In each image three of two triangles, that may pass the border, and a crowd."""
    numbers, found = np.random.default_rng(1), []
    for i, (h, w) in ((i, size) for i, size in sizes.items() if i != 5):
        for _ in range(3):
            points = numbers.integers(-16, np.array([4 * w, 4 * h]) + 16, (6, 2)) / 4  # which float32 has exactly
            box = [*points.min(0).tolist(), *np.ptp(points, 0).tolist()]
            outline = points.reshape(2, 6).tolist()
            found.append({"image_id": i, "bbox": box, "segmentation": outline, "iscrowd": 0})
        runs = {"size": [h, w], "counts": [h, 5 * h, h * w - 6 * h]}
        found.append({"image_id": i, "bbox": [1, 0, 5, h], "segmentation": runs, "iscrowd": 1})
    return [{**each, "id": n, "area": 1.5 * n, "category_id": (1, 13, 90)[n % 3]} for n, each in enumerate(found)]


def write(root, sizes=SIZES, splits=("train2017", "val2017"), annotations=None):
    numbers = np.random.default_rng(0)
    images = [{"id": i, "file_name": f"{i}.jpg", "height": h, "width": w} for i, (h, w) in sizes.items()]
    content = json.dumps({"images": images, "annotations": annotations or objects(sizes)})
    (root / "coco/annotations").mkdir(parents=True)
    for split in splits:
        (root / "coco" / split).mkdir()
        (root / f"coco/annotations/instances_{split}.json").write_text(content)
        for i, size in sizes.items():
            pixels = numbers.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / f"coco/{split}/{i}.jpg")
    return root


def coco(root, stage=None, **options):
    data = COCO(str(root), **{"batch_size": 2, "num_workers": 0, "masks": True, **options})
    data.setup(stage)
    return data


def samples(batch):
    return [{"image": image, **target} for image, target in zip(*batch, strict=True)]


def draw(dataset, *indices, seed=0, epoch=0):
    return samples(dataset[Draw(seed, epoch, np.array(indices))])


def equal(some, others):
    """Whether all tensors of the samples are the same."""
    assert [each.keys() for each in some] == [each.keys() for each in others]
    pairs = [(a[name], b[name]) for a, b in zip(some, others, strict=True) for name in a]
    return all(type(a) is type(b) and a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def literal(path):
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)


def tight(mask):
    """The box around the pixels of a mask."""
    y, x = torch.nonzero(mask, as_tuple=True)
    return torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]).float()


def test_says_its_sizes_before_reading(monkeypatch):
    monkeypatch.setenv("FRUGAL_DATA", "/nowhere")
    data = COCO()
    assert (data.num_classes, data.input_size, data.folder) == (91, (3, 800, 1200), Path("/nowhere/coco"))
    assert COCO(image_size=(320, 300)).input_size == (3, 320, 300)
    known = {0: "__background__", 1: "person", 12: "N/A", 13: "stop sign", 44: "bottle", 90: "toothbrush"}
    assert {i: data.class_names[i] for i in known} == known
    assert (len(data.class_names), data.class_names.count("N/A")) == (91, 10)
    assert COCO("~/here").folder == Path.home() / "here/coco"
    monkeypatch.delenv("FRUGAL_DATA")
    assert COCO().folder == Path("data/coco")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, r"data\.image_size=0 must be a positive number, or two"),
        ({"image_size": (320, 0)}, r"data\.image_size=\(320, 0\) must be"),
        ({"limit": 0}, r"data\.limit=0 must be positive"),
        ({"augmentation": "crop"}, r"data\.augmentation is one of flip, ssd, none; got 'crop'"),
    ],
)
def test_refusals_at_construction(options, message):
    with pytest.raises(InputError, match=message):
        COCO(**options)


def test_refusals_in_setup(tmp_path):
    with pytest.raises(InputError, match=r"no COCO annotations at .*instances_val2017\.json: fetch annotations_trainv"):
        coco(tmp_path, "validate")
    write(tmp_path)
    for part, stage in (("train_split", "fit"), ("val_split", "validate")):
        with pytest.raises(InputError, match=rf"data\.{part}=test-dev2017 has no public labels: `frugal predict` take"):
            coco(tmp_path, stage, **{part: "test-dev2017"})
    (tmp_path / "coco/train2017/2.jpg").unlink()
    with pytest.raises(InputError, match=r"1 of 4 photographs are not in .*train2017, such as 2\.jpg: unpack train201"):
        coco(tmp_path, "fit")
    with pytest.raises(InputError, match=r"image_info_test-dev2017\.json") as caught:
        coco(tmp_path, "predict", test_split="test-dev2017")
    assert "annotations_trainval2017.zip" not in str(caught.value)  # it is in another archive


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_photograph_that_cannot_be_right_is_named_in_one_line(tmp_path, num_workers):
    data = coco(write(tmp_path), num_workers=num_workers)
    path = tmp_path / "coco/val2017/9.jpg"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError) as caught:
        list(data.val_dataloader())
    start, end = f"{path} cannot be decoded \\(", r"\): unpack it again from the data set's archive"
    assert re.fullmatch(f"{start}.+{end}", str(caught.value))  # in one line
    Image.new("RGB", (48, 49)).save(path)
    with pytest.raises(InputError) as caught:
        list(data.val_dataloader())
    assert str(caught.value).startswith(f"{path} has 49x48 pixels, and its annotations are for 48x48: unpack the arch")


@pytest.mark.parametrize("masks", [False, True])
def test_evaluation_gives_each_image_once_as_it_is(tmp_path, masks):
    data = coco(write(tmp_path), "validate", masks=masks, batch_size=3)
    batches = list(data.val_dataloader())
    assert [len(images) for images, _ in batches] == [3, 2]
    expected = []
    for place, i in enumerate(sorted(SIZES)):
        own = [each for each in objects(SIZES) if each["image_id"] == i]
        corners = [[x, y, x + w, y + h] for x, y, w, h in (each["bbox"] for each in own)]
        expected.append({
            "image": literal(tmp_path / f"coco/val2017/{i}.jpg"),
            "boxes": torch.tensor(corners, dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor([each["category_id"] for each in own], dtype=torch.int64),
            **({"masks": torch.from_numpy(data.val_set.given.masks(place))} if masks else {}),
            "area": torch.tensor([each["area"] for each in own], dtype=torch.float32),
            "iscrowd": torch.tensor([each["iscrowd"] for each in own], dtype=torch.int64),
            "image_id": torch.tensor(i),
        })  # fmt: skip
    assert equal([sample for batch in batches for sample in samples(batch)], expected)
    assert data.val_set[Draw(0, 0, np.arange(0))] == ([], [])  # of a process whose share is empty


def test_training_has_one_size_or_that_of_the_photographs(tmp_path):
    write(tmp_path)
    fixed, own = (coco(tmp_path, "fit", image_size=size).train_set for size in ((24, 36), 800))
    images, targets = fixed[Draw(0, 0, np.arange(4))]
    assert (images.shape, images.dtype) == ((4, 3, 24, 36), torch.uint8)
    for target in targets:
        assert target.keys() == {"boxes", "labels", "masks", "image_id"}
        assert target["masks"].shape == (len(target["boxes"]), 24, 36)
    for i, sample in zip((2, 8, 9, 11), draw(own, 0, 1, 2, 3), strict=True):
        assert int(sample["image_id"]) == i
        assert sample["image"].shape == (3, *SIZES[i])
        assert sample["masks"].shape == (len(sample["boxes"]), *SIZES[i])
    assert isinstance(own[Draw(0, 0, np.arange(4))][0], list)
    assert own[Draw(0, 0, np.array([0, 0]))][0].shape == (2, 3, *SIZES[2])  # of one size, a stack


def test_flips_mirror_everything(tmp_path):
    write(tmp_path, ALIKE)
    plain, data = (coco(tmp_path, "fit", augmentation=name).train_set for name in ("none", "flip"))
    flips = []
    for epoch, index in np.ndindex(30, 6):
        (sample,), (ours,) = draw(plain, index, epoch=epoch), draw(data, index, epoch=epoch)
        assert torch.equal(sample["image"], literal(tmp_path / f"coco/train2017/{sample['image_id']}.jpg"))
        assert np.array_equal(sample["boxes"], plain.given.boxes[plain.given.objects(index)])
        flips.append(not torch.equal(ours["image"], sample["image"]))
        if flips[-1]:
            x1, y1, x2, y2 = sample["boxes"].unbind(1)
            boxes = torch.stack([64 - x2, y1, 64 - x1, y2], dim=1)
            sample |= {"boxes": boxes, "image": sample["image"].flip(-1), "masks": sample["masks"].flip(-1)}
        assert equal([ours], [sample])
    assert np.mean(flips) == pytest.approx(0.5, abs=5 * 0.5 / 180**0.5)


@pytest.mark.parametrize("width", [600, 612, 640])
def test_objects_at_the_border_are_kept_when_resized(tmp_path, width):
    """In float32 a side times the ratio of sizes may be more than the new side, by a rounding error."""
    boxes = [0, 0, width, 80], [9, 9, width - 9, 71]
    write(tmp_path, {1: (80, width)}, annotations=[{"image_id": 1, "category_id": 1, "bbox": box} for box in boxes])
    (sample,) = draw(coco(tmp_path, "fit", image_size=(320, 320), augmentation="none", masks=False).train_set, 0)
    assert sample["boxes"][:, 2:].tolist() == [[320, 320], [320, 320]]


def test_ssd_moves_pixels_boxes_and_masks_together(tmp_path):
    """A red rectangle on blue: distorted as they are, colours tell it from the rest and from the filling."""
    given = {"bbox": [120, 100, 200, 160], "segmentation": [[120, 100, 320, 100, 320, 260, 120, 260]]}
    write(tmp_path, {1: (400, 400)}, annotations=[{"image_id": 1, "category_id": 1, **given}])
    pixels = np.full((400, 400, 3), (0, 0, 255), np.uint8)
    pixels[100:260, 120:320] = (255, 0, 0)
    Image.fromarray(pixels).save(tmp_path / "coco/train2017/1.jpg", "PNG")  # without loss, whatever it is called
    dataset = coco(tmp_path, "fit", image_size=(120, 120), augmentation="ssd").train_set
    widths, colours = [], set()
    for epoch in range(60):
        (sample,) = draw(dataset, 0, epoch=epoch)
        (box,), (mask,), image = sample["boxes"], sample["masks"], sample["image"].int()
        torch.testing.assert_close(tight(mask), box, atol=1, rtol=0)
        assert mask.sum() == (tight(mask)[2:] - tight(mask)[:2]).prod()
        x, y = ((box[:2] + box[2:]) / 2).int().tolist()
        colours.add(tuple(image[:, y, x].tolist()))
        alike = ((image - image[:, y, x, None, None]).abs() <= 16).all(0)
        torch.testing.assert_close(tight(alike), box, atol=2, rtol=0)
        widths.append((box[2] - box[0]).item())
    assert len(colours) > 30
    assert min(widths) < 30  # zoomed out
    assert max(widths) > 90  # cropped
    assert widths.count(60) > 1  # as it was


@pytest.mark.skipif(not (DATA / "coco").is_dir(), reason="no COCO in FRUGAL_DATA")
def test_ssd_on_real_photographs():
    dataset = coco(DATA, "fit", image_size=(128, 128), augmentation="ssd", limit=40).train_set
    beyond = []
    for index in range(40):
        (sample,) = draw(dataset, index)
        boxes, masks, labels = (sample[name] for name in ("boxes", "masks", "labels"))
        assert len(boxes) == len(masks) == len(labels)
        assert ((boxes >= 0) & (boxes <= 128)).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert Counter(labels.tolist()) <= Counter(dataset.given.labels[dataset.given.objects(index)].tolist())
        for box, mask in ((box, tight(mask)) for box, mask in zip(boxes, masks, strict=True) if mask.any()):
            beyond.append(torch.cat([box[:2] - mask[:2], mask[2:] - box[2:]]).max().item())
    assert len(beyond) > 100
    assert max(beyond) < 2


@pytest.mark.parametrize("augmentation", ["flip", "ssd"])
def test_a_sample_is_a_function_of_seed_epoch_and_index(tmp_path, augmentation):
    write(tmp_path, ALIKE)
    dataset = coco(tmp_path, "fit", augmentation=augmentation).train_set
    alone = [draw(dataset, index, epoch=5)[0] for index in range(6)]
    for indices in ([0, 1, 2, 3, 4, 5], [4, 1], [3, 3, 0]):
        torch.rand(len(indices))
        before = torch.get_rng_state()
        assert equal(draw(dataset, *indices, epoch=5), [alone[index] for index in indices])
        assert torch.equal(torch.get_rng_state(), before)
    for other in ({"epoch": 6}, {"epoch": 5, "seed": 1}):
        assert not equal(draw(dataset, *range(6), **other), alone)
    (tmp_path / "coco/train2017/7.jpg").write_bytes(b"")
    with pytest.raises(InputError, match=r"7\.jpg cannot be decoded"):
        draw(dataset, *range(6))
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_change_nothing(tmp_path):
    write(tmp_path)
    loaders = [coco(tmp_path, "fit", augmentation="ssd", num_workers=n).train_dataloader() for n in (0, 2)]
    epochs = [[[sample for batch in loader for sample in samples(batch)] for loader in loaders] for _ in range(2)]
    for first, second in epochs:
        assert len(first) == 4
        assert equal(first, second)
    assert not equal(*(sorted(first, key=lambda sample: sample["image_id"]) for first, _ in epochs))


def test_each_stage_reads_what_it_needs_and_once(tmp_path):
    write(tmp_path, splits=("val2017",))
    for stage in ("validate", "test", "predict"):
        coco(tmp_path, stage)  # without photographs to train on
    data = coco(write(tmp_path / "both"), "fit")
    read = data.train_set, data.val_set
    for stage in ("fit", "validate", "test", "predict"):
        data.setup(stage)
    assert (data.train_set, data.val_set) == read
    assert data.test_set is data.val_set
    other = coco(tmp_path / "both", test_split="train2017")
    assert (other.val_set.given.folder.name, other.test_set.given.folder.name) == ("val2017", "train2017")
    assert (len(other.train_set), len(other.test_set)) == (4, 5)  # evaluation has all


@pytest.mark.parametrize("masks", [False, True])
def test_prediction_without_labels(tmp_path, masks):
    folder = write(tmp_path, splits=("test2017",)) / "coco/annotations"
    listed = {"images": json.loads((folder / "instances_test2017.json").read_text())["images"][:3]}
    (folder / "image_info_test-dev2017.json").write_text(json.dumps(listed))
    data = coco(tmp_path, "predict", test_split="test-dev2017", masks=masks, batch_size=3)
    for i, sample in zip((2, 5, 8), samples(*data.predict_dataloader()), strict=True):
        assert int(sample["image_id"]) == i
        assert torch.equal(sample["image"], literal(tmp_path / f"coco/test2017/{i}.jpg"))
        assert sample["boxes"].shape == (0, 4)
        assert not masks or sample["masks"].shape == (0, *sample["image"].shape[1:])
