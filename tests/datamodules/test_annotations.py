"""Annotations in COCO's format: what is kept, masks as pycocotools makes them, and what is refused."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as reference
from pycocotools.coco import COCO

from datamodules import annotations
from networks import InputError

DATA = Path(os.environ.get("FRUGAL_DATA", "nowhere")).expanduser() / "coco"
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools
real = pytest.mark.skipif(not DATA.is_dir(), reason="no COCO in FRUGAL_DATA")
CATEGORIES = {1, 2, 90}
SQUARE = [[2, 3, 12, 3, 12, 13, 2, 13]]
WHERE = {3: (40, 60), 5: (50, 30), 7: (30, 45), 9: (20, 20)}  # height and width by id


def entry(id, image_id, category, box, **others):
    return {"id": id, "image_id": image_id, "category_id": category, "bbox": box, "segmentation": SQUARE, **others}


def made():
    """Four images, not by id: 3 and 5 have objects to train on, 7 has none, 9 only such as training leaves out."""
    images = [{"id": i, "file_name": f"{i}.jpg", "height": WHERE[i][0], "width": WHERE[i][1]} for i in (7, 3, 9, 5)]
    crowd = {"iscrowd": 1, "segmentation": {"counts": [100, 50, 250], "size": [20, 20]}}
    objects = [
        entry(1, 5, 90, [10, 20, 8, 9.5], area=70.25, iscrowd=0, segmentation=[*SQUARE, [20, 20, 29, 20, 25, 40]]),
        entry(2, 3, 1, [-4, 35, 20, 10.5], area=88, iscrowd=0),  # partly outside
        entry(3, 3, 2, [0, 0, 60, 40], **{**crowd, "segmentation": {"counts": [7, 2000, 393], "size": [40, 60]}}),
        entry(4, 3, 1, [60, 5, 10, 10], area=9),  # outside, with the border in common
        entry(5, 5, 1, [1, 2, 0, 3]),
        entry(6, 9, 1, [1, 2, 3, 4], area=12, **crowd),
        entry(7, 9, 1, [1, 2, 3, -4]),
        entry(8, 3, 2, [50, 1.5, 10, 38.5], area=300),
    ]
    return {"images": images, "annotations": objects}


def write(root, content=None):
    """Files as `read` wants them; photographs are empty, for it only asks whether they are there."""
    content = made() if content is None else content
    path, folder = root / "coco/annotations/instances_made.json", root / "coco/photographs"
    path.parent.mkdir(parents=True)
    folder.mkdir()
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    for image_id in WHERE:
        (folder / f"{image_id}.jpg").touch()
    return path, folder


def read(root, content=None, training=False, masks=False, limit=None):
    return annotations.read(*write(root, content), CATEGORIES, training, masks, limit)


def refusal(root, content, **options):
    with pytest.raises(InputError) as caught:
        read(root, content, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_evaluation_has_all_as_in_the_file(tmp_path, caplog):
    with caplog.at_level("INFO"):
        given = read(tmp_path)
    assert caplog.messages == ["instances_made.json: 4 images, 8 objects"]
    assert len(given) == 4
    assert given.names.tolist() == [b"3.jpg", b"5.jpg", b"7.jpg", b"9.jpg"]
    assert given.image_ids.tolist() == list(WHERE)
    assert given.sizes.tolist() == [list(size) for size in WHERE.values()]
    assert given.starts.tolist() == [0, 4, 6, 6, 8]
    assert [given.objects(i) for i in range(4)] == [slice(0, 4), slice(4, 6), slice(6, 6), slice(6, 8)]
    assert given.boxes.tolist() == [
        [-4, 35, 16, 45.5], [0, 0, 60, 40], [60, 5, 70, 15], [50, 1.5, 60, 40],
        [10, 20, 18, 29.5], [1, 2, 1, 5],
        [1, 2, 4, 6], [1, 2, 4, -2],
    ]  # fmt: skip
    assert given.labels.tolist() == [1, 2, 1, 2, 90, 1, 1, 1]
    assert given.areas.tolist() == [88, 0, 9, 300, 70.25, 0, 12, 0]
    assert given.crowds.tolist() == [0, 1, 0, 0, 0, 0, 1, 0]


def test_training_leaves_out_and_counts_what_it_cannot_use(tmp_path, caplog):
    with caplog.at_level("INFO"):
        given = read(tmp_path, training=True)
    assert caplog.messages == [
        "instances_made.json: 2 images, 3 objects; left out: 1 boxes outside of their image, 2 boxes without area, "
        "2 crowd regions, 2 images without objects"
    ]
    assert given.image_ids.tolist() == [3, 5]
    assert given.starts.tolist() == [0, 2, 3]
    assert given.boxes.tolist() == [[0, 35, 16, 40], [50, 1.5, 60, 40], [10, 20, 18, 29.5]]
    assert given.labels.tolist() == [1, 2, 90]
    assert not given.crowds.any()


def test_nothing_is_said_to_be_left_out_where_nothing_is(tmp_path, caplog):
    with caplog.at_level("INFO"):
        read(tmp_path, {"images": made()["images"][1:2], "annotations": made()["annotations"][7:]}, training=True)
    assert caplog.messages == ["instances_made.json: 1 images, 1 objects"]


def test_arrays_have_the_types_that_they_are_said_to_have(tmp_path):
    for count, content in ((8, made()), (0, {"images": made()["images"]})):
        given = read(tmp_path / str(count), content)
        kinds = {"image_ids": "int64", "sizes": "int64", "starts": "int64", "labels": "int64", "crowds": "int64"}
        kinds |= {"boxes": "float32", "areas": "float32", "outlines": "uint8", "outline_starts": "int64"}
        assert {name: str(getattr(given, name).dtype) for name in kinds} == kinds
        assert (given.boxes.shape, given.labels.shape, given.areas.shape) == ((count, 4), (count,), (count,))
        assert given.starts[-1] == count


def test_a_limit_takes_the_first_images_by_id_that_are_used(tmp_path, caplog):
    content = made()
    content["annotations"] = [each for each in content["annotations"] if each["image_id"] != 3]
    options = [(False, 1, [3]), (False, 3, [3, 5, 7]), (False, 9, [3, 5, 7, 9]), (True, 1, [5]), (True, 9, [5])]
    for i, (training, limit, ids) in enumerate(options):
        assert read(tmp_path / str(i), content, training, limit=limit).image_ids.tolist() == ids
    path, folder = write(tmp_path / "part")
    (folder / "5.jpg").unlink()  # not asked for
    caplog.clear()
    with caplog.at_level("INFO"):
        given = annotations.read(path, folder, CATEGORIES, False, True, 1)
    assert caplog.messages == ["instances_made.json: 1 images, 4 objects"]
    assert given.masks(0).shape == (4, 40, 60)


def test_a_rectangle_is_the_pixels_in_it(tmp_path):
    given = read(tmp_path, masks=True)
    expected = np.zeros((40, 60), np.uint8)
    expected[3:13, 2:12] = 1
    assert np.array_equal(given.masks(0)[0], expected)
    crowd = np.zeros(40 * 60, np.uint8)
    crowd[7:2007] = 1
    assert np.array_equal(given.masks(0)[1], crowd.reshape(60, 40).T)  # by columns
    assert given.masks(0).dtype == given.masks(2).dtype == np.uint8
    assert given.masks(2).shape == (0, 30, 45)


def test_masks_to_train_are_of_the_objects_that_are_kept(tmp_path):
    given = read(tmp_path, training=True, masks=True)
    part = reference.decode(reference.frPyObjects([[20, 20, 29, 20, 25, 40]], 50, 30))[:, :, 0]
    assert part.any()
    square = np.zeros((50, 30), np.uint8)
    square[3:13, 2:12] = 1
    assert np.array_equal(given.masks(1), (square | part)[None])
    assert given.masks(0).shape == (2, 40, 60)


def runs(bitmap):
    """Lengths of runs of 0 and of 1 by turns, by columns, literally."""
    lengths, value = [0], 0
    for pixel in bitmap.T.ravel().tolist():
        if pixel != value:
            lengths.append(0)
            value = pixel
        lengths[-1] += 1
    return lengths


def test_polygons_and_run_lengths_equal_pycocotools(tmp_path):
    numbers = np.random.default_rng(0)
    height, width = 37, 53
    objects, expected = [], []
    for i in range(60):
        if i % 3 == 0:  # one to four parts, that may lie over one another and beyond the border
            corners = numbers.integers(3, 12, numbers.integers(1, 5))
            outline = [(numbers.random((n, 2)) * [70, 50] - 8).round(2).ravel().tolist() for n in corners]
            expected.append(reference.decode(reference.merge(reference.frPyObjects(outline, height, width))))
        else:
            bitmap = (numbers.random((height, width)) < numbers.random()).astype(np.uint8)
            counts = reference.encode(np.asfortranarray(bitmap))["counts"].decode() if i % 3 == 1 else runs(bitmap)
            outline = {"size": [height, width], "counts": counts}
            expected.append(bitmap)
        objects.append(entry(i, 1, 1, [0, 0, 5, 5], segmentation=outline, iscrowd=int(i % 3 > 0)))
    images = [{"id": 1, "file_name": "3.jpg", "height": height, "width": width}]
    given = read(tmp_path, {"images": images, "annotations": objects}, masks=True)
    assert np.array_equal(given.masks(0), np.stack(expected))


@real
@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_real_annotations_are_those_of_pycocotools(split):
    path = DATA / f"annotations/instances_{split}.json"
    api = COCO(path)
    given = annotations.read(path, DATA / split, set(api.getCatIds()), False, True, 80)
    assert given.image_ids.tolist() == sorted(api.getImgIds())[:80]
    assert given.crowds.sum() > 0
    for i, image_id in enumerate(given.image_ids.tolist()):
        objects, each = given.objects(i), api.loadAnns(api.getAnnIds(image_id))
        assert given.sizes[i].tolist() == [api.imgs[image_id][name] for name in ("height", "width")]
        corners = [[x, y, x + width, y + height] for x, y, width, height in (one["bbox"] for one in each)]
        assert np.array_equal(given.boxes[objects], np.array(corners, np.float32))
        assert np.array_equal(given.areas[objects], np.array([one["area"] for one in each], np.float32))
        assert given.labels[objects].tolist() == [one["category_id"] for one in each]
        assert given.crowds[objects].tolist() == [one["iscrowd"] for one in each]
        assert np.array_equal(given.masks(i), np.stack([api.annToMask(one) for one in each]))


@real
def test_real_training_leaves_out_crowds(caplog):
    path = DATA / "annotations/instances_train2017.json"
    api = COCO(path)
    kept = [each for each in api.anns.values() if not each["iscrowd"] and min(each["bbox"][2:]) > 0]
    with caplog.at_level("INFO"):
        given = annotations.read(path, DATA / "train2017", set(api.getCatIds()), True, False, None)
    assert f"{sum(each['iscrowd'] for each in api.anns.values())} crowd regions" in caplog.messages[0]
    assert given.image_ids.tolist() == sorted({each["image_id"] for each in kept})
    assert len(given.boxes) == len(kept)
    assert (given.boxes[:, 2:] > given.boxes[:, :2]).all()
    assert (given.boxes >= 0).all()
    assert (given.boxes[:, 2:] <= np.repeat(given.sizes[:, ::-1], np.diff(given.starts), axis=0)).all()


def test_no_annotations(tmp_path):
    path = tmp_path / "coco/annotations/instances_val2017.json"
    with pytest.raises(InputError) as caught:
        annotations.read(path, tmp_path / "coco/val2017", CATEGORIES, False, False, None)
    assert str(caught.value) == (
        f"no COCO annotations at {path}: fetch annotations_trainval2017.zip, train2017.zip and val2017.zip from "
        f"cocodataset.org and unpack them into {tmp_path / 'coco'}, or say with --data.root or FRUGAL_DATA where coco/ "
        "is"
    )


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(made())[:-100],
        "<html>404</html>",
        [{"image_id": 3, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}],  # a file of results
        {"annotations": []},
        "null",
        {"images": []},
        {"images": ["3.jpg", "5.jpg"]},
        {"images": [{"file_name": "3.jpg"}]},
        {"images": [{"id": 3, "file_name": "3.jpg"}]},
        {"images": made()["images"], "annotations": [3]},
    ],
    ids=lambda content: str(content)[-40:],
)
def test_json_that_is_cut_or_something_else(tmp_path, content):
    message = refusal(tmp_path, content)
    assert message.startswith(str(tmp_path / "coco/annotations/instances_made.json"))
    assert "not complete" in message or "unpack it again" in message


def test_missing_photographs_are_counted_and_one_is_named(tmp_path):
    path, folder = write(tmp_path)
    for name in ("5.jpg", "9.jpg"):
        (folder / name).unlink()
    for training, said in ((False, "2 of 4 photographs"), (True, "1 of 2 photographs")):
        with pytest.raises(InputError) as caught:
            annotations.read(path, folder, CATEGORIES, training, False, None)
        assert str(caught.value) == (
            f"{said} are not in {folder}, such as 5.jpg: unpack photographs.zip from cocodataset.org there, again if "
            "it is not complete"
        )
    with pytest.raises(InputError, match=r"4 of 4 photographs are not in .*/nowhere, such as 3\.jpg: unpack nowhere\."):
        annotations.read(path, tmp_path / "nowhere", CATEGORIES, False, False, None)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"image_id": 4}, " is of image 4, which the file does not list"),
        ({"category_id": 3}, " has category 3, which is none of COCO's 80 categories"),
        ({"category_id": None}, " has category None, which is none of COCO's 80 categories"),
        ({"bbox": None}, " has the box None, not x, y, width, height"),
        ({"bbox": [1, 2, 3]}, " has the box [1, 2, 3], not x, y, width, height"),
        ({"bbox": [1, 2, float("nan"), 4]}, " has the box [1, 2, nan, 4], not x, y, width, height"),
        ({"bbox": ["a", 2, 3, 4]}, " has the box ['a', 2, 3, 4], not x, y, width, height"),
    ],
    ids=lambda each: str(each)[:40],
)
def test_an_object_that_cannot_be(tmp_path, training, changed, said):
    content = made()
    content["annotations"][1].update(changed)
    path = tmp_path / "coco/annotations/instances_made.json"
    assert refusal(tmp_path, content, training=training) == f"{path}: annotation 2{said}"


@pytest.mark.parametrize("without", [None, [], "absent"])
def test_masks_want_segmentations(tmp_path, without):
    content = made()
    content["annotations"][1]["segmentation"] = without
    if without == "absent":
        del content["annotations"][1]["segmentation"]
    assert len(read(tmp_path / "boxes", content).boxes) == 8
    message = refusal(tmp_path / "masks", content, masks=True)
    assert "instances_made.json: annotation 2 has no segmentation: without masks, give --data.masks false" in message
