"""What every method shares: schedule, groups, loss terms, metrics, and refusals."""

import math

import numpy as np
import pytest
import torch
from pytorch_lightning import Callback, LightningDataModule, Trainer, seed_everything
from runs import Stop, without_hours
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from callbacks import ExactResume, LastCheckpoint, TrainingCurves
from datamodules import Digits
from lightning_modules import Biprop, Classifier
from lightning_modules.schedules import warmup_then
from networks import InputError


def learning_rates(schedule, epochs, warmup_epochs, rate, drop_epochs=()):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=rate)
    scheduler = warmup_then(schedule, optimizer, epochs, warmup_epochs, drop_epochs)
    rates = []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_cosine_of_the_cifar_recipe():
    rates = learning_rates("cosine", 250, 0, 0.1)
    expected = {0: 0.1, 50: 0.0904508, 125: 0.05, 200: 0.00954915, 249: 3.94779e-6}
    assert [rates[e] for e in expected] == pytest.approx(list(expected.values()), rel=1e-5)


def test_warmup_and_cosine_of_the_imagenet_recipe():
    rates = learning_rates("cosine", 120, 5, 0.256)
    expected = {0: 0.0512, 1: 0.1024, 4: 0.256, 5: 0.256, 60: 0.136735, 119: 4.77592e-5}
    assert [rates[e] for e in expected] == pytest.approx(list(expected.values()), rel=1e-5)


def test_steps_of_the_expert_binary_recipe():
    rates = learning_rates("steps", 75, 10, 1e-3, (40, 55, 65))
    expected = {
        0: 1e-4, 4: 5e-4, 9: 1e-3, 10: 1e-3, 39: 1e-3, 40: 1e-4, 54: 1e-4, 55: 1e-5, 64: 1e-5, 65: 1e-6, 74: 1e-6
    }  # fmt: skip
    assert [rates[e] for e in expected] == pytest.approx(list(expected.values()), rel=1e-9)
    whole = [1e-3 * (e + 1) / 10 for e in range(10)] + [1e-3] * 30 + [1e-4] * 15 + [1e-5] * 10 + [1e-6] * 10
    assert rates == pytest.approx(whole, rel=1e-9)
    assert learning_rates("steps", 4, 0, 1.0, (3, 1)) == pytest.approx([1, 0.1, 0.1, 0.01])  # in any order


@pytest.mark.parametrize("w", [1, 2, 7])
def test_every_epoch_follows_the_formula(w):
    cosine = [0.3 * (e + 1) / w if e < w else 0.15 * (1 + math.cos(math.pi * (e - w) / (20 - w))) for e in range(20)]
    assert learning_rates("cosine", 20, w, 0.3) == pytest.approx(cosine, rel=1e-9, abs=1e-15)
    assert learning_rates("constant", 20, w, 0.3) == pytest.approx([0.3 * min(1, (e + 1) / w) for e in range(20)])


def test_cosine_needs_to_know_its_end():
    with pytest.raises(InputError, match=r"trainer\.max_epochs: give more than warmup_epochs=5"):
        learning_rates("cosine", 5, 5, 0.1)


def small_classifier(**arguments):
    torch.manual_seed(0)
    return Classifier("conv2", 10, (1, 8, 8), **arguments)


def fit(module, tmp_path, data=None, **arguments):
    options = dict(max_epochs=1, limit_train_batches=2, limit_val_batches=1, logger=False, enable_progress_bar=False)
    trainer = Trainer(
        default_root_dir=tmp_path, enable_checkpointing=False, enable_model_summary=False, **{**options, **arguments}
    )
    trainer.fit(module, datamodule=data or Digits())
    return trainer


def test_optimizer_gets_what_is_trained_and_spares_what_must_not_decay(tmp_path):
    class Sparing(Classifier):
        def decays(self, name, parameter):
            return parameter.ndim > 1

    module = Sparing(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), 10, (1, 8, 8))
    decayed, spared = fit(module, tmp_path).optimizers[0].param_groups
    assert [p.shape for p in decayed["params"]] == [(10, 64)]
    assert decayed["weight_decay"] == 1e-4
    assert [p.shape for p in spared["params"]] == [(10,)]
    assert spared["weight_decay"] == 0


