"""Every method: two epochs straight equal those of a run that was stopped and resumed, bit for bit."""

from contextlib import nullcontext

import pytest
from methods import METHODS, build, build_callbacks, write_teacher
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.loggers import CSVLogger
from runs import Stop, result, same

from callbacks import ExactResume, LastCheckpoint, TrainingCurves
from datamodules import Digits


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    """Nothing is drawn here: tests/callbacks looks at the pictures."""
    monkeypatch.chdir(tmp_path)
    for callback in ("curves", "layer_monitor", "sampling_map"):
        monkeypatch.setattr(f"callbacks.{callback}.draw", lambda *args: None)


def run(folder, name, stop=None, resume=False):
    """Two epochs of four steps; or as far as they come."""
    seed_everything(99 if resume else 3)
    last = LastCheckpoint(folder)
    trainer = Trainer(
        max_epochs=2, limit_train_batches=4, limit_val_batches=2, num_sanity_val_steps=1, default_root_dir=folder,
        callbacks=[*build_callbacks(name), ExactResume(), TrainingCurves(), last, *([Stop(stop)] if stop else [])],
        logger=CSVLogger(folder, "", ""), enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    path = folder / "last.ckpt" if resume else None
    with pytest.raises(SystemExit, match="143") if stop else nullcontext():
        trainer.fit(build(name), datamodule=Digits(16), ckpt_path=path, weights_only=True)
    return result(folder / "last.ckpt")


@pytest.mark.parametrize("name", METHODS)
def test_a_run_that_was_stopped_twice_ends_as_the_one_that_was_not(tmp_path, name):
    """Inside the first epoch, and at its end."""
    write_teacher(tmp_path)
    whole = run(tmp_path / "whole", name)
    assert whole["global_step"] == 8
    parts = run(tmp_path / "parts", name, stop=3)
    assert parts["global_step"] == 3
    once = run(tmp_path / "parts", name, stop=4, resume=True)
    assert once["global_step"] == 4
    assert not same(once["state_dict"], whole["state_dict"])
    parts = run(tmp_path / "parts", name, resume=True)
    for part in whole:
        assert same(parts[part], whole[part]), part
