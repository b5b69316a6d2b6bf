"""CIFAR: the public files, synthetic ones in their layout, and what can be wrong with them."""

import functools
import hashlib
import json
import os
import pickle
import tarfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from torchvision import datasets

import frugal
from datamodules import CIFAR
from networks import InputError

SAMPLE = Path(os.environ.get("FRUGAL_DATA", ""), "cifar-10-batches-py")


def write_cifar(root, classes=10, size=40, **changes):
    """Small files in the published layout: pickles of protocol 2 with byte strings as keys."""
    source = datasets.CIFAR10 if classes == 10 else datasets.CIFAR100
    folder = root / source.base_folder
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, _ in [*source.train_list, *source.test_list]:
        labels = (np.arange(size) % classes).tolist()
        batch = {b"data": rng.integers(0, 256, (size, 3072), dtype=np.uint8)}
        batch[b"labels" if classes == 10 else b"fine_labels"] = labels
        (folder / name).write_bytes(pickle.dumps({**batch, **changes.get(name, {})}, protocol=2))
    names = [f"class{i}".encode() for i in range(classes)]
    (folder / source.meta["filename"]).write_bytes(pickle.dumps({source.meta["key"].encode(): names}, protocol=2))
    return folder


def cifar(root, **arguments):
    data = CIFAR(str(root), check_integrity=False, **{"batch_size": 10, **arguments})
    data.prepare_data()
    data.setup()
    return data


@pytest.mark.parametrize("classes", [10, 100])
def test_reads_the_published_layout(tmp_path, classes):
    folder = write_cifar(tmp_path, classes, size=200)
    data = cifar(tmp_path, classes=classes)
    assert (data.num_classes, data.input_size, len(data.class_names)) == (classes, (3, 32, 32), classes)
    assert len(data.train_set) == (1000 if classes == 10 else 200)
    assert data.val_set is data.test_set
    batch = pickle.loads((folder / ("test_batch" if classes == 10 else "test")).read_bytes())
    images, labels = next(iter(data.test_dataloader()))
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in MEAN_STD[classes])
    expected = (torch.tensor(batch[b"data"][:10].reshape(-1, 3, 32, 32)) / 255 - mean) / std
    assert torch.allclose(images, expected, atol=1e-5)
    assert labels.tolist() == [i % classes for i in range(10)]


MEAN_STD = {
    10: [(0.491, 0.482, 0.447), (0.247, 0.243, 0.262)],
    100: [(0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)],
}


def test_held_out_images_leave_training_and_are_not_augmented(tmp_path):
    write_cifar(tmp_path)
    whole, data = cifar(tmp_path), cifar(tmp_path, held_out=50)
    kept, held = (part.crops[:, :, part.places // 2, part.places // 2] for part in (data.train_set, data.val_set))
    assert (len(kept), len(held)) == (150, 50)
    both = {image.tobytes() for image in kept} | {image.tobytes() for image in held}
    assert both == {image.tobytes() for image in whole.train_set.crops[:, :, 4, 4]}
    assert len(both) == 200
    assert np.bincount(data.val_set.labels).tolist() == [5] * 10
    assert data.val_set.places == 1
    assert np.array_equal(cifar(tmp_path, held_out=50).val_set.labels, data.val_set.labels)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({b"labels": [0] * 39 + [10]}, r"data_batch_3 has label 10, outside 0 to 9"),
        ({b"labels": [0] * 39 + [-1]}, r"data_batch_3 has label -1, outside 0 to 9"),
        ({b"labels": [0] * 39}, r"data_batch_3 does not hold 3072 bytes and a label for each image"),
        ({b"data": np.zeros((40, 3000), np.uint8)}, r"data_batch_3 does not hold 3072 bytes"),
        ({b"data": np.zeros((40, 3072))}, r"data_batch_3 does not hold 3072 bytes"),
        ({b"data": None}, r"data_batch_3 does not hold 3072 bytes"),
    ],
)
def test_refuses_batches_that_cannot_be_right(tmp_path, changes, message):
    write_cifar(tmp_path, data_batch_3=changes)
    with pytest.raises(InputError, match=message):
        cifar(tmp_path)


def test_refuses_files_that_are_cut_short_or_changed(tmp_path):
    folder = write_cifar(tmp_path)
    data = CIFAR(str(tmp_path))
    with pytest.raises(InputError, match=r"data_batch_1, .*: not the published files .* --data.check_integrity false"):
        data.prepare_data()
    file = folder / "data_batch_2"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"data_batch_2 is cut short or not a CIFAR batch .*remove the folder"):
        cifar(tmp_path)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_reading_never_executes_code_from_a_file(tmp_path):
    write_cifar(tmp_path, test_batch={b"data": Evil(tmp_path / "executed")})
    with pytest.raises(InputError, match=r"test_batch is cut short or not a CIFAR batch \(it asks for .*open"):
        cifar(tmp_path)
    assert not (tmp_path / "executed").exists()