def test_biprop_optimizes_scores_and_nothing_else(tmp_path):
    module = Biprop("conv2", 10, (1, 8, 8), keep_fraction=0.3)
    weights = {name: p.clone() for name, p in module.named_parameters() if name.endswith("weight")}
    (group,) = fit(module, tmp_path).optimizers[0].param_groups
    scores = {name: p for name, p in module.named_parameters() if name.endswith("scores")}
    assert [id(p) for p in group["params"]] == [id(p) for p in scores.values()]
    assert len(scores) == 5
    assert all(torch.equal(module.get_parameter(name), value) for name, value in weights.items())


def test_plus_bn_trains_batch_norm_along(tmp_path):
    module = Biprop("conv2", 10, (1, 8, 8), {"activation": "sign"}, keep_fraction=0.3, train_bn=True)
    (group,) = fit(module, tmp_path).optimizers[0].param_groups
    assert len(group["params"]) == 5 + 2 * 4


def test_loss_terms_are_added_and_logged(tmp_path):
    module = small_classifier()
    seen = []
    module.loss_terms["penalty"] = lambda batch, outputs: seen.append(outputs.shape) or outputs.square().mean()
    logged = fit(module, tmp_path, limit_train_batches=1).callback_metrics
    batch = torch.randn(2, 1, 8, 8), torch.tensor([0, 1])
    module.log = lambda *args, **kwargs: None
    plain, penalty = module.criterion(module(batch[0]), batch[1]), module(batch[0]).square().mean()
    assert penalty > 1e-4
    assert torch.allclose(module.training_step(batch, 0) - plain, penalty, rtol=1e-3)
    assert logged["train/penalty"] > 0
    assert seen[0] == (32, 10)


class Uneven(LightningDataModule):
    """Seven samples in batches of three, to validate and to test."""

    num_classes, input_size = 10, (1, 8, 8)

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        images = torch.randn(7, 1, 8, 8, generator=generator)
        self.samples = TensorDataset(images, torch.randint(0, 10, (7,), generator=generator))

    def train_dataloader(self):
        return DataLoader(self.samples, batch_size=3)

    val_dataloader = test_dataloader = train_dataloader


def test_metrics_are_exact_over_uneven_batches(tmp_path):
    module, data = small_classifier(label_smoothing=0.1), Uneven()
    trainer = Trainer(default_root_dir=tmp_path, logger=False, enable_progress_bar=False, enable_model_summary=False)
    (logged,) = trainer.test(module, datamodule=data, verbose=False)
    images, labels = data.samples.tensors
    with torch.no_grad():
        logits = module.eval()(images)
    best = logits.topk(5).indices
    assert logged["test/loss"] == pytest.approx(
        nn.functional.cross_entropy(logits, labels, label_smoothing=0.1).item(), rel=1e-5
    )
    assert logged["test/top1"] == pytest.approx((best[:, 0] == labels).float().mean().item())
    assert logged["test/top5"] == pytest.approx((best == labels[:, None]).any(1).float().mean().item())


def test_refusals_come_before_training(tmp_path):
    with pytest.raises(InputError, match="num_classes and input_size are not known"):
        Classifier("conv2")
    with pytest.raises(InputError, match=r"no network is called 'resnet81'; did you mean .*resnet18"):
        Classifier("resnet81", 10, (3, 32, 32))
    with pytest.raises(InputError, match=r"conv2 cannot be built with {'widht': 2}: .*unexpected keyword"):
        Classifier("conv2", 10, (3, 32, 32), {"widht": 2})
    with pytest.raises(InputError, match="warmup_epochs=-1 must not be negative"):
        small_classifier(warmup_epochs=-1)
    with pytest.raises(InputError, match=r"label_smoothing=1.5 must lie in 0 to 1"):
        small_classifier(label_smoothing=1.5)
    with pytest.raises(InputError, match=r"drop_epochs=\(1, 2\) go with schedule='steps', .* got schedule='cosine'"):
        small_classifier(drop_epochs=(1, 2))
    with pytest.raises(InputError, match=r"drop_epochs=\(\) go with schedule='steps', and it with them; got"):
        small_classifier(schedule="steps")
    for alpha in (-0.1, math.inf, math.nan):
        with pytest.raises(InputError, match=r"mixup_alpha=.* must not be negative"):
            small_classifier(mixup_alpha=alpha)
    with pytest.raises(InputError, match="num_classes=5, the data have 10"):
        fit(Classifier("conv2", 5, (1, 8, 8)), tmp_path)
    with pytest.raises(InputError, match=r"outputs of size \(3,\), not \(10,\)"):
        fit(Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), 10, (1, 8, 8)), tmp_path)
    with pytest.raises(InputError, match="ResNet does not accept an input of 1x8000"):
        fit(Classifier("resnet18", 10, (1, 8000)), tmp_path)


