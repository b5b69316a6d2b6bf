"""Recipes of detectors are the spec's (7.2, 7.3), say what they cost, and take a step."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pytorch_lightning import Trainer

from callbacks import SyncBatchNorm
from commands.train import FrugalCLI
from networks import complexity

ROOT = Path(__file__).parent.parent
COCO = ROOT / "configs/rexnet/coco"
ROWS = sorted(path for path in COCO.rglob("*.yaml") if path.stem != "base" and path.parent.name != "short")
TAGS = {
    "resnet50": "tv_in1k", "resnext101": "gluon_in1k", "rexnet_100": "nav_in1k", "rexnet_130": "nav_in1k",
    "efficientnet_b0": "ra_in1k", "efficientnet_b1": "ft_in1k", "efficientnet_b2": "ra_in1k",
}  # fmt: skip
PAPER = {  # box AP, or mask and box AP (spec 8.6 to 8.8)
    "ssdlite": {
        "rexnet_090": 24.7, "rexnet_100": 25.3, "rexnet_130": 27.3, "efficientnet_b0": 23.5, "efficientnet_b1": 25.8,
        "efficientnet_b2": 26.6,
    },
    "fasterrcnn": {
        "rexnet_090": 38.0, "rexnet_100": 38.5, "rexnet_220": 41.5, "resnet50": 37.6, "resnext101": 40.3,
        "efficientnet_b0": 38.0,
    },
    "maskrcnn": {
        "rexnet_090": (35.2, 38.7), "rexnet_100": (35.4, 38.9), "rexnet_220": (37.8, 42.0), "resnet50": (34.6, 38.5),
        "efficientnet_b0": (34.8, 38.4),
    },
}  # fmt: skip


def name(path):
    return path.relative_to(COCO).with_suffix("").as_posix()


@pytest.fixture(autouse=True)
def no_weights(monkeypatch):
    """timm does not fetch any."""
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *args, **options: None)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A folder with coco/: two photographs with two objects each, in both splits."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    images, objects = [], []
    for image_id in (1, 2):
        for split in ("train2017", "val2017"):
            (root / "coco" / split).mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (96, 128, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "coco" / split / f"{image_id}.jpg")
        images.append({"id": image_id, "file_name": f"{image_id}.jpg", "height": 96, "width": 128})
        for left, label in ((10, 1), (60, 90)):
            outline = [left, 20, left + 40, 20, left + 40, 70, left, 70]
            about = {"bbox": [left, 20, 40, 50], "area": 2000, "iscrowd": 0, "segmentation": [outline]}
            objects.append({"id": len(objects) + 1, "image_id": image_id, "category_id": label, **about})
    (root / "coco/annotations").mkdir()
    for split in ("train2017", "val2017"):
        file = root / f"coco/annotations/instances_{split}.json"
        file.write_text(json.dumps({"images": images, "annotations": objects}))
    return root


def test_every_row_has_a_recipe():
    assert {name(path) for path in ROWS} == {f"{kind}/{row}" for kind, rows in PAPER.items() for row in rows}


@pytest.mark.parametrize("path", ROWS, ids=name)
def test_head_says_what_it_costs_and_what_the_paper_has(path):
    with torch.device("meta"):
        cli = FrugalCLI(["-c", str(path)], run=False)
    head, kind = path.read_text(), path.parent.name
    report = complexity.count(cli.model.network, cli.model.input_size)
    macs = f"{report.flops / 1e6:.1f} M" if kind == "ssdlite" else f"{report.flops / 1e9:.1f} G"
    assert f"{report.params:,} parameters, {macs} multiply-adds" in head
    figures = PAPER[kind][path.stem]
    figures = f"{figures[0]} mask AP, {figures[1]} box AP" if kind == "maskrcnn" else f"{figures} box AP"
    assert f"Paper: {figures} on {'test-dev' if kind == 'ssdlite' else 'val2017'}" in head


@pytest.mark.parametrize("path", ROWS, ids=name)
def test_recipe(path, monkeypatch):
    with torch.device("meta"):
        cli = FrugalCLI(["-c", str(path)], run=False)
    kind, model, config = path.parent.name, cli.model, cli.config
    single = kind == "ssdlite"
    steps = 458 if single else 7329  # of 117,266 images with objects
    epochs = config.trainer.max_epochs
    monkeypatch.setattr(model, "_trainer", SimpleNamespace(
        fast_dev_run=False, max_epochs=epochs, max_steps=-1, num_training_batches=steps, accumulate_grad_batches=1,
    ))  # fmt: skip
    optimisation = model.configure_optimizers()
    (group,) = optimisation["optimizer"].param_groups
    rate, decay = (0.08, 4e-5) if single else (0.02, 1e-4)
    assert (group["initial_lr"], group["momentum"], group["weight_decay"]) == (rate, 0.9, decay)
    assert optimisation["lr_scheduler"]["interval"] == "step"
    (factor,) = optimisation["lr_scheduler"]["scheduler"].lr_lambdas
    if single:
        assert abs(epochs * steps - 200_000) < steps
        assert factor(0) == pytest.approx(1 / 3)
        assert factor(250) == pytest.approx(2 / 3)
        assert factor(500) == 1
        assert factor(500 + (epochs * steps - 500) // 2) == pytest.approx(0.5, abs=1e-5)
        assert factor(epochs * steps) == pytest.approx(0)
        assert (model.input_size, cli.datamodule.batch_size) == ((3, 320, 320), 256)
        assert cli.datamodule.augmentation == "ssd"
        assert epochs % config.trainer.check_val_every_n_epoch == 0
        assert model.network.focal_gamma == 2
    else:
        assert [epoch for epoch in range(1, epochs) if factor(epoch * steps) < factor(epoch * steps - 1)] == [16, 22]
        assert factor(0) == pytest.approx(0.001)
        assert (model.input_size, cli.datamodule.batch_size, epochs) == ((3, 800, 1200), 16, 26)
        assert (model.network.transform.min_size, model.network.transform.max_size) == ((800,), 1333)
        assert cli.datamodule.augmentation == "flip"
    assert cli.datamodule.masks == model.masks == (kind == "maskrcnn")
    assert config.checkpoint.monitor == "val/box_ap"
    assert config.trainer.sync_batchnorm


@pytest.mark.parametrize("path", ROWS, ids=name)
def test_weights_to_start_from(path):
    """timm's where they are released, else those of our own run on ImageNet."""
    content = yaml.safe_load(path.read_text())
    released = re.search("_(090|220)$", path.stem) is None
    assert content["model.init_args.network_args"].get("pretrained", False) == released
    assert content.get("model.init_args.initial_checkpoint") == (
        None if released else f"configs/rexnet/imagenet/{path.stem}.yaml"
    )
    if released:
        with torch.device("meta"):
            backbone = FrugalCLI(["-c", str(path)], run=False).model.network.backbone.body.network
        assert backbone.pretrained_cfg["tag"] == TAGS[path.stem]
    else:
        assert (ROOT / content["model.init_args.initial_checkpoint"]).is_file()


@pytest.mark.parametrize("path", ROWS, ids=name)
def test_takes_a_step(path, photographs):
    """Every weight changes; small images spare time."""
    side = [] if path.parent.name == "ssdlite" else ["--data.image_size", "64"]
    data = ["--data.root", str(photographs), "--data.batch_size", "2", "--data.num_workers", "0"]
    cli = FrugalCLI(["-c", str(path), *data, *side, "--model.initial_checkpoint", "null"], run=False)
    before = {name: parameter.clone() for name, parameter in cli.model.named_parameters()}
    trainer = Trainer(fast_dev_run=True, accelerator="cpu", logger=False, enable_progress_bar=False,
                      enable_model_summary=False, plugins=[SyncBatchNorm()])  # fmt: skip
    trainer.fit(cli.model, datamodule=cli.datamodule)
    parameters = dict(cli.model.named_parameters())
    assert not any(torch.equal(parameters[name], before[name]) for name in before if before[name].ndim > 1)
    assert "val/box_ap" in trainer.callback_metrics
