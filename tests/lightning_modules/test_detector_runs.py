"""Runs of detectors: initial weights, resumption, groups of the optimiser, what is refused."""

from contextlib import nullcontext

import pytest
import torch
from pytorch_lightning import Callback, Trainer, seed_everything
from runs import Stop, same, without_hours
from torch import nn

from callbacks import ExactResume, LastCheckpoint, TrainingCurves
from datamodules.base import DataModule
from lightning_modules import Classifier, Detector, initial
from networks import InputError

ARGS = {"backbone": "mobilenetv3_small_050", "backbone_args": {"drop_path_rate": 0.2}, "score_thresh": 0.004}
SMALL = {"backbone": "mobilenetv3_small_050"}
BODY = "network.backbone.body.network."


def detector(network="ssdlite", num_classes=4, seed=0, **options):
    torch.manual_seed(seed)
    return Detector(network, num_classes, (3, 64, 64), **{"network_args": SMALL, **options})


class Squares:
    """Images of noise with two bright squares, mirrored by the draw; in evaluation with what scoring asks for."""

    def __init__(self, count, training):
        generator = torch.Generator().manual_seed(count)
        self.images = torch.randint(0, 100, (count, 3, 64, 64), dtype=torch.uint8, generator=generator)
        self.corners, self.training = torch.randint(0, 34, (count, 2, 2), generator=generator), training

    def __len__(self):
        return len(self.images)

    def __getitem__(self, draw):
        images, targets = [], []
        for i, mirrored in zip(draw.indices.tolist(), draw.uniform(1)[:, 0] < 0.5, strict=True):
            image, boxes = self.images[i].clone(), torch.cat([self.corners[i], self.corners[i] + 30], 1)
            for x1, y1, x2, y2 in boxes.tolist():
                image[:, y1:y2, x1:x2] += 120
            if mirrored and self.training:
                image, boxes[:, [0, 2]] = image.flip(2), 64 - boxes[:, [2, 0]]
            images.append(image)
            targets.append({"boxes": boxes.float(), "labels": torch.tensor([1, 2]), "image_id": torch.tensor(i)})
            if not self.training:
                targets[-1].update(iscrowd=torch.zeros(2).long(), area=torch.full((2,), 900.0))
        return torch.stack(images), targets


class Data(DataModule):
    num_classes, input_size = 4, (3, 64, 64)

    def __init__(self, batch_size=2, masks=False, num_classes=4):
        super().__init__(batch_size)
        self.masks, self.num_classes = masks, num_classes
        self.train_set, self.val_set = Squares(10, True), Squares(3, False)


def trainer(tmp_path, *callbacks, **options):
    quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False)
    return Trainer(default_root_dir=tmp_path, callbacks=list(callbacks), **{"max_epochs": 1, **quiet, **options})


@pytest.mark.parametrize("name", ["ssdlite", "fasterrcnn"])
@pytest.mark.parametrize("whole", [True, False], ids=["checkpoint", "state_dict"])
def test_a_classifiers_weights_go_into_the_backbone(tmp_path, name, whole):
    source, path = Classifier("mobilenetv3_small_050", 7, (3, 64, 64)), tmp_path / "classifier.ckpt"
    given = {"state_dict": source.state_dict(), "method": "Classifier"} if whole else source.network.state_dict()
    torch.save(given, path)
    module = detector(name, seed=1)
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    report = module.start_from(initial.read(path)).splitlines()
    after, body = module.state_dict(), {key for key in before if key.startswith(BODY)}
    theirs = source.network.state_dict()
    assert len(body) > 150
    assert all(torch.equal(after[key], theirs[key.removeprefix(BODY)]) for key in body)
    assert any(not torch.equal(after[key], before[key]) for key in body)
    assert all(torch.equal(after[key], before[key]) for key in before.keys() - body)
    assert report[0] == f"{len(body)} of {len(before)} tensors start from {path}"
    own, unused = len(before) - len(body), sorted({BODY + key for key in theirs} - body)
    assert report[1].startswith(f"  not in it, as built: {own}, such as network.backbone.")
    assert report[2] == f"  in it, but not here: {len(unused)}, such as {', '.join(unused[:3])}"
    assert f"{BODY}classifier.weight" in unused


