"""ImageNet: small files in its layout, and what can be wrong with them."""

import os
import pickle
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torchvision import transforms

import frugal
from datamodules import ImageNet
from datamodules.batches import Batches, Order
from datamodules.photographs import as_image, as_tensor
from datamodules.randomness import Draw
from networks import InputError

DATA = Path(os.environ.get("FRUGAL_DATA", "nowhere")).expanduser()
# Of the published order of the 1000 classes.
LABELS = {"n01440764": 0, "n01443537": 1, "n02012849": 134, "n03126707": 517, "n04074963": 761, "n15075141": 999}
EVERYTHING = {
    "auto_augment": "rand-m9-mstd0.5", "re_prob": 0.5, "re_mode": "pixel", "vflip": 0.5, "interpolation": "random",
    "color_jitter_prob": 0.5, "grayscale_prob": 0.5, "scale": [0.5, 1],
}  # fmt: skip


def photograph(seed, width=90, height=70):
    """Smooth colours, as JPEG keeps them."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def write_imagenet(root, images=3, synsets=LABELS):
    """As many images for each split and synset."""
    for split in ("train", "val"):
        for synset in synsets:
            folder = root / "imagenet" / split / synset
            folder.mkdir(parents=True)
            for i in range(images):
                photograph(i).save(folder / f"{synset}_{i}.JPEG")
    return root / "imagenet"


def imagenet(root, **arguments):
    data = ImageNet(str(root), **{"batch_size": 4, "check_integrity": False, "image_size": 32, **arguments})
    data.num_workers = arguments.get("num_workers", 0)
    data.setup()
    return data


def literal(path, size=32, short_side=36):
    """The field's evaluation, by torchvision alone."""
    steps = [
        transforms.Resize(short_side),
        transforms.CenterCrop(size),
        transforms.ToTensor(),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]
    with Image.open(path) as image:
        return transforms.Compose(steps)(image.convert("RGB"))


def test_says_its_sizes_before_reading(monkeypatch):
    monkeypatch.setenv("FRUGAL_DATA", "/nowhere")
    data = ImageNet(image_size=192)
    assert (data.num_classes, data.input_size, data.folder) == (1000, (3, 192, 192), Path("/nowhere/imagenet"))
    assert len(set(data.class_names)) == 1000
    assert data.class_names[0] == "n01440764 tench, Tinca tinca"
    assert data.class_names[134] == "n02012849 crane"
    monkeypatch.delenv("FRUGAL_DATA")
    assert ImageNet().folder == Path("data/imagenet")
    assert ImageNet("~/here").folder == Path.home() / "here/imagenet"


def test_labels_of_a_part_are_those_of_the_whole(tmp_path):
    folder = write_imagenet(tmp_path)
    for name in ("notes.txt", "._x.txt"):
        (folder / "train/n01440764" / name).write_text("no image")
    (folder / "train/list.txt").write_text("no class")
    photograph(9).save(folder / "train/n15075141/a.PnG")
    data = imagenet(tmp_path)
    assert data.train_set.labels.tolist() == [label for label in LABELS.values() for _ in range(3)] + [999]
    assert data.train_set.names[:2].tolist() == [b"n01440764/n01440764_0.JPEG", b"n01440764/n01440764_1.JPEG"]
    assert data.train_set.names[-1] == b"n15075141/n15075141_2.JPEG"  # after a.PnG
    assert len(data.val_set) == 18
    assert data.val_set is data.test_set
    assert len(pickle.dumps(data.train_set.names)) < 19 * 30 + 200  # one buffer, nothing for each name
    train_set = data.train_set
    data.setup("fit")
    assert data.train_set is train_set


def test_evaluation_needs_no_images_to_train(tmp_path):
    (write_imagenet(tmp_path) / "train").rename(tmp_path / "elsewhere")
    data = ImageNet(str(tmp_path), check_integrity=False)
    data.setup("test")
    assert len(data.test_set) == 18
    with pytest.raises(InputError, match=r"no ImageNet in .*imagenet/train"):
        data.setup("fit")


