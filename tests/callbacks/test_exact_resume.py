"""A run that is stopped and resumed ends bit for bit as the run that was not."""

import shutil
from contextlib import nullcontext

import pytest
import torch
from pytorch_lightning import Callback, Trainer, seed_everything
from pytorch_lightning.callbacks import ModelCheckpoint
from runs import Stop, same, without_hours
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from callbacks import ExactResume, LastCheckpoint, TrainingCurves
from datamodules import Digits
from datamodules.images import Images
from lightning_modules import Classifier


class AugmentedDigits(Digits):
    """Digits with crops and flips, whose randomness must be resumed too."""

    def setup(self, stage=None):
        super().setup(stage)
        images, labels = self.train_set.crops[:200, :, 0, 0], self.train_set.labels[:200]
        self.train_set = Images(images, labels, (4.9,), (6.0,), crop_padding=1, flip=True)


class TorchLoaders(AugmentedDigits):
    """PyTorch's own loader, which shuffles by the global generator."""

    def train_dataloader(self):
        images = torch.tensor(self.train_set.crops[:, :, 1, 1]).float()
        return DataLoader(TensorDataset(images, torch.tensor(self.train_set.labels)), batch_size=32, shuffle=True)


def with_dropout():
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Dropout(0.5), nn.Linear(288, 10))


def run(folder, data, module=None, steps=None, resume=False, extra=(), **options):
    seed_everything(99 if resume else 3)
    module = module or Classifier(with_dropout(), 10, (1, 8, 8))
    curves = TrainingCurves()
    trainer = Trainer(
        default_root_dir=folder,
        callbacks=[curves, ExactResume(), LastCheckpoint(folder), *extra, *([Stop(steps)] if steps else [])],
        logger=False, enable_progress_bar=False, enable_model_summary=False, **{"max_epochs": 3, **options},
    )  # fmt: skip
    path = "last" if resume == "last" else folder / "last.ckpt" if resume else None
    stopped = pytest.raises(SystemExit, match="143") if steps else nullcontext()
    with stopped:
        trainer.fit(module, datamodule=data, ckpt_path=path, weights_only=True)
    return module, trainer, without_hours(curves.history)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("steps", [6, 8, 15], ids=["end of an epoch", "in the second epoch", "in the third epoch"])
def test_resumed_equals_uninterrupted(tmp_path, steps, workers):
    """200 samples in batches of 32 are 6 steps an epoch."""
    whole, trainer, history = run(tmp_path / "whole", AugmentedDigits(32))
    run(tmp_path / "parts", AugmentedDigits(32, workers), steps=steps)
    saved = torch.load(tmp_path / "parts/last.ckpt", weights_only=True)
    assert saved["global_step"] == steps
    parts, again, resumed = run(tmp_path / "parts", AugmentedDigits(32, workers), resume=True)
    assert again.global_step == trainer.global_step == 18
    assert same(parts.state_dict(), whole.state_dict())
    assert same(again.optimizers[0].state_dict(), trainer.optimizers[0].state_dict())
    assert resumed == history
    assert [row["epoch"] for row in history] == [0, 1, 2]


@pytest.mark.parametrize(
    ("steps", "options"),
    [
        (4, {"accumulate_grad_batches": 2, "max_epochs": 2}),
        (8, {"val_check_interval": 2}),
        (8, {"val_check_interval": 0.5}),
        (9, {"check_val_every_n_epoch": 2}),
        (6, {"limit_train_batches": 4}),
    ],
    ids=str,
)
def test_with_other_loops_too(tmp_path, steps, options):
    whole, trainer, history = run(tmp_path / "whole", AugmentedDigits(32), **options)
    run(tmp_path / "parts", AugmentedDigits(32), steps=steps, **options)
    parts, again, resumed = run(tmp_path / "parts", AugmentedDigits(32), resume=True, **options)
    assert again.global_step == trainer.global_step
    assert same(parts.state_dict(), whole.state_dict())
    assert resumed == history


def test_resumed_twice(tmp_path):
    whole, _, history = run(tmp_path / "whole", AugmentedDigits(32))
    run(tmp_path / "parts", AugmentedDigits(32), steps=3)
    run(tmp_path / "parts", AugmentedDigits(32), steps=10, resume=True)
    parts, _, resumed = run(tmp_path / "parts", AugmentedDigits(32), resume=True)
    assert same(parts.state_dict(), whole.state_dict())
    assert resumed == history


