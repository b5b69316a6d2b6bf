"""Data that are not there, incomplete, damaged, dangerous or of another kind. All of them are made here."""

import io
import json
import pickle

import numpy as np
import pytest
import soundfile
from PIL import Image

SHORT = " --data.num_workers 0 --trainer.max_epochs 1 --trainer.enable_progress_bar false"
PART = " --data.batch_size 4 --data.check_integrity false" + SHORT
CLASSIFIER = "fit --model Classifier --model.network conv2 --model.network_args.width 0.0625 --data "
CIFAR = CLASSIFIER + "CIFAR" + PART
IMAGENET = CLASSIFIER + "ImageNet --data.image_size 8" + PART
ESC50 = CLASSIFIER.replace("conv2", "my_own.Net") + "ESC50 --data.esc10 true --data.sample_rate_hz 1000" + PART
DETECTOR = "fit --model Detector --model.network fasterrcnn --model.network_args.backbone mobilenetv3_small_050 --data "
COCO = DETECTOR + "COCO --data.image_size 64 --data.batch_size 1" + SHORT
PRETRAINED = "fit --model Classifier --model.network resnet10t --model.network_args.pretrained true --data "
WHOLE = " --data.check_integrity true"
BATCHES, SYNSETS = "data/cifar-10-batches-py", ("n01440764", "n01443537")
TRAIN = "data/coco/annotations/instances_train2017.json"
NET = """\
from torch import nn
class Net(nn.Sequential):
    def __init__(self, width, num_classes):
        super().__init__(nn.Flatten(), nn.Linear(5000, num_classes))
"""


class Evil:
    def __reduce__(self):
        return open, ("executed", "w")


def jpeg(width, height):
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def sound(rate):
    file = io.BytesIO()
    soundfile.write(file, np.zeros(5 * rate, np.int16), rate, format="WAV")
    return file.getvalue()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def batch(images=20, pixels=3072, label=3):
    return pickle.dumps({b"data": np.zeros((images, pixels), np.uint8), b"labels": [label] * images})


def cifar(here):
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        write(here / BATCHES / name, batch())
    write(here / BATCHES / "batches.meta", pickle.dumps({b"label_names": [b"a thing"] * 10}))


def imagenet(here):
    for path in (f"{split}/{synset}/{i}.JPEG" for split in ("train", "val") for synset in SYNSETS for i in range(2)):
        write(here / "data/imagenet" / path, jpeg(12, 12))


def esc50(here):
    rows = ["filename,fold,target"] + [f"{fold}.wav,{fold},0" for fold in range(1, 6)]
    write(here / "data/ESC-50-master/meta/esc50.csv", "\n".join(rows))
    for fold in range(1, 6):
        write(here / f"data/ESC-50-master/audio/{fold}.wav", sound(44_100))


def coco(here, **changes):
    each = {"id": 7, "image_id": 1, "category_id": 3, "bbox": [5, 5, 20, 20], "area": 400, "iscrowd": 0, **changes}
    image = {"id": 1, "file_name": "1.jpg", "height": 40, "width": 60}
    for split in ("train2017", "val2017"):
        write(here / "data/coco" / split / "1.jpg", jpeg(60, 40))
        content = {"images": [image], "annotations": [{k: v for k, v in each.items() if v is not None}]}
        write(here / f"data/coco/annotations/instances_{split}.json", json.dumps(content))


def nothing(here):
    """No data at all."""