def test_evaluation_equals_torchvision_image_by_image(tmp_path):
    folder = write_imagenet(tmp_path)
    photograph(3, 40, 300).save(folder / "val/n01440764/tall.JPEG")
    data = imagenet(tmp_path)
    images, labels = next(iter(data.val_dataloader()))
    paths = sorted((folder / "val/n01440764").iterdir())
    assert len(paths) == 4
    assert torch.equal(images, torch.stack([literal(path) for path in paths]))
    assert labels.tolist() == [0] * 4
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    whole = imagenet(tmp_path, crop_fraction=1)
    assert torch.equal(next(iter(whole.val_dataloader()))[0][0], literal(paths[0], short_side=32))
    assert data.val_set[Draw(0, 0, np.arange(0))][0].shape == (0, 3, 32, 32)  # of a process whose share is empty


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA", "1", "I;16"])
def test_every_kind_of_image_becomes_rgb(tmp_path, mode):
    folder = write_imagenet(tmp_path, images=1) / "val/n01440764"
    suffix = "JPEG" if mode in ("L", "CMYK") else "png"
    if mode == "I;16":
        Image.fromarray(np.full((70, 90), 99, dtype=np.uint16)).save(folder / "a.png")
    else:
        photograph(0).convert(mode).save(folder / f"a.{suffix}")
    image = imagenet(tmp_path).val_set[Draw(0, 0, np.array([0]))][0][0]
    assert torch.equal(image, literal(folder / f"a.{suffix}"))
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    if mode in ("L", "1", "I;16"):  # all channels alike
        assert torch.allclose(image * std + mean, (image * std + mean).mean(0, keepdim=True), atol=1e-5)
    if mode in ("CMYK", "RGBA"):  # the colours are those of the photograph, not their negative
        photograph(0).save(folder / "rgb.png")
        assert (image - literal(folder / "rgb.png")).abs().mean() < 0.15


@pytest.mark.parametrize("backend", ["tensor", "timm"])
def test_training_crops_and_flips_and_does_nothing_else(tmp_path, backend):
    """An image whose colours are its coordinates tells where each output pixel comes from."""
    folder = write_imagenet(tmp_path, images=1, synsets=["n01440764"])
    y, x = np.mgrid[:256, :256].astype(np.uint8)
    for path in (folder / "train/n01440764").iterdir():
        path.unlink()
    for i in range(2):
        Image.fromarray(np.stack([x, y, 0 * x], axis=-1)).save(folder / f"train/n01440764/{i}.png")
    data = imagenet(tmp_path, backend=backend)
    areas, ratios, flips = [], [], []
    for epoch in range(400):
        batch = data.on_after_batch_transfer(data.train_set[Draw(0, epoch, np.array([0]))], 0)
        image = in_bytes(batch[0][0])
        across, down = image[0].mean(0), image[1].mean(1)
        assert (image[0] - across).abs().max() < 1.01  # upright; bytes are rounded
        assert (image[1] - down[:, None]).abs().max() < 1.01
        assert image[2].abs().max() < 0.01
        # The middle half of the output is half a crop, away from its edges where resizing averages less.
        width, height = ((line[23] - line[8]).item() * 32 / 15 for line in (across, down))
        flips.append(width < 0)
        areas.append(abs(width) * height / 256**2)
        ratios.append(abs(width) / height)
    assert np.mean(flips) == pytest.approx(0.5, abs=5 * 0.5 / 400**0.5)
    assert 0.07 < min(areas) < 0.12
    assert 0.85 < max(areas) < 1.02
    assert np.mean(areas) < 0.56  # uniform, but for large crops that would not fit
    assert 0.73 < min(ratios) < 0.80
    assert 1.25 < max(ratios) < 1.37


CROPS = [None, {"hflip": 1, "vflip": 0.5, "scale": [0.3, 0.5], "ratio": [1, 2]}]


def in_bytes(images):
    """Normalised images in units of 255."""
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    return (images * std + mean) * 255


def assert_backends_agree(root, draw, **arguments):
    ours, timms = (imagenet(root, backend=backend, **arguments) for backend in ("tensor", "timm"))
    (images, labels), (expected, others) = ours.train_set[draw], timms.train_set[draw]
    assert (images.dtype, expected.dtype) == (torch.uint8, torch.float32)
    assert labels.equal(others)
    difference = (images - in_bytes(expected)).abs()
    assert difference.max() < 2.01
    assert difference.mean() < 0.2  # of torch 2.4; later ones round more as PIL
    normalised, labels = ours.on_after_batch_transfer((images, labels), 0)
    assert labels.equal(others)
    assert normalised.dtype == torch.float32
    assert torch.allclose(in_bytes(normalised), images.float(), atol=1e-3)
    batch = expected, labels
    assert timms.on_after_batch_transfer(batch, 0) is batch