def test_a_checkpoint_of_another_network_is_refused_in_one_line(tmp_path):
    trainer = fit(small_classifier(), tmp_path)
    trainer.save_checkpoint(tmp_path / "conv2.ckpt")
    other = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), 10, (1, 8, 8))
    trainer = Trainer(default_root_dir=tmp_path, logger=False, enable_progress_bar=False, max_epochs=1)
    with pytest.raises(
        InputError, match=r"another network than this Sequential: 2 tensors are missing, 5 unknown"
    ) as error:
        trainer.fit(other, datamodule=Digits(), ckpt_path=tmp_path / "conv2.ckpt", weights_only=True)
    assert "\n" not in str(error.value)


def test_load_from_checkpoint_rebuilds_the_ticket(tmp_path):
    module = Biprop("conv2", 10, (1, 8, 8), keep_fraction=0.3)
    trainer = fit(module, tmp_path)
    trainer.save_checkpoint(tmp_path / "ticket.ckpt")
    loaded = Biprop.load_from_checkpoint(tmp_path / "ticket.ckpt", weights_only=True)
    x = torch.randn(5, 1, 8, 8)
    assert torch.equal(loaded.eval()(x), module.eval()(x))
    assert loaded.network.linear[-1].keep_fraction == 0.3


def test_a_network_whose_output_is_no_single_tensor_is_left_to_its_module():
    class Two(nn.Module):
        def forward(self, x):
            return x, x

    assert Classifier(Two(), 10, (1, 8, 8)).num_classes == 10


def test_fast_dev_run_works_with_any_warmup(tmp_path):
    fit(small_classifier(warmup_epochs=5), tmp_path, fast_dev_run=True)


def test_a_fit_follows_the_steps(tmp_path):
    rates = []

    class Rates(Callback):
        def on_train_epoch_start(self, trainer, module):
            rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    module = small_classifier(schedule="steps", drop_epochs=(2, 3), warmup_epochs=2)
    fit(module, tmp_path, max_epochs=4, limit_train_batches=1, callbacks=[Rates()])
    assert rates == [pytest.approx([rate]) for rate in (0.05, 0.1, 0.01, 0.001)]


@pytest.fixture
def weights_drawn(monkeypatch):
    """What np.random.beta gives; numbers that are put into `given` come instead."""
    drawn, given, beta = [], [], np.random.beta

    def draw(a, b):
        drawn.append(given.pop(0) if given else beta(a, b))
        return drawn[-1]

    monkeypatch.setattr(np.random, "beta", draw)
    return drawn, given


def unlogged(**arguments):
    """A module outside any trainer."""
    module = small_classifier(**arguments)
    module.log = lambda *args, **kwargs: None
    return module


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixup_is_the_mean_of_two_losses_by_numpys_weight(weights_drawn, smoothing):
    module, drawn = unlogged(mixup_alpha=0.4, label_smoothing=smoothing), weights_drawn[0]
    seen = []
    module.loss_terms["term"] = lambda batch, outputs: seen.append((*batch, outputs)) or outputs.square().mean()
    x, a = torch.randn(8, 1, 8, 8), torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])
    b = a.flip(0)
    seed_everything(5)
    for _ in range(4):
        loss = module.training_step((x.clone(), a), 0)
        inputs, targets, outputs = seen[-1]
        weight = drawn[-1]
        assert torch.allclose(inputs, weight * x + (1 - weight) * x.flip(0), atol=1e-6)
        assert torch.allclose(targets, weight * F.one_hot(a, 10) + (1 - weight) * F.one_hot(b, 10).float(), atol=1e-6)
        assert torch.equal(outputs, module(inputs))
        two = [F.cross_entropy(outputs, labels, label_smoothing=smoothing) for labels in (a, b)]
        expected = weight * two[0] + (1 - weight) * two[1] + outputs.square().mean()
        assert torch.allclose(loss, expected, rtol=1e-5)
    assert len(set(drawn)) == 4
    seed_everything(5)
    module.training_step((x, a), 0)
    assert drawn[4] == drawn[0]


