"""What a run may go on with, and what is refused before anything is touched."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

import frugal
from callbacks import ComplexityMonitor
from callbacks.folder import write_whole
from commands.resume import checkpoint_path
from commands.run_folder import copy_aside
from networks import InputError

CONFIG = """\
model:
  class_path: lightning_modules.Biprop
  init_args: {network: conv2, network_args: {width: 0.25}}
trainer: {max_epochs: 2, log_every_n_steps: 10, enable_progress_bar: false}
"""
LAST = Path("runs/small/seed0/checkpoints/last.ckpt")
RESUME = ("fit", "-c", "configs/small.yaml", "--ckpt_path", "last")


def run(*arguments):
    frugal.main([str(argument) for argument in arguments])


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    assert stop.value.code == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("frugal: error: ")
    return line.removeprefix("frugal: error: ")


def contents():
    return {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    (folder / "configs").mkdir()
    (folder / "configs/small.yaml").write_text(CONFIG)
    previous = Path.cwd()
    os.chdir(folder)
    run(*RESUME)  # there is nothing to resume yet: it begins, as Lightning's does
    os.chdir(previous)
    return folder


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")


def test_checkpoints_by_name_are_those_of_the_run(tmp_path):
    assert checkpoint_path(tmp_path, None) is None
    (tmp_path / "best.ckpt").touch()
    assert checkpoint_path(tmp_path, "best") == tmp_path / "best.ckpt"
    with pytest.raises(InputError, match="run `frugal fit` with this config first"):
        checkpoint_path(tmp_path, "last")


def test_a_run_that_is_done_is_left_as_it_is(here, capsys):
    before = contents()
    with pytest.raises(SystemExit) as stop:
        run(*RESUME)
    assert not stop.value.code
    line = refused(capsys, *RESUME, "--trainer.max_epochs", 1)
    assert (
        line == "runs/small/seed0 has 2 epochs, more than --trainer.max_epochs 1: rename it to begin anew, or give more"
    )
    assert contents() == before


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("data.batch_size", 64, "the run began with data.init_args.batch_size=32, now 64. It goes on as it began or"),
        ("model.label_smoothing", 0.1, "the run began with model.init_args.label_smoothing=0.0, now 0.1."),
        ("model.optimizer.lr", 0.01, "the run began with model.init_args.optimizer.init_args.lr=0.1, now 0.01."),
        ("model.keep_fraction", 0.1, "the run began with model.init_args.keep_fraction=0.5, now 0.1."),
        (
            "data",
            "CIFAR",
            "the run began with data.class_path=datamodules.Digits, now datamodules.CIFAR; data.init_args",
        ),
    ],
)
def test_another_model_or_other_data_are_refused(here, capsys, option, value, message):
    options = ["--model.optimizer", "torch.optim.SGD"] if "optimizer" in option else []
    before = contents()
    assert message in refused(capsys, *RESUME, "--trainer.max_epochs", 3, *options, f"--{option}", value)
    assert contents() == before


def test_more_epochs_and_more_workers_are_not_another_run(here):
    run(*RESUME, "--trainer.max_epochs", 3, "--data.num_workers", 1)
    assert torch.load(LAST, weights_only=True)["epoch"] == 2


def test_a_checkpoint_of_another_method(here, capsys):
    shutil.copy(LAST, "ticket.ckpt")
    options = ("--model", "Classifier", "--model.network", "conv2", "--model.network_args.width", 0.25)
    line = refused(capsys, "fit", *options, "--ckpt_path", "ticket.ckpt")
    assert line.startswith("ticket.ckpt: the checkpoint was trained by Biprop, not by Classifier; give the config")
    run("fit", *options, "--trainer.max_epochs", 1, "--model.initial_checkpoint", "ticket.ckpt",
        "--trainer.enable_progress_bar", "false")  # fmt: skip


def test_initial_weights_that_cannot_be_are_refused_before_anything_is_touched(here, capsys):
    torch.save({"a": torch.zeros(1)}, "other.pt")
    before = contents()
    fit = ("fit", "-c", "configs/small.yaml", "--model.initial_checkpoint")
    assert refused(capsys, *fit, "nowhere.ckpt") == (
        "initial_checkpoint: no file at nowhere.ckpt; it takes a checkpoint, a state_dict or safetensors"
    )
    assert "other.pt: none of its 1 tensors has a name and size" in refused(capsys, *fit, "other.pt")
    assert contents() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--model.warmup_epochs", 5],
            "the cosine schedule ends with trainer.max_epochs: give more than warmup_epochs=5",
        ),
        (["--data.batch_size", 5000], "data.batch_size=5000 is more than the 1257 samples to train"),
        (["--trainer.enable_checkpointing", "false"], "a run keeps last.ckpt and best.ckpt: leave --trainer.enable_ch"),
        (
            ["--model.initial_checkpoint", LAST],
            f"initial_checkpoint {LAST} lies in the folder that this run sets aside",
        ),
    ],
)
def test_refusals_come_before_the_earlier_run_is_set_aside(here, capsys, options, message):
    before = contents()
    assert refused(capsys, "fit", "-c", "configs/small.yaml", *options).startswith(message)
    assert contents() == before


def broken(*arguments):
    raise OSError("the disk is gone")


def test_a_start_that_fails_puts_the_earlier_run_back(here, capsys, monkeypatch):
    """Whatever refuses it, and however late: here a callback's setup, and what comes behind the sanity check."""
    before = contents()
    fit, options = ("fit", "-c", "configs/small.yaml"), ("--trainer.max_epochs", 3)
    ramp = ("--trainer.callbacks+=TemperatureAnnealing", "--trainer.callbacks.schedule=cosine",
            "--trainer.callbacks.end=0.1")  # fmt: skip
    line = refused(capsys, *fit, "--trainer.max_epochs", -1, *ramp, "--model.schedule", "constant")
    assert line.startswith("a cosine temperature ends with the run's last epoch")
    assert contents() == before
    with monkeypatch.context() as patch:
        patch.setattr(ComplexityMonitor, "on_train_start", broken)
        for arguments in (fit, RESUME):
            with pytest.raises(OSError, match="the disk is gone"):
                run(*arguments, *options)
            record = Path("runs/small/seed0/hparams.yaml")  # its logger writes it anew, on resuming too
            assert {**contents(), record: None} == {**before, record: None}
    run(*RESUME, *options)
    assert torch.load(LAST, weights_only=True)["epoch"] == 2