@pytest.mark.parametrize("augmentation", CROPS)
def test_backends_differ_by_two_of_255_at_most(tmp_path, augmentation):
    write_imagenet(tmp_path)
    assert_backends_agree(tmp_path, Draw(3, 5, np.arange(18)), augmentation=augmentation)


class Listens(pl.LightningModule):
    """Keeps the batches that it is trained with."""

    def __init__(self):
        super().__init__()
        self.weight, self.batches = torch.nn.Parameter(torch.zeros(())), []

    def training_step(self, batch, _):
        self.batches.append(batch)
        return self.weight * 0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


PRECISIONS = {
    "32-true": torch.float32,
    "bf16-mixed": torch.float32,
    "bf16-true": torch.bfloat16,
    "64-true": torch.float64,
}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_lightning_trains_on_normalised_images(tmp_path, precision):
    write_imagenet(tmp_path)
    data, module = imagenet(tmp_path), Listens()
    options = dict(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    pl.Trainer(max_epochs=1, precision=precision, **options).fit(module, datamodule=data)
    draws = list(data.train_dataloader().sampler)
    assert len(draws) == len(module.batches) == 4
    for draw, (images, labels) in zip(draws, module.batches, strict=True):
        assert images.dtype == PRECISIONS[precision]
        atol = 2 if precision == "bf16-true" else 1e-3
        assert torch.allclose(in_bytes(images.float()), data.train_set[draw][0].float(), atol=atol)
        assert labels.equal(data.train_set[draw][1])


@pytest.mark.parametrize(
    "augmentation",
    [{"auto_augment": "rand-m9-mstd0.5"}, {"re_prob": 0.5}, {"color_jitter": 0.4}, {"interpolation": "random"},
     {"train_crop_mode": "rkrr"}, {"grayscale_prob": 0.5}, {"interpolation": "bicubic"}],
    ids=str,
)  # fmt: skip
def test_what_goes_beyond_crops_and_flips_is_timms_own(tmp_path, augmentation):
    write_imagenet(tmp_path)
    ours, timms = (
        imagenet(tmp_path, backend=backend, augmentation=augmentation).train_set for backend in ("tensor", "timm")
    )
    draw = Draw(3, 5, np.arange(18))
    assert torch.equal(ours[draw][0], timms[draw][0])


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "P", "RGBA", "progressive", "damaged"])
def test_decoders_agree_to_the_byte(tmp_path, mode):
    path, rgb = tmp_path / "a.JPEG", photograph(0, 91, 63)
    if mode in ("P", "RGBA"):
        rgb.convert(mode).save(path, "png")
    elif mode in ("L", "CMYK"):
        rgb.convert(mode).save(path)
    else:
        rgb.save(path, progressive=mode == "progressive", subsampling="4:1:1" if mode == "progressive" else 0)
    if mode == "damaged":
        content = path.read_bytes()
        path.write_bytes(content[:-40] + bytes(20) + content[-20:])  # PIL forgives that
    expected = torch.from_numpy(np.array(as_image(path))).permute(2, 0, 1)
    assert expected.shape == (3, 63, 91)
    found = as_tensor(path)
    assert (found.int() - expected.int()).abs().max() <= (mode == "CMYK")


def damage(folder, *names):
    for name in names:
        path = folder / name
        path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("backend", ["tensor", "timm"])