def test_a_beta_of_alpha_and_alpha_is_drawn_once_for_each_batch(monkeypatch):
    asked = []
    monkeypatch.setattr(np.random, "beta", lambda *args, **options: asked.append((args, options)) or 0.5)
    module = unlogged(mixup_alpha=0.2)
    for _ in range(3):
        module.training_step((torch.randn(4, 1, 8, 8), torch.arange(4)), 0)
    assert asked == [((0.2, 0.2), {})] * 3


def test_train_top1_goes_by_the_likelier_label(weights_drawn):
    module = unlogged(mixup_alpha=1.0)
    seen = []
    module.loss_terms["term"] = lambda batch, outputs: seen.append(outputs.argmax(-1)) or outputs.sum() * 0
    a, hits = torch.randint(0, 10, (64,)), 0
    weights_drawn[1].extend(weights := [0.7, 0.3, 0.9])
    for weight in weights:
        module.training_step((torch.randn(64, 1, 8, 8), a), 0)
        hits += (seen[-1] == (a if weight > 0.5 else a.flip(0))).sum().item()
    assert module.metrics["train/top1"].compute().item() == pytest.approx(hits / (3 * 64))
    assert hits > 0


def test_mixup_refuses_an_odd_number_of_samples(tmp_path):
    with pytest.raises(InputError, match=r"mixup pairs samples, and a device has 3 in a step: give a data"):
        fit(small_classifier(mixup_alpha=0.2), tmp_path, Uneven())


def test_mixup_is_of_training_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(np.random, "beta", lambda *args: pytest.fail("mixed"))
    quiet = dict(default_root_dir=tmp_path, logger=False, enable_progress_bar=False, enable_model_summary=False)
    results = []
    for alpha in (0.0, 0.2):
        trainer = Trainer(**quiet)
        results.append([*trainer.validate(small_classifier(mixup_alpha=alpha), datamodule=Uneven(), verbose=False)])
        results[-1] += trainer.test(small_classifier(mixup_alpha=alpha), datamodule=Uneven(), verbose=False)
    assert results[0] == results[1]
    assert set(results[0][0]) == {"val/loss", "val/top1", "val/top5"}


@pytest.mark.parametrize("step", [6, 8])  # at the end of an epoch, and inside the next
def test_a_resumed_run_mixes_as_one_that_was_not_interrupted(tmp_path, weights_drawn, step):
    drawn, _ = weights_drawn

    def run(folder, *stop, resume=False):
        seed_everything(3)
        curves = TrainingCurves()
        module = Classifier("conv2", 10, (1, 8, 8), {"width": 0.1}, mixup_alpha=0.3)
        trainer = Trainer(
            max_epochs=3, limit_train_batches=6, default_root_dir=folder, logger=False, enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[ExactResume(), LastCheckpoint(folder / "checkpoints"), curves, *stop],
        )  # fmt: skip
        path = folder / "checkpoints/last.ckpt" if resume else None
        with pytest.raises(SystemExit) if stop else torch.enable_grad():
            trainer.fit(module, Digits(), ckpt_path=path, weights_only=True)
        return module.state_dict(), without_hours(curves.history)

    weights, rows = run(tmp_path / "whole")
    whole = drawn[:]
    assert len(set(whole)) == 18
    assert len(rows) == 3
    assert {"train/loss", "train/top1", "val/top1"} <= rows[0].keys()
    drawn.clear()
    run(tmp_path / "parts", Stop(step))
    assert len(drawn) == step
    again, same = run(tmp_path / "parts", resume=True)
    assert drawn == whole
    assert same == rows
    assert weights.keys() == again.keys()
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_means_are_exact_over_uneven_batches(tmp_path):
    class Means(Classifier):
        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            self.log_mean("val/mean", batch[0].mean((1, 2, 3)))

    torch.manual_seed(0)
    module, data = Means("conv2", 10, (1, 8, 8)), Uneven()
    module.loss_terms["first"] = lambda batch, outputs: batch[0][0].mean()  # one number for a batch
    logged = fit(module, tmp_path, data, limit_train_batches=1.0, limit_val_batches=1.0).callback_metrics
    means = data.samples.tensors[0].mean((1, 2, 3))
    assert logged["val/mean"].item() == pytest.approx(means.mean().item(), rel=1e-5)
    expected = (3 * means[0] + 3 * means[3] + means[6]) / 7
    assert logged["train/first"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert abs(expected - (means[0] + means[3] + means[6]) / 3) > 1e-3
    assert set(module.means) == {"train/first", "val/mean"}
    assert not any(name.startswith("means") for name in module.state_dict())
