"""The steps of training detectors: losses, gradients, means, learning rates."""

import math

import numpy as np
import pytest
import torch
from pytorch_lightning import Callback, LightningDataModule, Trainer
from torch import nn
from torch.utils.data import DataLoader
from torchvision.models.detection.image_list import ImageList

from lightning_modules import Detector
from networks import detection

BACKBONE = {"backbone": "mobilenetv3_small_050"}
FEW = {f"rpn_{when}_nms_top_n_{stage}": 30 for when in ("pre", "post") for stage in ("train", "test")}
NETWORKS = {"ssdlite": (64, 64), "fasterrcnn": (64, 96), "maskrcnn": (64, 96)}  # and the size of images
LOSSES = {
    "ssdlite": {"bbox_regression", "classification"},
    "fasterrcnn": {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"},
}
LOSSES["maskrcnn"] = {*LOSSES["fasterrcnn"], "loss_mask"}


def network_args(name):
    return BACKBONE if name == "ssdlite" else {**BACKBONE, **FEW, "box_detections_per_img": 12}


def detector(name="ssdlite", num_classes=4, size=None, **options):
    torch.manual_seed(0)
    size = size or NETWORKS[name]
    return Detector(name, num_classes, (3, *size), **{"network_args": network_args(name), **options})


def batch(count, size=(64, 64), seed=0):
    """Bytes, a stack, and for each image squares of all sizes with their masks."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=generator)
    targets = []
    for i in range(count):
        sides, limit = torch.tensor([9.0, 18, 27, 36, 45, 54, 62]) * min(size) / 64, torch.tensor(size).flip(0)
        corners = ((limit - sides[:, None]) / 2 + i).floor()
        boxes = torch.cat([corners, (corners + sides[:, None]).minimum(limit)], 1)
        masks = torch.zeros(len(sides), *size, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.long().tolist(), strict=True):
            mask[y1:y2, x1:x2] = 1
        labels = torch.randint(1, 4, (len(sides),), generator=generator)
        targets.append({"boxes": boxes, "labels": labels, "masks": masks, "image_id": torch.tensor(i)})
    return images, targets


def step(module, images, targets):
    """The loss of a step outside any trainer, and what is logged as means."""
    torch.manual_seed(3)
    logged = {}
    module.log, module.log_mean = lambda *args, **options: None, lambda name, value: logged.update({name: value})
    return module.train().training_step((images, targets), 0), logged


@pytest.mark.parametrize("name", NETWORKS)
def test_the_losses_of_a_step_are_those_of_the_detector(name):
    size, module = NETWORKS[name], detector(name)
    images, targets = batch(3, (80, 110))
    direct = getattr(detection, name)(num_classes=4, img_size=size, **network_args(name))
    direct.load_state_dict(module.network.state_dict())
    torch.manual_seed(3)  # R-CNNs draw which anchors and proposals count
    losses = direct.train()([image / 255 for image in images], targets)
    assert losses.keys() == LOSSES[name]
    loss, logged = step(module, images, targets)
    assert torch.allclose(loss, sum(losses.values()), rtol=1e-6)
    assert logged.keys() == {f"train/{each}" for each in losses}
    for each, value in losses.items():
        assert value > 1e-3
        assert torch.allclose(logged[f"train/{each}"], value.expand(3), rtol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_reach_every_parameter(name):
    size = (320, 320) if name == "ssdlite" else NETWORKS[name]
    module, (images, targets) = detector(name, size=size), batch(3, size)
    if name == "ssdlite":  # objects for each of its levels
        centres, sides = torch.rand(80, 2) * 320, torch.rand(80, 1) * 310 + 10
        boxes = torch.cat([centres - sides / 2, centres + sides / 2], 1).clamp(0, 320)
        targets[0].update(boxes=boxes, labels=torch.randint(1, 4, (80,)))
    step(module, images, targets)[0].backward()
    assert [n for n, p in module.named_parameters() if p.grad is None or not 0 < p.grad.abs().sum() < math.inf] == []


@pytest.mark.parametrize("name", ["ssdlite", "maskrcnn"])
def test_bytes_and_floats_lists_and_stacks_are_alike(name):
    module = detector(name)
    images, targets = batch(2, NETWORKS[name])
    forms = [images, images / 255, list(images), [image / 255 for image in images]]
    losses = [step(module, form, targets)[0] for form in forms]
    assert all(torch.equal(loss, losses[0]) for loss in losses)
    module.eval().network.score_thresh = 0.0
    found = [module._detect(form) for form in forms]
    assert len(found[0][0]["boxes"]) > 10
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert all(torch.equal(a[key], b[key]) for key in a)


def test_images_without_objects_train_too():
    module, (images, targets) = detector(), batch(2)
    targets[1].update(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    one = step(module, images, targets)[1]
    assert 0 < one["train/bbox_regression"][0] < math.inf
    targets[0].update(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    none = step(module, images, targets)[1]
    assert none["train/bbox_regression"].tolist() == [0, 0]
    assert 0 < none["train/classification"][0] < math.inf


def test_images_are_resized_and_detections_are_not():
    """Detections lie in the pixels of the image, in which it is scored."""
    module, seen = detector("maskrcnn"), []
    module.network.backbone.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0].shape[2:]))
    images, targets = batch(1, (97, 140))
    step(module, images, targets)
    module.network.roi_heads.score_thresh = 0.0
    (found,) = module.eval()._detect(images)
    assert seen == [(64, 96)] * 2  # 64x92, in multiples of 32
    assert found["masks"].shape == (len(found["boxes"]), 97, 140)
    assert found["masks"].dtype == torch.bool
    assert found["boxes"][:, 2].max() > 107
    assert (found["boxes"].amax(0)[2:] <= torch.tensor([140, 97])).all()


@pytest.mark.parametrize("side", [160, 320, 512])
def test_anchors_stand_on_the_places_of_the_maps(side):
    """Six at each; those of stride 16 come first, and their centres are 16 pixels apart in images of any size."""
    network = detection.ssdlite(**BACKBONE, num_classes=4, img_size=(side, side)).eval()
    maps = list(network.backbone(torch.zeros(1, 3, side, side)).values())
    boxes = network.anchor_generator(ImageList(torch.zeros(1, 3, side, side), [(side, side)]), maps)[0]
    assert maps[0].shape[2:] == (side // 16, side // 16)
    first = boxes[: 6 * (side // 16) ** 2].reshape(side // 16, side // 16, 6, 2, 2).mean(3)
    apart = torch.arange(8.0, side, 16)
    assert torch.allclose(first, torch.cartesian_prod(apart, apart).flip(1).reshape(*first.shape[:2], 1, 2), atol=1e-3)


class Given(LightningDataModule):
    """Batches that are given, to train; no validation."""

    num_classes, input_size = 4, (3, 64, 64)

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def train_dataloader(self):
        return DataLoader(self.batches, batch_size=None)


def fit(module, data, tmp_path, *callbacks, **options):
    quiet = dict(enable_checkpointing=False, logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer = Trainer(default_root_dir=tmp_path, callbacks=list(callbacks), **{"max_epochs": 1, **quiet, **options})
    trainer.fit(module, datamodule=data)
    return trainer


def test_means_of_losses_are_exact_over_uneven_batches(tmp_path):
    def constant(parameters):
        return torch.optim.SGD(parameters, lr=0.0)

    batches = [batch(count, seed=count) for count in (4, 2, 3)]
    logged = fit(detector(optimizer=constant), Given(batches), tmp_path).callback_metrics
    direct = detector().network.train()
    losses = [direct([image / 255 for image in images], targets) for images, targets in batches]
    assert {name for name in logged if name.startswith("train/")} == {
        "train/bbox_regression", "train/classification", "train/loss", "train/loss_step",
    }  # fmt: skip
    losses = [{**each, "loss": sum(each.values())} for each in losses]
    apart = []  # of the mean of batches, which would be wrong
    for name in ("bbox_regression", "classification", "loss"):
        values = np.array([each[name].item() for each in losses])
        expected = values @ [4, 2, 3] / 9
        assert logged[f"train/{name}"].item() == pytest.approx(expected, rel=1e-5)
        apart.append(abs(expected / values.mean() - 1))
    assert max(apart) > 1e-4


class Tiny(nn.Module):
    """The interface of a detector, and one number to train."""

    def __init__(self):
        super().__init__()
        self.transform, self.number = nn.Module(), nn.Parameter(torch.ones(1))

    def forward(self, images, targets=None):
        return {"squares": self.number.square().sum()}


def rates(tmp_path, batches, **options):
    """Of every step of a fit, by a base rate of 0.5."""
    seen = []

    class Rates(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            seen.append(optimizer.param_groups[0]["lr"] / 0.5)

    trainer = {key: options.pop(key) for key in list(options) if key.startswith(("max_", "accumulate"))}
    module = Detector(Tiny(), 4, (3, 8, 8), optimizer=lambda p: torch.optim.SGD(p, lr=0.5), **options)
    fit(module, Given([([torch.zeros(3, 8, 8)], [{}])] * batches), tmp_path, Rates(), **trainer)
    return seen


@pytest.mark.parametrize(("warmup", "factor"), [(0, 0.5), (1, 0.25), (5, 1 / 3), (10, 0.001), (4, 1.0)])
def test_the_cosine_of_every_step(tmp_path, warmup, factor):
    expected = [factor + (1 - factor) * t / warmup for t in range(warmup)]
    expected += [math.cos(math.pi / 2 * t / (12 - warmup)) ** 2 for t in range(12 - warmup)]
    options = {"warmup_steps": warmup, "warmup_factor": factor}
    assert rates(tmp_path, 4, max_epochs=3, **options) == pytest.approx(expected, rel=1e-9)
    assert rates(tmp_path, 8, max_epochs=3, accumulate_grad_batches=2, **options) == pytest.approx(expected, rel=1e-9)
    assert rates(tmp_path, 5, max_epochs=-1, max_steps=12, **options) == pytest.approx(expected, rel=1e-9)


def test_the_drops_of_every_step(tmp_path):
    plain = [1.0] * 3 + [0.1] * 6 + [0.01] * 3
    options = {"schedule": "steps", "drop_epochs": (1, 3)}
    assert rates(tmp_path, 3, max_epochs=4, **options) == pytest.approx(plain, rel=1e-9)
    assert rates(tmp_path, 5, max_epochs=4, accumulate_grad_batches=2, **options) == pytest.approx(plain, rel=1e-9)
    warm = [0.2, 0.4, 0.6, 0.8] + [1.0] * 8
    found = rates(tmp_path, 3, max_epochs=4, warmup_steps=4, warmup_factor=0.2, **options)
    assert found == pytest.approx([a * b for a, b in zip(warm, plain, strict=True)], rel=1e-9)


def test_epochs_of_drops_count_where_steps_end_the_run_before(tmp_path):
    expected = [1.0] * 6 + [0.1] * 3
    found = rates(tmp_path, 3, max_epochs=4, max_steps=9, schedule="steps", drop_epochs=(2,))
    assert found == pytest.approx(expected, rel=1e-9)


def test_other_schedules(tmp_path):
    warm = [0.5, 0.625, 0.75, 0.875, 1, 1, 1, 1]
    assert rates(tmp_path, 4, max_epochs=2, schedule="constant", warmup_steps=4, warmup_factor=0.5) == warm
    assert rates(tmp_path, 4, max_epochs=2, schedule="constant") == [1.0] * 8
    halves = {"schedule": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)}
    assert rates(tmp_path, 2, max_epochs=3, **halves) == [1, 1, 0.5, 0.5, 0.25, 0.25]