def test_one_epoch_then_one_more_equals_two(tmp_path):
    """The cosine of two epochs begins as that of one; a resumed run takes the rates of its own."""
    whole, _, history = run(tmp_path / "whole", AugmentedDigits(32), max_epochs=2)
    run(tmp_path / "parts", AugmentedDigits(32), max_epochs=1)
    parts, _, resumed = run(tmp_path / "parts", AugmentedDigits(32), max_epochs=2, resume=True)
    assert same(parts.state_dict(), whole.state_dict())
    assert resumed == history


def test_pytorchs_own_loaders_go_on_at_an_epochs_end(tmp_path):
    whole, _, history = run(tmp_path / "whole", TorchLoaders(32))
    run(tmp_path / "parts", TorchLoaders(32), steps=7)
    parts, _, resumed = run(tmp_path / "parts", TorchLoaders(32), resume=True)
    assert same(parts.state_dict(), whole.state_dict())
    assert resumed == history


@pytest.mark.parametrize("options", [{"val_check_interval": 3}, {"check_val_every_n_epoch": 2}], ids=str)
def test_from_a_checkpoint_that_validation_wrote(tmp_path, options):
    """Lightning saves it before it resets the metrics of that validation."""

    def best(folder):
        return ModelCheckpoint(folder, "{step}", monitor="val/top1", mode="max", save_top_k=-1, **WITH_VALIDATION)

    extra, options = [best(tmp_path / "whole")], {"max_epochs": 4, **options}
    whole, _, history = run(tmp_path / "whole", AugmentedDigits(32), extra=extra, **options)
    for path in sorted((tmp_path / "whole").glob("step=*.ckpt")):
        shutil.copy(path, tmp_path / "whole/last.ckpt")
        parts, _, resumed = run(tmp_path / "whole", AugmentedDigits(32), resume=True, **options)
        assert same(parts.state_dict(), whole.state_dict())
        last = {name: value for name, value in resumed[-1].items() if name.startswith("val/")}
        assert last == {name: value for name, value in history[-1].items() if name.startswith("val/")}


WITH_VALIDATION = dict(save_on_train_epoch_end=False, enable_version_counter=False)


def test_with_a_loss_term(tmp_path):
    def module():
        torch.manual_seed(0)
        made = Classifier("conv2", 10, (1, 8, 8), {"width": 0.1})
        made.loss_terms["penalty"] = lambda batch, outputs: outputs.square().mean()
        return made

    whole, trainer, history = run(tmp_path / "whole", AugmentedDigits(32), module())
    run(tmp_path / "parts", AugmentedDigits(32), module(), steps=9)
    parts, again, resumed = run(tmp_path / "parts", AugmentedDigits(32), module(), resume=True)
    assert same(parts.state_dict(), whole.state_dict())
    assert resumed == history
    assert again.callback_metrics["train/penalty"] == trainer.callback_metrics["train/penalty"]


def test_a_run_that_max_steps_ends_inside_an_epoch(tmp_path):
    whole, _, history = run(tmp_path / "whole", AugmentedDigits(32))
    run(tmp_path / "parts", AugmentedDigits(32), max_steps=8)
    assert torch.load(tmp_path / "parts/last.ckpt", weights_only=True)["global_step"] == 8
    parts, _, resumed = run(tmp_path / "parts", AugmentedDigits(32), resume=True)
    assert same(parts.state_dict(), whole.state_dict())
    assert [row["train/loss"] for row in resumed] == [row["train/loss"] for row in history]


def test_the_best_checkpoint_of_a_folder_that_was_moved_stays_the_best(tmp_path):
    def best(folder):
        return ModelCheckpoint(folder, "best", monitor="val/top1", mode="max", **WITH_VALIDATION)

    run(tmp_path / "here", AugmentedDigits(32), extra=[best(tmp_path / "here")], max_epochs=2)
    (tmp_path / "here").rename(tmp_path / "there")
    kept = (tmp_path / "there/best.ckpt").read_bytes()
    callback = best(tmp_path / "there")
    run(tmp_path / "there", AugmentedDigits(32), resume=True, extra=[callback, Worse()])
    assert (tmp_path / "there/best.ckpt").read_bytes() == kept
    assert callback.best_model_path == str((tmp_path / "there/best.ckpt").resolve())


class Worse(Callback):
    """Spoils the network before it is validated."""

    def on_validation_start(self, trainer, pl_module):
        with torch.no_grad():
            pl_module.network[-1].weight.zero_()


def test_lightnings_own_last_is_found(tmp_path):
    whole, _, history = run(tmp_path / "whole", AugmentedDigits(32))
    run(tmp_path / "parts", AugmentedDigits(32), steps=8)
    parts, _, resumed = run(tmp_path / "parts", AugmentedDigits(32), resume="last")
    assert same(parts.state_dict(), whole.state_dict())
    assert resumed == history
