"""Bad input: the right exit status, one line that names the thing and the remedy, and nothing lost."""

import os
import shlex
import shutil

import pytest

import frugal

BARS = ("listing", "resampling")  # of progress
CONFIG = """\
model:
  class_path: lightning_modules.Biprop
  init_args:
    network: conv2
    network_args: {width: 0.125}
    keep_fraction: 0.5
trainer:
  max_epochs: 1
  limit_train_batches: 4
  limit_val_batches: 1
  log_every_n_steps: 1
  enable_progress_bar: false
"""


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder with a config, its run, the ticket in that, and a result."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "small.yaml").write_text(CONFIG)
    (folder / "results").mkdir()
    (folder / "results/small.json").write_text("{}")
    previous = os.getcwd()
    os.chdir(folder)
    frugal.main(["fit", "-c", "small.yaml"])
    frugal.main(["export", "runs/small/seed0/checkpoints/last.ckpt", "--ticket", "ticket.safetensors"])
    os.chdir(previous)
    return folder


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    """A fresh copy of that folder as the working directory, where data are looked for too."""
    shutil.copytree(trained, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.delenv("FRUGAL_DATA", raising=False)
    return tmp_path / "work"


@pytest.fixture
def refuse(here, capsys, monkeypatch):
    """Runs a command that must be refused, with some words in its one line, which is given back."""

    def process(*arguments):
        """Of `frugal seeds` and others, which start `fit` and `test`."""
        try:
            frugal.main(list(arguments))
        except SystemExit as stop:
            return stop.code or 0
        return 0

    def check(command, status, *words, begun=False):
        before = contents(here)
        with pytest.raises(SystemExit) as stop:
            frugal.main(shlex.split(command))
        shown = capsys.readouterr().err.splitlines()
        (line,) = [line for line in shown if line.strip() and not line.startswith(BARS)]
        assert line.startswith("frugal: error: ")
        missing = [word for word in words if word not in line]
        assert not missing, line
        assert stop.value.code == status, line
        after = contents(here)
        assert before.items() <= after.items()  # nothing lost, renamed or written over
        if not begun:
            assert after.keys() - before.keys() == set()
        return line

    monkeypatch.setattr("commands.seeds.process", process)
    return check


def contents(folder):
    """Bytes of all files, but for locks, which are empty."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}
