"""The command from end to end: fit, validate, test and predict on the embedded digits."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import frugal
from lightning_modules import Biprop
from networks.biprop.selection import kept_count

CONFIG = """\
model:
  class_path: lightning_modules.Biprop
  init_args:
    network: conv2
    network_args: {width: 0.25}
    keep_fraction: 0.5
data:
  class_path: datamodules.Digits
trainer:
  max_epochs: 3
  log_every_n_steps: 10
  enable_progress_bar: false
"""
ROOT = Path(__file__).parent.parent.parent
CHECKPOINTS = "runs/small/seed0/checkpoints"


def run(*arguments):
    frugal.main([str(argument) for argument in arguments])


def refused(capsys, *arguments):
    """What a refused command prints, which is one line, and its exit status."""
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("frugal: error: ")
    return line, stop.value.code


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a config and its finished run."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "configs").mkdir()
    (folder / "configs/small.yaml").write_text(CONFIG)
    previous = os.getcwd()
    os.chdir(folder)
    run("fit", "-c", "configs/small.yaml")
    os.chdir(previous)
    return folder


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    """A fresh copy of that folder as the working directory."""
    shutil.copytree(trained, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_fit_leaves_everything_in_the_folder_that_config_and_seed_name(here):
    files = {path.relative_to(here).as_posix() for path in here.rglob("*") if path.is_file()}
    run_files = {"config.yaml", "cost.csv", "curves.png", "hparams.yaml", "layers.png", "metrics.csv", "run.json"}
    expected = {f"runs/small/seed0/{name}" for name in run_files} | {
        f"{CHECKPOINTS}/best.ckpt",
        f"{CHECKPOINTS}/last.ckpt",
    }
    assert files == expected | {"configs/small.yaml", "runs/small/.seed0.lock"}
    metrics = read_csv("runs/small/seed0/metrics.csv")
    assert [int(row["epoch"]) for row in metrics if row["val/top1"]] == [0, 1, 2]
    assert float(metrics[0]["cost/params"]) == sum(int(row["params"]) for row in read_csv("runs/small/seed0/cost.csv"))
    history = torch.load(f"{CHECKPOINTS}/last.ckpt", weights_only=True)["callbacks"]["TrainingCurves"]["history"]
    assert [row["val/top1"] for row in history] == [float(row["val/top1"]) for row in metrics if row["val/top1"]]
    assert all({"train/loss", "val/loss", "train/top1"} <= row.keys() for row in history)
    assert float([row for row in metrics if row["val/top1"]][-1]["val/top1"]) > 0.8
    assert torch.load(f"{CHECKPOINTS}/last.ckpt", weights_only=True)["epoch"] == 2


def test_the_record_reproduces_the_run_and_names_versions_and_commit(here):
    record = json.loads((here / "runs/small/seed0/run.json").read_text())
    assert record["versions"]["torch"] == torch.__version__.split("+")[0]
    assert record["command"][0] == Path(sys.argv[0]).name  # results are published: no folder of this machine
    assert set(record) == {"command", "commit", "uncommitted_changes", "versions", "hardware", "wandb_id"}
    config = yaml.safe_load((here / "runs/small/seed0/config.yaml").read_text())
    assert config["model"]["init_args"]["keep_fraction"] == 0.5
    assert config["model"]["init_args"]["optimizer"]["class_path"] == "torch.optim.SGD"
    first = (here / "runs/small/seed0/metrics.csv").read_text()
    run("fit", "-c", "runs/small/seed0/config.yaml")
    assert (here / "runs/small/seed0/metrics.csv").read_text() == first
    assert (here / "runs/small/seed0.1/metrics.csv").read_text() == first  # the earlier run was set aside
    run("test", "-c", "runs/small/seed0/config.yaml")
    assert (here / "runs/small/seed0/metrics.csv").read_text() == first
    tested = (here / "runs/small/seed0/test/metrics.csv").read_text()
    run("test", "-c", "configs/small.yaml")
    assert (here / "runs/small/seed0/test/metrics.csv").read_text() == tested
    run("count", "-c", "runs/small/seed0/config.yaml")
    run("fit", "-c", "runs/small/seed0/config.yaml", "--seed_everything", 1, "--trainer.max_epochs", 1)
    assert (here / "runs/small/seed1/checkpoints/last.ckpt").exists()


def test_test_and_validate_take_the_last_checkpoint_and_leave_the_training_record(here):
    before = (here / "runs/small/seed0/metrics.csv").read_text()
    run("test", "-c", "configs/small.yaml")
    (row,) = read_csv("runs/small/seed0/test/metrics.csv")
    assert float(row["test/top1"]) > 0.8
    run("validate", "-c", "configs/small.yaml", "--ckpt_path", "best")
    (row,) = read_csv("runs/small/seed0/validate/metrics.csv")
    assert float(row["val/top1"]) == max(
        float(r["val/top1"]) for r in read_csv("runs/small/seed0/metrics.csv") if r["val/top1"]
    )
    assert (here / "runs/small/seed0/metrics.csv").read_text() == before


def test_predict_writes_labels_and_probabilities(here):
    run("predict", "-c", "configs/small.yaml")
    run("test", "-c", "configs/small.yaml")
    rows = read_csv("runs/small/seed0/predict/predictions.csv")
    assert [int(row["index"]) for row in rows] == list(range(360))
    for row in rows:
        probabilities = {name[2:-1]: float(value) for name, value in row.items() if name.startswith("p(")}
        assert list(probabilities) == list("0123456789")
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-4)
        assert row["predicted"] == max(probabilities, key=probabilities.__getitem__)
    (tested,) = read_csv("runs/small/seed0/test/metrics.csv")
    assert sum(row["label"] == row["predicted"] for row in rows) / 360 == pytest.approx(float(tested["test/top1"]))


def test_two_processes_predict_each_sample_once(here):
    """Through a real process each: 360 samples and 2 processes make batches of which the last differ in size.

    One run for both in W&B.
    """
    two = {"accelerator": "cpu", "devices": "2", "strategy": "ddp"}
    options = ["--data.batch_size", "34", *(f"--trainer.{name}={value}" for name, value in two.items())]
    run("predict", "-c", "configs/small.yaml")
    expected = read_csv("runs/small/seed0/predict/predictions.csv")
    options += ["--trainer.logger", "WandbLogger", "--trainer.logger.offline", "true"]
    command = [sys.executable, "-m", "frugal", "predict", "-c", "configs/small.yaml", *options]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    rows = read_csv("runs/small/seed0/predict/predictions.csv")
    assert [row["index"] for row in rows] == [row["index"] for row in expected]
    assert [row["predicted"] for row in rows] == [row["predicted"] for row in expected]
    assert len(list(Path("runs").rglob("offline-run-*/run-*.wandb"))) == 1


def test_a_run_that_is_not_finished_is_scored_with_a_warning(here):
    with pytest.warns(UserWarning, match=r"last\.ckpt has 3 of 5 epochs: .* --ckpt_path last"):
        run("test", "-c", "configs/small.yaml", "--trainer.max_epochs", 5)


def test_weights_as_built_can_be_tested_on_request(here):
    run("test", "-c", "configs/small.yaml", "--ckpt_path", "null")
    (row,) = read_csv("runs/small/seed0/test/metrics.csv")
    assert float(row["test/top1"]) < 0.4


def test_resuming_continues_the_curves_and_keeps_the_metrics(here):
    before = (here / "runs/small/seed0/metrics.csv").read_text()
    run("fit", "-c", "configs/small.yaml", "--ckpt_path", "last", "--trainer.max_epochs", 4)
    checkpoint = torch.load(f"{CHECKPOINTS}/last.ckpt", weights_only=True)
    assert checkpoint["epoch"] == 3
    assert [row["epoch"] for row in checkpoint["callbacks"]["TrainingCurves"]["history"]] == [0, 1, 2, 3]
    assert (here / "runs/small/seed0/metrics.csv.1").read_text() == before


def test_resuming_from_elsewhere_sets_the_whole_run_aside(here):
    before = (here / CHECKPOINTS / "last.ckpt").read_bytes()
    shutil.copy(here / CHECKPOINTS / "best.ckpt", here / "other.ckpt")
    run("fit", "-c", "configs/small.yaml", "--ckpt_path", "other.ckpt")
    assert (here / "runs/small/seed0.1/checkpoints/last.ckpt").read_bytes() == before


def test_a_folder_that_the_user_names_is_never_renamed(here, capsys):
    options = ("-c", "configs/small.yaml", "--trainer.max_epochs", 1, "--trainer.default_root_dir", ".")
    run("fit", *options)
    before = contents(here)
    line, code = refused(capsys, "fit", *options)
    assert (line, code) == ("frugal: error: . holds a run: --ckpt_path last resumes it, or give another folder", 1)
    assert contents(here) == before


def test_the_last_checkpoint_is_of_the_last_epoch_however_rare_validation_is(here):
    run("fit", "-c", "configs/small.yaml", "--trainer.check_val_every_n_epoch", 2)
    checkpoint = torch.load(f"{CHECKPOINTS}/last.ckpt", weights_only=True)
    assert checkpoint["epoch"] == 2
    assert [row["epoch"] for row in checkpoint["callbacks"]["TrainingCurves"]["history"]] == [0, 1, 2]


def test_a_trained_ticket_loads_in_python(here):
    module = Biprop.load_from_checkpoint(f"{CHECKPOINTS}/last.ckpt", weights_only=True)
    assert module.network.linear[-1].keep_fraction == 0.5
    assert module.num_classes == 10


def test_count_of_a_config_agrees_with_the_run(here, capsys):
    run("count", "-c", "configs/small.yaml", "--json")
    report = json.loads(capsys.readouterr().out)
    assert report["params"] == sum(int(row["params"]) for row in read_csv("runs/small/seed0/cost.csv"))
    run("count", "-c", "configs/small.yaml", "--model.keep_fraction", "1.0", "--json")
    assert json.loads(capsys.readouterr().out)["params"] == report["dense_params"]


def test_overlays_and_includes(here, capsys):
    (here / "overlay.yaml").write_text("model:\n  init_args:\n    keep_fraction: 0.2\n")
    (here / "row.yaml").write_text("config: configs/small.yaml\nmodel.init_args.keep_fraction: 0.2\n")
    reports = []
    for configs in (["-c", "configs/small.yaml", "-c", "overlay.yaml"], ["-c", "row.yaml"]):
        run("count", *configs, "--json")
        reports.append(json.loads(capsys.readouterr().out))
    assert reports[0] == reports[1]
    assert reports[0]["params"] == sum(kept_count(0.2, layer["dense_params"]) for layer in reports[0]["layers"])


def test_wandb_by_one_line_and_offline(here):
    run("fit", "-c", "configs/small.yaml", "--trainer.max_epochs", 1, "--trainer.logger", "WandbLogger",
        "--trainer.logger.offline", "true")  # fmt: skip
    sys.modules["wandb"].finish()
    folder = here / "runs/small/seed0"
    assert list(folder.glob("wandb/offline-run-*/run-*.wandb"))
    assert (folder / "config.yaml").exists()
    assert not (here / "config.yaml").exists()
    assert not (here / "wandb").exists()


def test_users_own_classes_in_the_working_directory(here):
    (here / "my_own.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "from torch.utils.data import DataLoader, TensorDataset\n"
        "from pytorch_lightning import LightningDataModule, LightningModule\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self, hidden: int = 8):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))\n"
        "class Noise(LightningDataModule):\n"
        "    def train_dataloader(self):\n"
        "        return DataLoader(TensorDataset(torch.randn(8, 3)), batch_size=4)\n"
        "class Mean(LightningModule):\n"
        "    def __init__(self, size: int = 3):\n"
        "        super().__init__()\n"
        "        self.mean = nn.Parameter(torch.zeros(size))\n"
        "    def training_step(self, batch):\n"
        "        return (batch[0] - self.mean).square().mean()\n"
        "    def configure_optimizers(self):\n"
        "        return torch.optim.SGD(self.parameters(), lr=0.1)\n"
    )
    quick = ("--trainer.max_epochs", 1, "--trainer.enable_progress_bar", "false")
    run("fit", "--model", "Biprop", "--model.network", "my_own.Net", "--model.network_args.hidden", 16, *quick)
    assert read_csv("runs/unnamed/seed0/cost.csv")[0]["dense_params"] == str(64 * 16)
    with pytest.warns(UserWarning, match="Mean has no `network` and `input_size`"):
        run("fit", "--model", "my_own.Mean", "--data", "my_own.Noise", "--checkpoint.monitor", "null", *quick)
    run("fit", "--model", "Biprop", "--model.network", "conv2", "--trainer.fast_dev_run", "true")
    assert not (here / "checkpoints").exists()
    assert not (here / "runs/unnamed/seed0.2").exists()  # a trial run sets nothing aside