# (made, what of it is changed, command, words of the line); a change is (path, content), or (path, None) to remove it
CASES = {
    "cifar absent": (nothing, (), CIFAR, "CIFAR-10 is not in data/cifar-10-batches-py", "--data.root or FRUGAL_DATA"),
    "cifar cut": (cifar, (f"{BATCHES}/data_batch_3", batch()[:900]), CIFAR, "data_batch_3 is cut short", "remove the"),
    "cifar empty": (cifar, (f"{BATCHES}/data_batch_3", b""), CIFAR, "data_batch_3 is cut short", "remove the folder"),
    "cifar code": (cifar, (f"{BATCHES}/data_batch_3", pickle.dumps(Evil())), CIFAR, "data_batch_3", "io.open"),
    "cifar label": (
        cifar,
        (f"{BATCHES}/test_batch", batch(label=10)),
        CIFAR,
        "test_batch has label 10, outside 0 to 9",
    ),
    "cifar pixels": (cifar, (f"{BATCHES}/test_batch", batch(pixels=9)), CIFAR, "test_batch does not hold 3072 bytes"),
    "cifar changed": (cifar, (), CIFAR + WHOLE, "MD5 differs", "--data.check_integ"),
    "cifar held out": (cifar, (), CIFAR + " --data.held_out 99", "data.held_out=99 of 100 images leaves too few"),
    "cifar classes": (cifar, (), CIFAR + " --data.classes 20", "data.classes: Expected a Literal[10, 100]"),
    "imagenet absent": (nothing, (), IMAGENET, "no ImageNet in data/imagenet/val", "--data.root or FRUGAL_DATA"),
    "imagenet foreign": (
        imagenet,
        ("data/imagenet/train/cats/1.JPEG", "x"),
        IMAGENET,
        "train/cats is not named by one",
    ),
    "imagenet part": (imagenet, (), IMAGENET + WHOLE, "2 classes and 4 images, not"),
    "imagenet augmentation": (
        imagenet,
        (),
        IMAGENET + " --data.augmentation.nope 1",
        "augmentation has nope; it takes",
    ),
    "esc50 clip gone": (esc50, ("data/ESC-50-master/audio/2.wav", None), ESC50, "1 clips are listed", "2.wav: remove"),
    "esc50 no sound": (esc50, ("data/ESC-50-master/audio/2.wav", "hello"), ESC50, "2.wav cannot be read", "restore it"),
    "esc50 rate": (
        esc50,
        ("data/ESC-50-master/audio/2.wav", sound(8000)),
        ESC50,
        "40000 samples of 8000 Hz",
        "restore",
    ),
    "esc50 list": (
        esc50,
        ("data/ESC-50-master/meta/esc50.csv", "a,b\n1,2"),
        ESC50,
        "esc50.csv is not there or not ESC",
    ),
    "esc50 part": (esc50, (), ESC50 + WHOLE, "lists 1 clips of dog in fold 1, not 8"),
    "esc50 fold": (esc50, (), ESC50 + " --data.test_fold 6", "data.test_fold=6: the folds are 1 to 5"),
    "sound for images": (esc50, (), ESC50.replace("my_own.Net", "conv2"), "does not accept an input of 1x5000"),
    "coco absent": (nothing, (), COCO, f"no COCO annotations at {TRAIN}", "--data.root or FRUGAL_DATA"),
    "coco no JSON": (
        coco,
        (TRAIN, "hello"),
        COCO,
        f"{TRAIN} is no file of COCO annotations, or cut short",
        "unpack it",
    ),
    "coco image gone": (
        coco,
        ("data/coco/train2017/1.jpg", None),
        COCO,
        "1 of 1 photographs are not in",
        "unpack train",
    ),
    "coco bad category": (
        lambda here: coco(here, category_id=12),
        (),
        COCO,
        "has category 12, which is none of COCO's",
    ),
    "coco no masks": (coco, (), COCO.replace("fasterrcnn", "maskrcnn"), "data come without: give --data.masks true"),
    "coco for classes": (coco, (), CLASSIFIER + "COCO" + SHORT, "Classifier learns labels, and COCO gives objects"),
}


@pytest.fixture
def offline(here, monkeypatch):
    """No way to the world, and a network of the user's."""

    def unreachable(*arguments, **options):
        raise OSError("unreachable")

    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", unreachable)
    (here / "my_own.py").write_text(NET)


@pytest.mark.parametrize("name", CASES)
def test_data_that_cannot_be_used(name, here, offline, refuse):
    make, change, command, *words = CASES[name]
    make(here)
    if change:
        path, content = change
        (here / path).unlink() if content is None else write(here / path, content)
    status = 2 if "Expected a Literal" in words[-1] else 1
    refuse(command, status, *words, begun="esc50" in name or "sound" in name)  # which resamples before
    assert not (here / "executed").exists()


DAMAGED = {
    "cut": (imagenet, "data/imagenet/train/n01440764/1.JPEG", jpeg(12, 12)[:300], IMAGENET, "--data.skip_corrupt true"),
    "empty": (imagenet, "data/imagenet/train/n01440764/1.JPEG", b"", IMAGENET, "--data.skip_corrupt true"),
    "text": (imagenet, "data/imagenet/val/n01440764/1.JPEG", "hello", IMAGENET, "unpack it again from the data set's"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_photographs_that_are_found_to_be_damaged_when_the_run_has_begun(name, here, refuse):
    make, path, content, command, *words = DAMAGED[name]
    make(here)
    write(here / path, content)
    refuse(command, 1, path, *words, begun=True)


REFUSED = [
    (PRETRAINED + "FineGrained --data.name stanford_cars", "stanford_cars is not in data"),
    (PRETRAINED + "Digits --data.batch_size 2000", "data.batch_size=2000 is more than"),
    (PRETRAINED + "Digits --trainer.accelerator gpu", "torch sees 0 GPUs here"),
    (PRETRAINED + "Digits --model.optimizer.lr -1", "Invalid learning rate"),
]


@pytest.mark.parametrize(("command", "word"), REFUSED)
def test_weights_are_fetched_when_nothing_else_can_be_refused(command, word, refuse, monkeypatch):
    """To learn that they are out of reach takes a minute."""
    asked = []
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *arguments, **options: asked.append(arguments))
    refuse(command, 1, word)
    assert not asked


def test_weights_out_of_reach_cost_no_earlier_run(refuse, monkeypatch):
    def unreachable(*arguments, **options):
        raise OSError("We couldn't connect to the hub")

    monkeypatch.setattr("timm.models._builder.load_pretrained", unreachable)
    weights = " --model Classifier --model.network resnet10t --model.network_args '{pretrained: true}'"
    refuse("fit -c small.yaml" + weights, 1, "network resnet10t cannot be built", "We couldn't connect to the hub")