def test_corrupt_photographs_are_skipped_named_and_counted(tmp_path, num_workers, backend):
    folder = write_imagenet(tmp_path)
    options = dict(backend=backend, batch_size=6)
    whole = imagenet(tmp_path, **options).train_set[Draw(0, 0, np.arange(18))]
    names = ["n01440764/n01440764_1.JPEG", "n15075141/n15075141_2.JPEG"]  # samples 1 and 17
    damage(folder / "train", *names)
    with pytest.raises(
        InputError, match=rf"({'|'.join(names)}) cannot be decoded .*, or skip it with --data\.skip_corrupt true"
    ):
        list(imagenet(tmp_path, **options, num_workers=num_workers).train_dataloader())

    data = imagenet(tmp_path, **options, num_workers=num_workers, skip_corrupt=True)
    loader = data.train_dataloader()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for epoch in range(3):
            for (images, labels), indices in zip(loader, loader.indices(), strict=True):
                taken = [{1: 2, 17: 0}.get(index, index) for index in indices]  # the next one, in a circle
                assert labels.tolist() == whole[1][taken].tolist()
                same = [a == b for a, b in zip(taken, indices, strict=True)]
                if epoch == 0:  # each with its own randomness, whoever is missing
                    assert torch.equal(images[same], whole[0][indices][same])
                    assert (images != whole[0][indices]).flatten(1).any(1).tolist() == [not s for s in same]
        assert data.train_set.skipped() == names
        data.teardown("fit")
    messages = [str(warning.message) for warning in caught]
    assert messages[-1] == f"skipped 2 of 18 photographs to train, which cannot be decoded: {', '.join(names)}"
    if not num_workers:  # those of workers go to their own standard error, which pytest's recording swallows
        one, other = (f"skipped: {folder}/train/{name} cannot be decoded" for name in names)
        assert sorted(message.split(" (")[0] for message in messages[:-1]) == [one, other]


def test_nothing_to_skip_says_nothing(tmp_path):
    write_imagenet(tmp_path)
    data = imagenet(tmp_path, skip_corrupt=True)
    list(data.train_dataloader())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.teardown("fit")
    ImageNet().teardown("test")  # without photographs to train


@pytest.mark.parametrize("backend", ["tensor", "timm"])
def test_what_the_disk_refuses_is_not_skipped(tmp_path, backend):
    path = write_imagenet(tmp_path) / "train/n01440764/n01440764_1.JPEG"
    data = imagenet(tmp_path, backend=backend, skip_corrupt=True)
    path.unlink()
    with pytest.raises(InputError, match=rf"{path} cannot be read \(No such file or directory\)"):
        list(data.train_dataloader())
    path.mkdir()
    with pytest.raises(InputError, match=rf"{path} cannot be read \(Is a directory\)"):
        list(data.train_dataloader())


def test_five_skipped_photographs_are_named_and_all_counted(tmp_path):
    folder = write_imagenet(tmp_path)
    data = imagenet(tmp_path, skip_corrupt=True)
    names = [os.fsdecode(name) for name in data.train_set.names[:7]]
    damage(folder / "train", *names)
    with pytest.warns(match="^skipped: "):
        data.train_set[Draw(0, 0, np.arange(7))]
    with pytest.warns() as caught:
        data.teardown("fit")
    start = "skipped 7 of 18 photographs to train, which cannot be decoded: "
    assert str(caught[0].message) == f"{start}{', '.join(names[:5])} and others"


def test_nothing_but_corrupt_photographs_is_refused(tmp_path):
    folder = write_imagenet(tmp_path, synsets=["n01440764"])
    damage(folder / "train/n01440764", *(f"n01440764_{i}.JPEG" for i in range(3)))
    message = r"20 photographs in a row cannot be decoded, the last .*train/n01440764/n01440764_\d\.JPEG: unpack"
    with pytest.warns(match="skipped: "), pytest.raises(InputError, match=message):
        next(iter(imagenet(tmp_path, batch_size=3, skip_corrupt=True).train_dataloader()))


def test_evaluation_skips_nothing(tmp_path):
    damage(write_imagenet(tmp_path) / "val", "n01440764/n01440764_1.JPEG")
    with pytest.raises(InputError, match=r"val/n01440764/n01440764_1\.JPEG cannot be decoded"):
        list(imagenet(tmp_path, skip_corrupt=True).val_dataloader())


@pytest.mark.parametrize("augmentation", [None, EVERYTHING])
def test_a_sample_is_a_function_of_seed_epoch_and_index(tmp_path, augmentation):
    write_imagenet(tmp_path)
    dataset = imagenet(tmp_path, augmentation=augmentation).train_set
    together = dataset[Draw(3, 5, np.arange(18))][0]
    for index in (0, 7, 17):
        torch.rand(index + 1), random.random(), np.random.rand()  # noqa: NPY002
        assert torch.equal(dataset[Draw(3, 5, np.array([index]))][0][0], together[index])
    assert torch.equal(dataset[Draw(3, 5, np.array([4, 11, 2]))][0], together[[4, 11, 2]])
    for other in (Draw(3, 6, np.arange(18)), Draw(4, 5, np.arange(18))):
        assert (dataset[other][0] != together).flatten(1).any(1).all()
    assert (together[0::3] != together[:1]).flatten(1).any(1)[1:].all()  # the same photograph in another class