def test_a_detectors_weights_go_into_a_detector(tmp_path):
    source, same, other = detector(seed=1), detector(seed=2), detector(seed=3, num_classes=6)
    torch.save({"state_dict": source.state_dict(), "method": "Detector"}, tmp_path / "detector.ckpt")
    total = len(source.state_dict())
    assert same.start_from(initial.read(tmp_path / "detector.ckpt")).splitlines() == [
        f"{total} of {total} tensors start from {tmp_path / 'detector.ckpt'}"
    ]
    assert all(torch.equal(tensor, source.state_dict()[key]) for key, tensor in same.state_dict().items())
    report = other.start_from(initial.read(tmp_path / "detector.ckpt")).splitlines()
    changed = [key for key, tensor in other.state_dict().items() if tensor.shape != source.state_dict()[key].shape]
    assert report[0].startswith(f"{total - 12} of {total} tensors")
    assert report[1] == f"  of another size, as built: 12, such as {', '.join(sorted(changed)[:3])}"
    assert all("classification_head" in key for key in changed)
    kept = source.state_dict().keys() - changed
    assert all(torch.equal(other.state_dict()[key], source.state_dict()[key]) for key in kept)


def test_a_fit_starts_from_the_checkpoint_of_another(tmp_path):
    still = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.0), "schedule": "constant"}
    source = detector(seed=1, **still)
    first = trainer(tmp_path, enable_checkpointing=False, limit_train_batches=1)
    first.fit(source, datamodule=Data())
    first.save_checkpoint(tmp_path / "detector.ckpt")
    module = detector(seed=2, initial_checkpoint=str(tmp_path / "detector.ckpt"), **still)
    trainer(tmp_path, enable_checkpointing=False, limit_train_batches=1).fit(module, datamodule=Data())
    assert all(torch.equal(p, source.get_parameter(name)) for name, p in module.named_parameters())
    loaded = Detector.load_from_checkpoint(tmp_path / "detector.ckpt", weights_only=True)
    assert all(torch.equal(tensor, source.state_dict()[key]) for key, tensor in loaded.state_dict().items())


def run(folder, steps=None, resume=False):
    seed_everything(99 if resume else 3)
    module = detector(network_args=ARGS, warmup_steps=3, seed=5 if resume else 4)
    torch.manual_seed(6 if resume else 7)
    curves = TrainingCurves()
    callbacks = [curves, ExactResume(), LastCheckpoint(folder), *([Stop(steps)] if steps else [])]
    runner = trainer(folder, *callbacks, max_epochs=3)
    with pytest.raises(SystemExit, match="143") if steps else nullcontext():
        runner.fit(module, Data(), ckpt_path=folder / "last.ckpt" if resume else None, weights_only=True)
    return module, runner, without_hours(curves.history)


@pytest.mark.parametrize("steps", [2, 8], ids=["in the warm-up", "in the second epoch"])
def test_a_run_that_is_stopped_and_resumed_equals_a_straight_one(tmp_path, steps):
    """10 images in batches of 2 are 5 steps an epoch."""
    straight, whole, history = run(tmp_path / "straight")
    run(tmp_path / "parts", steps)
    assert torch.load(tmp_path / "parts/last.ckpt", weights_only=True)["global_step"] == steps
    resumed, parts, again = run(tmp_path / "parts", resume=True)
    assert parts.global_step == whole.global_step == 15
    assert same(resumed.state_dict(), straight.state_dict())
    assert same(parts.optimizers[0].state_dict(), whole.optimizers[0].state_dict())
    assert again == history
    assert [{"train/loss", "val/box_ap"} <= row.keys() for row in history] == [True] * 3
    train = {name for name in whole.callback_metrics if name.startswith("train/")}
    assert train >= {"train/bbox_regression", "train/classification", "train/loss"}
    assert all(torch.equal(parts.callback_metrics[name], whole.callback_metrics[name]) for name in train)


@pytest.mark.parametrize(("decay_norms", "decays"), [(True, {1e-4}), (False, {0.0})])
def test_decay_of_biases_and_normalisation(tmp_path, decay_norms, decays):
    module = detector(decay_norms=decay_norms)
    module.trainer = trainer(tmp_path, fast_dev_run=True)  # without a schedule
    groups = module.configure_optimizers().param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    norms = {p for layer in module.modules() if isinstance(layer, nn.BatchNorm2d) for p in layer.parameters()}
    spared = norms | {p for name, p in module.named_parameters() if name.endswith("bias")}
    assert len(norms) > 60 < len(spared) - len(norms) + 60
    assert {decay.pop(id(p)) for p in spared} == decays
    assert set(decay.values()) == {1e-4}
    assert len(spared) + len(decay) == len(list(module.parameters()))