@pytest.fixture
def served(tmp_path):
    """Address of tmp_path/served on this machine."""
    (tmp_path / "served").mkdir()
    handler = functools.partial(SimpleHTTPRequestHandler, directory=tmp_path / "served")
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_downloads_what_is_absent_and_says_what_to_fetch_where_it_cannot(tmp_path, monkeypatch, served):
    write_cifar(tmp_path / "public")
    with tarfile.open(tmp_path / "served/cifar-10-python.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "public/cifar-10-batches-py", "cifar-10-batches-py")
    monkeypatch.setattr(datasets.CIFAR10, "url", f"{served}/nothing.tar.gz")
    with pytest.raises(InputError, match=r"CIFAR-10 is not in .*mine/cifar-10-batches-py and could not be downloaded"):
        cifar(tmp_path / "mine")
    monkeypatch.setattr(datasets.CIFAR10, "url", f"{served}/cifar-10-python.tar.gz")
    with pytest.raises(InputError, match=r"could not be downloaded .*corrupted"):
        cifar(tmp_path / "mine")  # its checksum is not the published one
    digest = hashlib.md5((tmp_path / "served/cifar-10-python.tar.gz").read_bytes()).hexdigest()
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", digest)
    assert len(cifar(tmp_path / "mine").train_set) == 200


def test_refusals_at_construction(tmp_path):
    with pytest.raises(InputError, match=r"data.classes=20: there are CIFAR-10 and CIFAR-100"):
        CIFAR(classes=20)
    write_cifar(tmp_path)
    for number in (5, 195, 5000):
        with pytest.raises(InputError, match=rf"data.held_out={number} of 200 images leaves too few on one side"):
            cifar(tmp_path, held_out=number)


@pytest.mark.parametrize("rotation", [-1.0, 180.5, float("nan")])
def test_refuses_rotations_outside_half_a_turn(rotation):
    with pytest.raises(InputError, match=rf"data.rotation={rotation} degrees must lie in 0 to 180"):
        CIFAR(rotation=rotation)


def test_training_images_alone_are_rotated(tmp_path):
    write_cifar(tmp_path)
    plain, data = (cifar(tmp_path, held_out=50, rotation=rotation) for rotation in (0.0, 90.0))
    turned = [
        [not torch.equal(a, b) for a, b in zip(x[0], y[0], strict=True)]
        for x, y in zip(plain.train_dataloader(), data.train_dataloader(), strict=True)
    ]
    assert np.mean(turned) > 0.9  # an angle below 2 degrees moves nothing
    for one, other in (
        (plain.val_dataloader(), data.val_dataloader()),
        (plain.test_dataloader(), data.test_dataloader()),
    ):
        assert all(torch.equal(x[0], y[0]) for x, y in zip(one, other, strict=True))


def test_the_folder_is_given_or_the_environments_or_data(monkeypatch):
    monkeypatch.delenv("FRUGAL_DATA", raising=False)
    assert CIFAR().root == Path("data")
    monkeypatch.setenv("FRUGAL_DATA", "/elsewhere")
    assert CIFAR().root == Path("/elsewhere")
    assert CIFAR("~/here").root == Path.home() / "here"


def test_a_recipe_from_end_to_end(tmp_path, monkeypatch):
    write_cifar(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    config = str(Path(__file__).parent.parent.parent / "configs/biprop/cifar10/conv4_mpt1_1.yaml")
    options = "--data.root data --data.check_integrity false --model.network_args.width 0.1 --trainer.max_epochs 1"
    options += " --trainer.default_root_dir run --trainer.log_every_n_steps 1"
    for command in ("fit", "test"):
        frugal.main([command, "-c", config, *options.split()])
    tested = json.loads(Path("run/test/metrics.json").read_text())
    assert tested["test/top1"] * 40 == pytest.approx(round(tested["test/top1"] * 40), abs=1e-4)


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="no CIFAR-10 in FRUGAL_DATA")
def test_the_real_images():
    data = cifar(SAMPLE.parent, batch_size=1000)
    assert (len(data.train_set), len(data.test_set)) == (50_000, 10_000)
    assert np.bincount(data.train_set.labels).tolist() == [5000] * 10
    assert data.class_names[:2] == ("airplane", "automobile")
    images = torch.cat([images for images, _ in data.test_dataloader()])
    assert images.mean((0, 2, 3)).abs().max() < 0.03
    assert (images.std((0, 2, 3)) - 1).abs().max() < 0.03