@pytest.mark.parametrize("augmentation", [None, EVERYTHING])
def test_workers_change_nothing(tmp_path, augmentation):
    write_imagenet(tmp_path)
    data = imagenet(tmp_path, augmentation=augmentation)
    loaders = [Batches(data.train_set, Order(18, 4, True, seed=7), num_workers) for num_workers in (0, 2)]
    for _ in range(2):
        first, second = ([tensor for batch in loader for tensor in batch] for loader in loaders)
        assert len(first) == 2 * 4
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def generators():
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    return random.getstate(), (name, keys.tolist(), *rest), torch.get_rng_state().tolist()


def test_global_generators_are_left_alone(tmp_path):
    folder = write_imagenet(tmp_path)
    dataset = imagenet(tmp_path, augmentation=EVERYTHING).train_set
    random.gauss(0, 1), np.random.randn()  # noqa: NPY002 - both keep a second number for later
    before = generators()
    dataset[Draw(3, 5, np.arange(18))]
    assert generators() == before
    (folder / "train/n01440764/n01440764_1.JPEG").write_bytes(b"")
    with pytest.raises(InputError):
        dataset[Draw(3, 5, np.arange(18))]
    assert generators() == before


def test_the_generators_are_unrelated(tmp_path):
    """NumPy's and torch's are one algorithm: of the same seed they make the same bits."""
    write_imagenet(tmp_path, images=1, synsets=["n01440764"])
    dataset = imagenet(tmp_path, image_size=1).train_set
    drawn = []

    def transform(image):
        numbers = np.random.randint(2**24), torch.randint(2**24, (1,)).item(), random.getrandbits(24)  # noqa: NPY002
        drawn.append([number >> bit & 1 for number in numbers for bit in range(24)])
        return torch.zeros(3, 1, 1)

    dataset.transform = transform
    for epoch in range(1000):
        dataset[Draw(0, epoch, np.array([0]))]
    correlations = np.corrcoef(np.array(drawn).T) - np.eye(72)
    assert np.abs(correlations).max() < 5 / 1000**0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"augmentation": {"crop": 1, "re_prob": 0.1, "mean": 0}},
            r"data\.augmentation has crop, mean; it takes auto",
        ),
        ({"augmentation": {"auto_augment": "nothing"}}, r"data\.augmentation=.*nothing.*: timm refuses it"),
        ({"augmentation": {"train_crop_mode": "x"}}, r"data\.augmentation=.*: timm refuses it \(AssertionError"),
        ({"image_size": 0}, r"data\.image_size=0 must be positive"),
        ({"crop_fraction": 0}, r"data\.crop_fraction=0 must be more than 0 and at most 1"),
        ({"crop_fraction": 1.1}, r"data\.crop_fraction=1\.1 must be more than 0 and at most 1"),
        ({"backend": "pil"}, r"data\.backend is one of tensor, timm; got 'pil'"),
        ({"num_workers": -1}, r"data\.num_workers=-1 must not be negative"),
    ],
)
def test_refusals_at_construction(arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        ImageNet(**arguments)
    assert "\n" not in str(caught.value)


def test_every_augmentation_is_one_of_timms():
    values = {"train_crop_mode": "rrc", "scale": [0.2, 1], "ratio": [1, 2], "interpolation": "bicubic", "re_count": 2}
    values |= {"color_jitter": 0.4, "gaussian_blur_prob": 0.1, "hflip": 0}
    ImageNet(augmentation={**EVERYTHING, **values})


def test_refuses_folders_that_cannot_be_right(tmp_path):
    with pytest.raises(InputError, match=r"no ImageNet in .*imagenet/val: register at image-net\.org, .*n01440764/"):
        imagenet(tmp_path)
    (tmp_path / "imagenet/val/n01440764").mkdir(parents=True)
    with pytest.raises(InputError, match=r"no ImageNet in .*imagenet/val.*--data\.root or FRUGAL_DATA"):
        imagenet(tmp_path)
    (tmp_path / "imagenet/val/n01440764").rmdir()
    folder = write_imagenet(tmp_path / "other")
    with pytest.raises(InputError, match=r"imagenet/val has 6 classes and 18 images, not 1000 and 50000: .* false"):
        ImageNet(str(tmp_path / "other")).setup()
    (folder / "train/tench").mkdir()
    with pytest.raises(InputError, match=r"imagenet/train/tench is not named by one of ImageNet's 1000 synsets: move"):
        imagenet(tmp_path / "other")


def test_the_published_numbers_are_a_whole_imagenet(tmp_path, monkeypatch):
    names = ImageNet().labels
    for split, images in (("train", 1), ("val", 2)):
        for synset in names:
            folder = tmp_path / "imagenet" / split / synset
            folder.mkdir(parents=True)
            for i in range(images):
                (folder / f"{i}.JPEG").touch()
    monkeypatch.setattr("datamodules.imagenet.IMAGES", {"train": 1000, "val": 2000})
    data = ImageNet(str(tmp_path))
    data.setup()
    assert data.train_set.labels.tolist() == list(range(1000))
    (tmp_path / "imagenet/val/n01440764/1.JPEG").unlink()
    with pytest.raises(InputError, match=r"val has 1000 classes and 1999 images, not 1000 and 2000"):
        ImageNet(str(tmp_path)).setup()


@pytest.mark.parametrize("content", ["cut", "empty", "text"])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_damaged_image_is_named_in_one_line(tmp_path, num_workers, content):
    path = write_imagenet(tmp_path) / "val/n02012849/n02012849_1.JPEG"
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "text": b"404 not found"}[content])
    loader = imagenet(tmp_path, num_workers=num_workers).val_dataloader()
    with pytest.raises(InputError) as caught:
        list(loader)
    message = str(caught.value)
    assert message.startswith(f"{path} cannot be decoded (")
    assert message.endswith("): unpack it again from the data set's archive")
    assert "\n" not in message