def refused(message, **options):
    with pytest.raises(InputError, match=message) as error:
        detector(**options)
    assert "\n" not in str(error.value)


def test_refused_when_built():
    with pytest.raises(InputError, match="num_classes and input_size are not known: give both, or data that says"):
        Detector("ssdlite")
    refused("num_classes and input_size are not known", num_classes=None)
    refused("has no option widht", network_args={**SMALL, "widht": 2})
    refused("no network is called 'mobilenet_v9'", network_args={"backbone": "mobilenet_v9"})
    refused("warmup_steps=-1 must not be negative", warmup_steps=-1)
    for factor in (0.0, -0.1, 1.5):
        refused(rf"warmup_factor={factor} must lie in \(0, 1\]", warmup_factor=factor)
    by_class = {"schedule": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1)}
    refused("warmup_steps=5 belong to the schedules by name: give them to", warmup_steps=5, **by_class)
    refused(r"drop_epochs=\(1, 2\) go with schedule='steps', .* got schedule='cosine'", drop_epochs=(1, 2))
    refused(r"drop_epochs=\(\) go with schedule='steps', and it with them; got", schedule="steps")


def test_a_classifier_is_no_detector():
    remedy = "but ssdlite, fasterrcnn, maskrcnn: give it as --model.network_args.backbone resnet18"
    refused(f"no detector is called 'resnet18', {remedy}", network="resnet18", network_args=None)
    refused("no detector is called 'ssdlight', but ssdlite, fasterrcnn, maskrcnn", network="ssdlight")


@pytest.mark.parametrize(
    ("message", "options", "data", "limits"),
    [
        ("num_classes=4, the data have 91: drop num_classes", {}, {"num_classes": 91}, {}),
        (r"come without: give --data\.masks true", {"network": "maskrcnn"}, {}, {}),
        ("has 10 steps: take fewer of --model.warmup_steps 10", {"warmup_steps": 10}, {}, {"max_epochs": 2}),
        (r"ends with the run: give --trainer\.max_epochs", {}, {}, {"max_epochs": -1}),
    ],
    ids=["classes", "masks", "warm-up", "endless"],
)
def test_refused_before_training(tmp_path, message, options, data, limits):
    class Never(Callback):
        def on_train_batch_start(self, *args):
            pytest.fail("trained")

    runner = trainer(tmp_path, Never(), enable_checkpointing=False, **limits)
    with pytest.raises(InputError, match=message):
        runner.fit(detector(**options), datamodule=Data(**data))


def test_a_number_of_epochs_is_refused_before_a_run_where_it_is_known():
    module = detector(warmup_steps=10)
    module.check_epochs(-1, 5)  # max_steps may end it
    module.check_epochs(2, None)
    module.check_epochs(3, 5)
    with pytest.raises(InputError, match="has 10 steps: take fewer of"):
        module.check_epochs(2, 5)


def test_ssdlite_is_refused_one_image_in_a_step():
    detector("ssdlite").check_share(2)
    detector("fasterrcnn").check_share(1)
    with pytest.raises(InputError, match="each device gets at least 2"):
        detector("ssdlite").check_share(1)


def test_thresholds_may_change_after_training_and_backbones_may_not():
    trained = {
        "method": "Detector",
        "state_dict": detector().state_dict(),
        "hyper_parameters": dict(detector().hparams),
    }
    other = {**SMALL, "score_thresh": 0.3, "pretrained": False}
    detector(network_args=other).on_load_checkpoint(trained)
    with pytest.raises(InputError, match=r"was trained with network_args=.*this model has"):
        detector(network_args={**SMALL, "backbone_args": {"drop_rate": 0.1}}).on_load_checkpoint(trained)


def test_masks_are_asked_for_by_networks_that_predict_them(tmp_path):
    for name, masks in (("maskrcnn", True), ("ssdlite", False), ("ssdlite", True)):
        module = detector(name)
        module.trainer = trainer(tmp_path, enable_checkpointing=False)
        module.trainer.datamodule = Data(masks=masks)
        module.setup("fit")
        assert module.masks == (name == "maskrcnn")