@pytest.mark.parametrize("name", ["val/acc", "val_top1", "top1"])
def test_a_monitor_that_nothing_logs_is_refused_before_training(here, capsys, name):
    before = contents()
    assert refused(capsys, "fit", "-c", "configs/small.yaml", "--checkpoint.monitor", name) == (
        f"ModelCheckpoint has the monitor {name}, which nothing logs: give one of val/loss, val/top1, val/top5 "
        "(--checkpoint.monitor NAME), or of training, train/..."
    )
    assert contents() == before


def test_a_score_of_training_can_be_the_monitor(here):
    run("fit", "-c", "configs/small.yaml", "--checkpoint.monitor", "train/top1", "--trainer.max_epochs", 1)
    assert (LAST.parent / "best.ckpt").is_file()


def test_what_a_run_cannot_go_on_without_is_there_at_any_moment(tmp_path, monkeypatch):
    """Resuming compares config.yaml: half of it would be another run."""
    path = tmp_path / "config.yaml"
    path.write_text("before")
    place = path.stat().st_ino
    assert copy_aside(path) == tmp_path / "config.yaml.1"
    assert path.stat().st_ino == place  # never renamed
    monkeypatch.setattr("os.replace", broken)
    with pytest.raises(OSError, match="the disk is gone"):
        write_whole(path, "after")
    assert path.read_text() == (tmp_path / "config.yaml.1").read_text() == "before"


def test_a_resume_that_fails_loses_nothing(here, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(ComplexityMonitor, "on_fit_start", broken)
        with pytest.raises(OSError, match="the disk is gone"):
            run(*RESUME, "--trainer.max_epochs", 3)
    assert json.loads(Path("runs/small/seed0/run.json").read_text())
    before = LAST.read_bytes()
    run("fit", "-c", "configs/small.yaml", "--trainer.max_epochs", 1)
    assert Path("runs/small/seed0.1/checkpoints/last.ckpt").read_bytes() == before


def test_a_single_callback_need_be_no_list(here):
    run("fit", "-c", "configs/small.yaml", "--trainer.max_epochs", 1, "--trainer.callbacks", "callbacks.ExactResume")


def test_one_wandb_run_for_all_of_a_run(here):
    """Offline: the folders of what is to be uploaded carry the id."""
    wandb = ("--trainer.logger", "WandbLogger", "--trainer.logger.offline", "true")

    def ids():
        import wandb

        wandb.finish()
        return {path.name.split("-")[-1] for path in Path("runs/small").glob("seed0/**/offline-run-*")}

    run("fit", "-c", "configs/small.yaml", "--trainer.max_epochs", 1, *wandb)
    (first,) = ids()
    assert json.loads(Path("runs/small/seed0/run.json").read_text())["wandb_id"] == first
    assert torch.load(LAST, weights_only=True)["wandb_id"] == first
    run(*RESUME, *wandb)
    run("test", "-c", "configs/small.yaml", *wandb)
    assert ids() == {first}
    assert json.loads(Path("runs/small/seed0/run.json").read_text())["wandb_id"] == first
    run("fit", "-c", "configs/small.yaml", "--trainer.max_epochs", 1, *wandb)
    (second,) = ids()
    assert second != first
