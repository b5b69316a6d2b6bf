"""COCO: a small one in its layout, augmentation of pixels, boxes and masks together; and the real one's sample."""

import json
import os
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
CATEGORIES = (1, 13, 90)


def objects(sizes):
    """In each image three of two triangles, that may pass the border, and a crowd."""
    numbers, found = np.random.default_rng(1), []
    for i, (h, w) in ((i, size) for i, size in sizes.items() if i != 5):
        for _ in range(3):
            points = numbers.integers(-16, np.array([4 * w, 4 * h]) + 16, (6, 2)) / 4  # which float32 has exactly
            outline = points.reshape(2, 6).tolist()
            box = [*points.min(0).tolist(), *np.ptp(points, 0).tolist()]
            found.append({"image_id": i, "bbox": box, "segmentation": outline, "iscrowd": 0})
        runs = {"size": [h, w], "counts": [h, 5 * h, h * w - 6 * h]}
        found.append({"image_id": i, "bbox": [1, 0, 5, h], "segmentation": runs, "iscrowd": 1})
    return [{**each, "id": n, "area": 1.5 * n, "category_id": CATEGORIES[n % 3]} for n, each in enumerate(found)]


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


def literal(path):
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)


def one(dataset, index, epoch=0):
    images, targets = dataset[Draw(0, epoch, np.array([index]))]
    return images[0], targets[0]


def equal(samples, others):
    """Whether images and all tensors of targets are the same."""
    assert len(samples) == len(others)
    return all(
        torch.equal(image, other) and a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        for (image, a), (other, b) in zip(samples, others, strict=True)
    )


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
    monkeypatch.delenv("FRUGAL_DATA")
    assert COCO().folder == Path("data/coco")
    assert COCO("~/here").folder == Path.home() / "here/coco"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, r"data\.image_size=0 and data\.limit=None must be positive"),
        ({"image_size": (320, 0)}, r"data\.image_size=\(320, 0\) and"),
        ({"limit": 0}, r"data\.image_size=800 and data\.limit=0 must be positive"),
        ({"image_size": (320, 320), "short_sides": (320, 640)}, r"data\.short_sides=\[320, 640\] go with one data\.im"),
        ({"short_sides": (320, 0)}, r"data\.short_sides="),
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
    path = tmp_path / "coco/annotations/instances_val2017.json"
    path.write_text(path.read_text().replace('"category_id": 90', '"category_id": 12', 1))
    with pytest.raises(InputError, match=rf"{path}: annotation \d+ has category 12, which is none of COCO's 80 cat"):
        coco(tmp_path, "validate")
    with pytest.raises(InputError, match=r"image_info_test-dev2017\.json") as caught:
        coco(tmp_path, "predict", test_split="test-dev2017")
    assert "annotations_trainval2017.zip" not in str(caught.value)  # it is in another archive


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_photograph_that_cannot_be_right_is_named_in_one_line(tmp_path, num_workers):
    data = coco(write(tmp_path), num_workers=num_workers)
    path = tmp_path / "coco/val2017/9.jpg"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError) as caught:
        list(data.val_dataloader())
    assert str(caught.value).startswith(f"{path} cannot be decoded (")
    assert str(caught.value).endswith("): unpack it again from the data set's archive")
    assert "\n" not in str(caught.value)
    Image.new("RGB", (48, 49)).save(path)
    with pytest.raises(InputError) as caught:
        list(data.val_dataloader())
    said = "has 49x48 pixels, and its annotations are for 48x48: unpack the archive again"
    assert str(caught.value) == f"{path} {said}"


