"""Folds of one config, and what is written about them."""

import csv
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import wandb

import datamodules
import frugal
from commands import cross_validate, seeds
from datamodules import Digits
from datamodules.images import Images

CONFIG = """\
model:
  class_path: lightning_modules.Epitome
  init_args: {network: conv2, network_args: {width: 0.1}, rules: 0.5}
data: {class_path: datamodules.Folded, init_args: {batch_size: 8}}
trainer: {max_epochs: 1, log_every_n_steps: 10, enable_progress_bar: false}
"""


class Folded(Digits):
    """60 images in three folds, of which nothing validates."""

    folds = 3

    def __init__(self, batch_size: int = 8, num_workers: int = 0, test_fold: int = 1, validates: bool = False) -> None:
        super().__init__(batch_size, num_workers)
        self.test_fold, self.validates = test_fold, validates

    def setup(self, stage=None):
        rng = np.random.default_rng(0)
        images, labels = rng.integers(0, 17, (60, 1, 8, 8), dtype=np.uint8), np.arange(60) % 10
        fold = np.arange(60) % 3 + 1
        self.train_set, self.test_set = (
            Images(images[part], labels[part], (8.0,), (5.0,))
            for part in (fold != self.test_fold, fold == self.test_fold)
        )

    def val_dataloader(self):
        return []


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Commands run in this process here, to be quick."""
    monkeypatch.chdir(tmp_path)
    Path("configs").mkdir()
    Path("configs/small.yaml").write_text(CONFIG)
    monkeypatch.setattr(datamodules, "Folded", Folded, raising=False)
    monkeypatch.setenv("WANDB_RUN_GROUP", "")  # to be put back, for the command sets it
    monkeypatch.delenv("WANDB_RUN_GROUP")
    calls = []

    def process(*arguments):
        calls.append((arguments[0], os.environ.get("WANDB_RUN_GROUP")))
        try:
            frugal.main(list(arguments))
        except SystemExit as stop:
            return stop.code or 0
        finally:
            wandb.finish()  # as a process of its own would
        return 0

    monkeypatch.setattr(seeds, "process", process)
    yield calls
    wandb.teardown()  # it remembers the group of its first run


COMMAND = ["cross-validate", "-c", "configs/small.yaml", "--seed_everything", "4"]


def test_every_fold_is_tested_once(here, capsys):
    frugal.main(COMMAND)
    assert here == [(what, "small/seed4") for _ in range(3) for what in ("fit", "test", "predict")]
    result = json.loads(Path("results/small_folds_seed4.json").read_text())
    assert (result["folds"], result["seeds"], result["overrides"]) == ([1, 2, 3], [4], [])
    top1 = []
    counts = np.zeros((10, 10), int)
    for fold, run in zip((1, 2, 3), result["runs"], strict=True):
        folder = Path(f"runs/small/fold{fold}/seed4")
        assert (run["fold"], run["seed"]) == (fold, 4)
        assert "test_fold: " + str(fold) in (folder / "config.yaml").read_text()
        assert not (folder / "checkpoints/best.ckpt").exists()
        assert run["metrics"] == json.loads((folder / "test/metrics.json").read_text())
        with open(folder / "predict/predictions.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 20
        for row in rows:
            counts[int(row["label"]), int(row["predicted"])] += 1
        top1.append(sum(row["label"] == row["predicted"] for row in rows) / 20)
    assert result["metrics"]["test/top1"] == {**seeds.spread(top1), "values": pytest.approx(top1)} | {
        "mean": pytest.approx(np.mean(top1)), "standard_error": pytest.approx(np.std(top1, ddof=1) / 3**0.5)
    }  # fmt: skip
    assert result["confusion"] == counts.tolist()
    assert counts.sum(1).tolist() == [6] * 10
    assert result["classes"] == [str(digit) for digit in range(10)]
    assert Path("runs/small/confusion_seed4.png").read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert "fold 3" in shown
    assert f"{np.mean(top1):.4f}" in shown


def test_the_same_command_goes_on_where_it_was(here, monkeypatch):
    process, stopped = seeds.process, []

    def stops(*arguments):
        if arguments[0] == "fit" and "2" in arguments and not stopped:
            stopped.append(True)
            Path("runs/small/fold2/seed4").mkdir(parents=True)
            Path("runs/small/fold2/seed4/run.json").write_text("{}")  # before the first checkpoint
            return 143
        return process(*arguments)

    monkeypatch.setattr(seeds, "process", stops)
    with pytest.raises(SystemExit) as stop:
        frugal.main(COMMAND)
    assert stop.value.code == 143
    first = Path("runs/small/fold1/seed4/checkpoints/last.ckpt")
    before = first.stat().st_mtime_ns
    assert not Path("results").exists()
    frugal.main(COMMAND)
    assert first.stat().st_mtime_ns == before
    assert Path("runs/small/fold2/seed4.1/run.json").read_text() == "{}"
    assert len(json.loads(Path("results/small_folds_seed4.json").read_text())["runs"]) == 3


def test_a_run_of_another_process_is_not_renamed(here, capsys):
    folder = Path("runs/small/fold1/seed4")
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    hold = "import sys; from pathlib import Path; from commands.run_folder import lock; held = lock(Path(sys.argv[1])); print(1, flush=True); input()"  # fmt: skip # noqa: E501
    root = Path(cross_validate.__file__).parent.parent
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(folder.absolute())], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        with pytest.raises(SystemExit):
            frugal.main(COMMAND)
        other.stdin.close()
    assert "another process is training in" in capsys.readouterr().err
    assert (folder / "run.json").exists()


def test_folds_and_their_summary_are_one_group_in_wandb(here, monkeypatch):
    logged = []

    class Run:
        def __init__(self, **options):
            self.options, self.summary, self.images = options, {}, {}
            logged.append(self)

        def __enter__(self):
            return self

        def __exit__(self, *args):
            return None

        def log(self, values):
            self.images = values

    real = wandb.init

    @functools.wraps(real)  # the parser asks it what a WandbLogger takes
    def init(*args, **options):
        return Run(**options) if options.get("job_type") == "cross-validation" else real(*args, **options)

    monkeypatch.setattr(wandb, "init", init)
    logger = [
        "--trainer.logger",
        "WandbLogger",
        "--trainer.logger.project",
        "sounds",
        "--trainer.logger.offline",
        "true",
    ]
    frugal.main([*COMMAND, *logger])
    frugal.main([*COMMAND, *logger])
    summary, again = logged
    assert summary.options["id"] == again.options["id"]
    assert {key: summary.options[key] for key in ("project", "group", "mode")} == {
        "project": "sounds", "group": "small/seed4", "mode": "offline",
    }  # fmt: skip
    top1 = json.loads(Path("results/small_folds_seed4.json").read_text())["metrics"]["test/top1"]
    assert summary.summary["test/top1 (mean)"] == top1["mean"]
    assert summary.summary["test/top1 (standard error)"] == top1["standard_error"]
    assert list(summary.images) == ["confusion"]
    assert {group for _, group in here} == {"small/seed4"}


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--data.test_fold", "2"], 2, "--data.test_fold is chosen for each fold: leave it out"),
        (["--ckpt_path=last"], 2, "--ckpt_path is chosen for each fold: leave it out"),
        (["--data", "Digits"], 1, "Digits has no folds to validate across: datamodules.ESC50 has"),
        (["--model.rules", "2"], 1, "multiplier=2.0"),
        (["--data.validates", "true"], 1, "data.val_fold would be the test fold of one run: leave it out"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(here, capsys, arguments, status, message):
    with pytest.raises(SystemExit) as stop:
        frugal.main([*COMMAND, *arguments])
    assert stop.value.code == status
    assert message in capsys.readouterr().err
    assert not here
    assert not Path("runs").exists()


def test_confusion_of_files(tmp_path):
    for i, rows in enumerate((["a,b", "b,b"], ["a,a", "a,b"])):
        (tmp_path / f"{i}.csv").write_text(
            "index,label,predicted,p(a),p(b)\n" + "".join(f"{k},{row},0.5,0.5\n" for k, row in enumerate(rows))
        )
    classes, counts = cross_validate.confusion([tmp_path / "0.csv", tmp_path / "1.csv"])
    assert classes == ["a", "b"]
    assert counts.tolist() == [[1, 2], [0, 1]]