def test_the_command(tmp_path, monkeypatch, capsys):
    folder = write_imagenet(tmp_path)
    monkeypatch.chdir(tmp_path)
    options = "--model Classifier --model.network conv2 --model.network_args.width 0.1 --trainer.default_root_dir run "
    options += "--trainer.max_epochs 1 --trainer.accelerator cpu --trainer.log_every_n_steps 1 --data ImageNet "
    options += "--data.root . --data.image_size 16 --data.batch_size 6 --data.num_workers 1 "
    options += "--data.check_integrity false --data.augmentation.auto_augment rand-m9-mstd0.5"
    frugal.main(["fit", *options.split()])
    frugal.main(["predict", *options.split()])
    header, *rows = Path("run/predict/predictions.csv").read_text().splitlines()
    assert "p(n02012849 crane)" in header
    assert len(rows) == 18
    path = folder / "train/n02012849/n02012849_1.JPEG"
    path.write_bytes(b"")
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_status:
        frugal.main(["fit", *options.replace("dir run", "dir other").split()])
    assert exit_status.value.code == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line.lower()]
    assert len(lines) == 1
    assert lines[0].startswith(f"frugal: error: {path.relative_to(tmp_path)} cannot be decoded")


@pytest.mark.skipif(not (DATA / "imagenet").is_dir(), reason="no ImageNet in FRUGAL_DATA")
def test_the_real_photographs():
    data = imagenet(DATA, batch_size=64, image_size=224)
    labels = data.val_set.labels
    assert len(np.unique(labels)) >= 256
    path = data.val_set.folder / os.fsdecode(data.val_set.names[0])
    assert data.labels[path.parent.name] == labels[0]
    images, _ = next(iter(data.val_dataloader()))
    assert images.shape == (64, 3, 224, 224)
    assert torch.equal(images[0], literal(path, 224, 256))
    assert images.mean().abs() < 0.3
    assert images.std() == pytest.approx(1, abs=0.2)
    assert_backends_agree(DATA, Draw(0, 1, np.arange(64)), image_size=224)
    for path in sorted(data.train_set.folder.glob("*/*"))[:64]:
        assert torch.equal(as_tensor(path), torch.from_numpy(np.array(as_image(path))).permute(2, 0, 1))
