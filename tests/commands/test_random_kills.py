"""Every method: runs of the command that are killed at random moments end as the one that was not.

FRUGAL_KILLS=30 kills each method's runs so often; without it each is killed once. Kills fall anywhere: into the
building of the network, before there is a checkpoint, into steps and pictures, and about a third, whatever the
machine's speed, into the writing of a checkpoint.
"""

import multiprocessing
import os
import random
import shutil
import time
from pathlib import Path

import pytest
import yaml
from methods import METHODS, config, write_teacher
from runs import fit, result, same

KILLS = int(os.environ.get("FRUGAL_KILLS", "1"))
CONTEXT = multiprocessing.get_context("forkserver")  # children start with everything imported
CONTEXT.set_forkserver_preload(["commands.train", "matplotlib.figure", "pytest", "sklearn.datasets", "timm"])
CHECKPOINTS = Path("runs/small/seed0/checkpoints")
STEPS = 4  # of an epoch
EPOCHS = 3


def start(folder):
    process = CONTEXT.Process(target=fit, args=(folder,))
    process.start()
    return process


def prepare(folder, name):
    """A working directory with a config, and a teacher where there is one."""
    (folder / "configs").mkdir(parents=True)
    loops = dict(max_epochs=EPOCHS, limit_train_batches=STEPS, limit_val_batches=2, num_sanity_val_steps=1)
    text = yaml.safe_dump(config(name, **loops, log_every_n_steps=2, enable_progress_bar=False))
    (folder / "configs/small.yaml").write_text(text)
    write_teacher(folder)
    return folder


def results(folder):
    """What the last and the best checkpoint of a run have in common with those of an equal run."""
    return {name: result(folder / CHECKPOINTS / f"{name}.ckpt") for name in ("last", "best")}


def half_written(folder):
    """Checkpoints that are being written, or that a kill has left so."""
    return {(path.name, path.stat().st_mtime_ns) for path in (folder / CHECKPOINTS).glob("*.partial")}


def kill(process, folder, seconds, writing):
    """Kill a process after so many seconds, or then while it writes a checkpoint; False if it had ended before."""
    process.join(seconds)
    before = half_written(folder)
    while writing and process.is_alive() and half_written(folder) <= before:
        time.sleep(0.0005)
    process.kill()
    process.join()
    return process.exitcode == -9


@pytest.fixture(scope="module", autouse=True)
def _server():
    """Import everything before the first run is timed."""
    process = CONTEXT.Process(target=os.getcwd)
    process.start()
    process.join()


@pytest.mark.parametrize("name", METHODS)
def test_runs_killed_at_random_moments_end_as_the_one_that_was_not(tmp_path, name):
    whole = prepare(tmp_path / "whole", name)
    begun = time.monotonic()
    process = start(whole)
    process.join()
    length = time.monotonic() - begun
    assert process.exitcode == 0, (whole / "said.txt").read_text()
    expected, moments = results(whole), random.Random(name)
    kills = runs = torn = unsaved = 0
    while kills < KILLS:
        folder, runs = prepare(tmp_path / "killed", name), runs + 1
        while True:
            process, before = start(folder), half_written(folder)
            seconds, writing = moments.uniform(0, length), moments.random() < 1 / 3
            if kills == KILLS or not kill(process, folder, seconds, writing):
                process.join()
                break
            kills += 1
            torn += not half_written(folder) <= before
            unsaved += not (folder / CHECKPOINTS / "last.ckpt").exists()
        assert process.exitcode == 0, (folder / "said.txt").read_text()
        ended = results(folder)
        for which, parts in expected.items():
            for part, value in parts.items():
                assert same(ended[which][part], value), f"{part} of {which}.ckpt after {kills} kills"
        shutil.rmtree(folder)
    print(f"{name}: {runs} runs, {kills} kills, {torn} in a checkpoint's writing, {unsaved} before the first one")
