"""The previous checkpoint survives whatever stops the next from being written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from callbacks import AtomicCheckpointIO
from networks import InputError

ROOT = Path(__file__).parent.parent.parent
OUT_OF_SPACE = """\
import resource, signal, sys, torch
from callbacks import AtomicCheckpointIO
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # no file may grow beyond, as on a full disk
AtomicCheckpointIO().save_checkpoint({"weight": torch.zeros(100_000)}, sys.argv[1])
"""


def test_writes_what_it_is_given_into_new_folders_too(tmp_path):
    path = tmp_path / "new/last.ckpt"
    for value in (1.0, 2.0):
        AtomicCheckpointIO().save_checkpoint({"weight": torch.full((3,), value)}, path)
        assert torch.load(path, weights_only=True)["weight"].tolist() == [value] * 3
    assert os.listdir(path.parent) == ["last.ckpt"]


def test_out_of_space_the_previous_one_survives(tmp_path):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"weight": torch.ones(3)}, path)
    command = [sys.executable, "-c", OUT_OF_SPACE, path]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.run(command, capture_output=True, text=True, env=env)
    error = child.stderr.strip().splitlines()[-1]
    assert "InputError" in error
    assert "last.ckpt could not be written (" in error
    assert "the checkpoint before it is untouched: make room, and resume with --ckpt_path last" in error
    assert torch.load(path, weights_only=True)["weight"].tolist() == [1.0] * 3
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_killed_before_the_renaming_the_previous_one_survives(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"weight": torch.ones(3)}, path)

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        AtomicCheckpointIO().save_checkpoint({"weight": torch.zeros(3)}, path)
    monkeypatch.undo()
    assert torch.load(path, weights_only=True)["weight"].tolist() == [1.0] * 3
    AtomicCheckpointIO().save_checkpoint({"weight": torch.zeros(3)}, path)  # what was left is no hindrance
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/last.ckpt could not be written \(.*File exists"):
        AtomicCheckpointIO().save_checkpoint({}, tmp_path / "file/last.ckpt")