@pytest.mark.parametrize("masks", [False, True])
def test_evaluation_gives_each_image_once_as_it_is(tmp_path, masks):
    data = coco(write(tmp_path), "validate", masks=masks, batch_size=3)
    batches = list(data.val_dataloader())
    assert [len(images) for images, _ in batches] == [3, 2]
    samples = [sample for images, targets in batches for sample in zip(images, targets, strict=True)]
    for place, (i, sample) in enumerate(zip(sorted(SIZES), samples, strict=True)):
        own = [each for each in objects(SIZES) if each["image_id"] == i]
        corners = [[x, y, x + w, y + h] for x, y, w, h in (each["bbox"] for each in own)]
        expected = {
            "boxes": torch.tensor(corners, dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor([each["category_id"] for each in own], dtype=torch.int64),
            "area": torch.tensor([each["area"] for each in own], dtype=torch.float32),
            "iscrowd": torch.tensor([each["iscrowd"] for each in own], dtype=torch.int64),
            "image_id": torch.tensor(i),
        }
        if masks:
            expected["masks"] = torch.from_numpy(data.val_set.given.masks(place))
            assert expected["masks"].shape == (len(own), *SIZES[i])
        assert equal([sample], [(literal(tmp_path / f"coco/val2017/{i}.jpg"), expected)])
        assert {type(tensor) for tensor in (sample[0], *sample[1].values())} == {torch.Tensor}
        assert {name: tensor.dtype for name, tensor in sample[1].items()} == {
            name: tensor.dtype for name, tensor in expected.items()
        }
    assert data.val_set[Draw(0, 0, np.arange(0))] == ([], [])  # of a process whose share is empty


def test_training_has_one_size(tmp_path):
    for images, targets in coco(write(tmp_path), "fit", image_size=(24, 36)).train_dataloader():
        assert (images.shape, images.dtype) == ((2, 3, 24, 36), torch.uint8)
        for target in targets:
            assert target.keys() == {"boxes", "labels", "masks", "image_id"}
            assert target["masks"].shape == (len(target["boxes"]), 24, 36)
            assert int(target["image_id"]) in {2, 8, 9, 11}


@pytest.mark.parametrize("short_sides", [None, (16, 20, 24)])
def test_training_has_a_short_side_and_a_limit_of_the_long_one(tmp_path, short_sides):
    """The limit that goes with 24 pixels is 40: 30x75 becomes 16x40."""
    dataset = coco(write(tmp_path), "fit", image_size=24, short_sides=short_sides).train_set
    sizes = {i: set() for i in (2, 8, 9, 11)}
    for epoch in range(30):
        images, targets = dataset[Draw(0, epoch, np.arange(4))]
        for image, target in zip(images, targets, strict=True):
            assert target["masks"].shape[1:] == image.shape[1:]
            sizes[int(target["image_id"])].add(tuple(image.shape[1:]))
    usual = [(side, side * 3 // 2) for side in short_sides or (24,)]
    tall, square = {(long, short) for short, long in usual}, {(short, short) for short, _ in usual}
    assert sizes == {2: tall, 8: set(usual), 9: square, 11: {(16, 40)}}
    assert isinstance(images, list)
    assert isinstance(dataset[Draw(0, 0, np.array([1]))][0], torch.Tensor)  # of one size, a stack


def test_flips_mirror_everything(tmp_path):
    write(tmp_path, ALIKE)
    plain, data = (coco(tmp_path, "fit", image_size=(48, 64), augmentation=name).train_set for name in ("none", "flip"))
    flips = []
    for epoch, index in ((epoch, index) for epoch in range(30) for index in range(6)):
        image, target = one(plain, index, epoch)
        assert torch.equal(image, literal(plain.given.folder / os.fsdecode(plain.given.names[index])))
        assert np.array_equal(target["boxes"], plain.given.boxes[plain.given.objects(index)])
        ours = one(data, index, epoch)
        flips.append(not torch.equal(ours[0], image))
        if flips[-1]:
            x1, y1, x2, y2 = target["boxes"].unbind(1)
            boxes = torch.stack([64 - x2, y1, 64 - x1, y2], dim=1)
            image, target = image.flip(-1), {**target, "boxes": boxes, "masks": target["masks"].flip(-1)}
        assert equal([ours], [(image, target)])
    assert np.mean(flips) == pytest.approx(0.5, abs=5 * 0.5 / 180**0.5)


@pytest.mark.parametrize("size", [(640, 301), (333, 304), (427, 640)])
def test_objects_at_the_border_are_kept_when_resized(tmp_path, size):
    """A side times the ratio of sizes, in float32, may be more than the new side by a rounding error."""
    height, width = size
    given = [{**objects({1: size})[0], "bbox": box} for box in ([0, 0, width, height], [9, 9, width - 9, height - 9])]
    write(tmp_path, {1: size}, annotations=given)
    for image_size in (800, 320, (320, 320)):
        image, target = one(coco(tmp_path, "fit", image_size=image_size, masks=False).train_set, 0)
        assert len(target["boxes"]) == 2
        assert (target["boxes"][:, 2:] <= torch.tensor(image.shape[:0:-1])).all()


def test_ssd_moves_pixels_boxes_and_masks_together(tmp_path):
    """A red rectangle on blue: distorted as they are, colours tell it from the rest and from the filling."""
    outline = [[120, 100, 320, 100, 320, 260, 120, 260]]
    given = {**objects({1: (400, 400)})[0], "bbox": [120, 100, 200, 160], "segmentation": outline}
    write(tmp_path, {1: (400, 400)}, annotations=[given])
    pixels = np.full((400, 400, 3), (0, 0, 255), np.uint8)
    pixels[100:260, 120:320] = (255, 0, 0)
    Image.fromarray(pixels).save(tmp_path / "coco/train2017/1.jpg", "PNG")  # without loss, whatever it is called
    dataset = coco(tmp_path, "fit", image_size=(120, 120), augmentation="ssd").train_set
    found = []
    for epoch in range(60):
        image, target = one(dataset, 0, epoch)
        (box,), (mask,) = target["boxes"], target["masks"]
        torch.testing.assert_close(tight(mask), box, atol=1, rtol=0)
        assert mask.sum() == (tight(mask)[2:] - tight(mask)[:2]).prod()
        x, y = ((box[:2] + box[2:]) / 2).int().tolist()
        alike = ((image.int() - image[:, y, x, None, None].int()).abs() <= 16).all(0)
        torch.testing.assert_close(tight(alike), box, atol=2, rtol=0)
        found.append((box[2] - box[0]).item())
    assert len(set(found)) > 30
    assert min(found) < 30  # zoomed out
    assert max(found) > 90  # cropped
    assert found.count(60) > 1  # as it was


@pytest.mark.skipif(not (DATA / "coco").is_dir(), reason="no COCO in FRUGAL_DATA")
def test_ssd_on_real_photographs():
    """Objects have the size that they had, or less: crops are not magnified."""
    dataset = coco(DATA, "fit", image_size=(128, 128), augmentation="ssd", limit=40).train_set
    out = []
    for index in range(40):
        image, target = one(dataset, index)
        boxes, masks, labels = target["boxes"], target["masks"], target["labels"]
        assert image.shape == (3, 128, 128)
        assert len(boxes) == len(masks) == len(labels)
        assert (boxes >= 0).all()
        assert (boxes <= 128).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert Counter(labels.tolist()) <= Counter(dataset.given.labels[dataset.given.objects(index)].tolist())
        for box, mask in ((box, tight(mask)) for box, mask in zip(boxes, masks, strict=True) if mask.any()):
            out.append(torch.cat([box[:2] - mask[:2], mask[2:] - box[2:]]).max().item())
    print(len(out), sorted(out)[-20:])


@pytest.mark.parametrize("augmentation", ["flip", "ssd"])
def test_a_sample_is_a_function_of_seed_epoch_and_index(tmp_path, augmentation):
    write(tmp_path, ALIKE)
    dataset = coco(tmp_path, "fit", image_size=48, short_sides=(32, 40, 48), augmentation=augmentation).train_set
    alone = [one(dataset, index, 5) for index in range(6)]
    for indices in ([0, 1, 2, 3, 4, 5], [4, 1], [3, 3, 0]):
        torch.rand(len(indices))
        before = torch.get_rng_state()
        images, targets = dataset[Draw(0, 5, np.array(indices))]
        assert torch.equal(torch.get_rng_state(), before)
        assert equal(list(zip(images, targets, strict=True)), [alone[index] for index in indices])
    for seed, epoch in ((0, 6), (1, 5)):
        images, targets = dataset[Draw(seed, epoch, np.arange(6))]
        assert not equal(list(zip(images, targets, strict=True)), alone)
    (tmp_path / "coco/train2017/7.jpg").write_bytes(b"")
    with pytest.raises(InputError):
        dataset[Draw(0, 5, np.arange(6))]
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_change_nothing(tmp_path):
    write(tmp_path)
    options = {"image_size": 32, "short_sides": (24, 32), "augmentation": "ssd"}
    loaders = [coco(tmp_path, "fit", num_workers=count, **options).train_dataloader() for count in (0, 2)]
    epochs = [[[sample for batch in loader for sample in zip(*batch, strict=True)] for loader in loaders] for _ in "12"]
    for first, second in epochs:
        assert len(first) == 4
        assert equal(first, second)
    by_image = [sorted(ours, key=lambda sample: sample[1]["image_id"]) for ours, _ in epochs]
    assert not equal(*by_image)


def test_each_stage_reads_what_it_needs_and_once(tmp_path):
    write(tmp_path, splits=("val2017",))
    for stage in ("validate", "test", "predict"):
        coco(tmp_path, stage)
    with pytest.raises(InputError, match=r"instances_train2017\.json"):
        coco(tmp_path, "fit")
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
    images = json.loads((folder / "instances_test2017.json").read_text())["images"][:3]
    (folder / "image_info_test-dev2017.json").write_text(json.dumps({"images": images}))
    loader = coco(tmp_path, "predict", test_split="test-dev2017", masks=masks).predict_dataloader()
    samples = [sample for batch in loader for sample in zip(*batch, strict=True)]
    assert [int(target["image_id"]) for _, target in samples] == [2, 5, 8]
    for image, target in samples:
        assert torch.equal(image, literal(tmp_path / f"coco/test2017/{target['image_id']}.jpg"))
        assert target["boxes"].shape == (0, 4)
        assert not masks or target["masks"].shape == (0, *image.shape[1:])
