"""FineGrained: official splits from the official layouts, small ones that the tests write."""

import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

from datamodules import FineGrained
from networks import InputError


def photograph(path, colour):
    """One of a single colour, by which it can be told."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), (colour, colour, colour)).save(path, quality=100)


def food101(root):
    for split, count in (("train", 3), ("test", 1)):
        listed = {}
        for c, name in enumerate(("ramen", "apple_pie")):  # labels go by the alphabet
            listed[name] = [f"{name}/{split}{i}" for i in range(count)]
            for entry in listed[name]:
                photograph(root / f"food-101/images/{entry}.jpg", 100 * (1 - c) + 20)
        (root / "food-101/meta").mkdir(exist_ok=True)
        (root / f"food-101/meta/{split}.json").write_text(json.dumps(listed))


def stanford_cars(root):
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    kind = np.dtype([("fname", object), ("class", object)])
    for split, place, count in (
        ("train", "devkit/cars_train_annos.mat", 3),
        ("test", "cars_test_annos_withlabels.mat", 1),
    ):
        rows = [(f"{c}{i}.jpg", c + 1) for c in range(2) for i in range(count)]
        for name, label in rows:
            photograph(folder / f"cars_{split}" / name, 100 * (label - 1) + 20)
        savemat(folder / place, {"annotations": np.array(rows, dtype=kind)})
    savemat(folder / "devkit/cars_meta.mat", {"class_names": np.array(["AM General", "Acura"], dtype=object)})


def fgvc_aircraft(root):
    data = root / "fgvc-aircraft-2013b/data"
    for split, count in (("trainval", 3), ("test", 1)):
        lines = [f"{split}{c}{i} {name}" for c, name in enumerate(("707-320", "A330 200")) for i in range(count)]
        for line in lines:
            photograph(data / f"images/{line.split()[0]}.jpg", 100 * ("A330" in line) + 20)
        (data / f"images_variant_{split}.txt").write_text("\n".join(lines) + "\n")
    (data / "variants.txt").write_text("707-320\nA330 200\n")


def flowers102(root, monkeypatch):
    """Numbers of images from 1: four to train and two to validate, which are trained on, two to test."""
    folder = root / "flowers-102"
    labels = np.array([1, 2, 1, 2, 1, 2, 1, 2])
    for i, label in enumerate(labels, 1):
        photograph(folder / f"jpg/image_{i:05d}.jpg", 100 * (int(label) - 1) + 20)
    savemat(folder / "imagelabels.mat", {"labels": labels})
    savemat(folder / "setid.mat", {"trnid": [1, 2, 3, 4], "valid": [5, 6], "tstid": [7, 8]})
    files = {"label": "imagelabels.mat", "setid": "setid.mat"}
    sums = {key: (name, hashlib.md5((folder / name).read_bytes()).hexdigest()) for key, name in files.items()}
    monkeypatch.setattr(datasets.Flowers102, "_file_dict", {**datasets.Flowers102._file_dict, **sums})


@pytest.fixture
def laid_out(tmp_path, monkeypatch):
    food101(tmp_path)
    stanford_cars(tmp_path)
    fgvc_aircraft(tmp_path)
    flowers102(tmp_path, monkeypatch)
    return tmp_path


def module(root, name, **options):
    return FineGrained(name, str(root), **{"batch_size": 2, "num_workers": 0, "check_integrity": False, **options})


@pytest.mark.parametrize(
    ("name", "classes"), [("food101", 101), ("stanford_cars", 196), ("fgvc_aircraft", 100), ("flowers102", 102)]
)
def test_official_splits(laid_out, name, classes):
    """Six photographs to train, validation's too, and two to test, each with the label of its colour."""
    data = module(laid_out, name, image_size=32)
    assert (data.num_classes, data.input_size) == (classes, (3, 32, 32))
    data.prepare_data()
    data.setup()
    assert (len(data.train_set), len(data.test_set)) == (6, 2)
    assert data.val_set is data.test_set
    training = (data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader())
    for images, labels in (*data.test_dataloader(), *training):
        grey = images.mean((1, 2, 3)) * 0.226 + 0.449
        torch.testing.assert_close(grey, (100 * labels + 20) / 255, atol=0.02, rtol=0)
    assert len(data.class_names) in (2, 102)


def test_held_out_photographs_validate_in_evaluations_form(laid_out):
    data = module(laid_out, "food101", held_out=0)
    data.num_classes = 2
    data.held_out = 2
    data.setup()
    assert (len(data.train_set), len(data.val_set), len(data.test_set)) == (4, 2, 2)
    assert sorted(data.val_set.labels.tolist()) == [0, 1]
    assert {*data.val_set.names.tolist()}.isdisjoint(data.test_set.names.tolist())
    assert not {*data.train_set.names.tolist()} & {*data.val_set.names.tolist()}
    assert data.val_set.transform is data.test_set.transform is not data.train_set.transform


def test_published_sizes_are_checked(laid_out):
    with pytest.raises(InputError, match=r"food101 in .* lists 6 images to train, not 75750: complete it"):
        module(laid_out, "food101", check_integrity=True).setup()


def test_what_cannot_be_had(tmp_path, monkeypatch):
    def unreachable(*args, **options):
        raise RuntimeError("no network\nat all")

    monkeypatch.setattr(datasets.Food101, "_download", unreachable)
    with pytest.raises(InputError, match=r"food101 is not in .* \(no network\): fetch and unpack it there, or say"):
        module(tmp_path, "food101").prepare_data()
    with pytest.raises(InputError, match=r"stanford_cars is not in .*: its public address is gone"):
        module(tmp_path, "stanford_cars").prepare_data()
    with pytest.raises(InputError, match=r"data\.name is one of food101"):
        module(tmp_path, "birds")
    food101(tmp_path)
    with pytest.raises(InputError, match=r"data\.held_out=1 of 6 images"):
        module(tmp_path, "food101", held_out=1).setup()
