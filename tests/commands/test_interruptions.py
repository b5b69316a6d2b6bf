"""Runs of the command that are stopped from outside, and go on as if they had not been."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import result, same

import frugal

ROOT = Path(__file__).parent.parent.parent
CONFIG = """\
model:
  class_path: lightning_modules.Biprop
  init_args: {network: conv2, network_args: {activation: sign, width: 0.25}}
data:
  class_path: datamodules.Digits
  init_args: {num_workers: 1}
trainer: {max_epochs: 10, log_every_n_steps: 10, enable_progress_bar: false}
"""
LAST = Path("runs/small/seed0/checkpoints/last.ckpt")


def write_config(folder):
    (folder / "configs").mkdir()
    (folder / "configs/small.yaml").write_text(CONFIG)
    os.chdir(folder)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    before = Path.cwd()
    write_config(tmp_path_factory.mktemp("uninterrupted"))
    frugal.main(["fit", "-c", "configs/small.yaml"])
    whole = result(LAST)
    os.chdir(before)
    return whole


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])  # test_random_kills.py has SIGKILL
def test_a_run_that_is_stopped_goes_on_to_the_same_result(tmp_path, monkeypatch, capfd, uninterrupted, number):
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path)
    command = [sys.executable, "-m", "frugal", "fit", "-c", "configs/small.yaml"]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True) as process:
        while not LAST.exists():
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(0.2)
        os.killpg(process.pid, number)  # schedulers and terminals signal all processes of a job
    said = capfd.readouterr().err
    assert process.returncode == 128 + number
    assert f"{number.name}: this step is finished and saved first" in said
    assert "the same command with --ckpt_path last goes on from there" in said
    assert "Traceback" not in said
    assert result(LAST)["epoch"] < 9
    frugal.main(["fit", "-c", "configs/small.yaml", "--ckpt_path", "last"])
    assert same(result(LAST), uninterrupted)
    assert not list(LAST.parent.glob("*.partial"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_seeds_hand_signals_on_and_wait(tmp_path, monkeypatch, capfd, number):
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path)
    command = [sys.executable, "-m", "frugal", "seeds", "-c", "configs/small.yaml", "--trainer.max_epochs", "1000"]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True) as process:
        while not LAST.exists():
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(0.2)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does
        else:
            process.send_signal(number)
    assert process.returncode == 128 + number
    said = capfd.readouterr().err
    assert "seed 0 has stopped; the same command goes on from there" in said
    assert "Traceback" not in said


def test_a_second_run_in_the_same_folder_is_refused(tmp_path, monkeypatch, capsys):
    """The first is stopped at its first step, and holds the folder."""
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path)
    command = [sys.executable, "-m", "frugal", "fit", "-c", "configs/small.yaml", "--trainer.max_epochs", "1000"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)
    try:
        while not LAST.exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGSTOP)
        before = {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}
        elsewhere = ["--trainer.default_root_dir", "runs/small/seed0"]
        for options in ([], ["--ckpt_path", "last"], [*elsewhere, "--ckpt_path", "last"]):
            with pytest.raises(SystemExit) as stop:
                frugal.main(["fit", "-c", "configs/small.yaml", *options, "--trainer.max_epochs", "1000"])
            assert stop.value.code == 1
            line = capsys.readouterr().err.strip().splitlines()[-1]
            assert line.startswith("frugal: error: another process is training in runs/small/seed0: wait for it, or")
        assert before == {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}
    finally:
        process.kill()
        process.wait()
    frugal.main(["fit", "-c", "configs/small.yaml", "--trainer.max_epochs", "1"])  # nothing is left behind
    assert Path("runs/small/seed0.1").is_dir()
