"""`frugal search` from end to end, on the embedded digits: Ray, interruptions, bad input."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

import frugal
from networks import InputError
from studies import pool
from studies.pool import _check_fits
from studies.search_options import Pool
from studies.trials import Trial

CONFIG = """\
search:
  budget: {blocks: 2, flops: 6.0e4, flops_tolerance: 0.5}
  candidates: 3
  lists: [[4, 12]]
  seeds: [0, 1]
model:
  class_path: lightning_modules.ReXNet
  init_args:
    network: channel_search_net
    network_args: {stem: 4, first: 4, expansion: 2, penultimate: 8}
    optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.1}}
data: {class_path: datamodules.Digits, init_args: {batch_size: 128}}
trainer: {max_epochs: 1}
"""
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def one_ray():
    """One Ray for all: its processes take longer to start than their trials."""
    ray = pool._start(Pool(workers=3))
    shutdown = ray.shutdown
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "init", lambda *args, **options: None)
        patch.setattr(ray, "shutdown", lambda: None)
        yield
    shutdown()


@pytest.fixture
def here(tmp_path, monkeypatch, one_ray):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/tiny.yaml").write_text(CONFIG)
    return tmp_path


def search(*options):
    frugal.main(["search", "-c", "configs/tiny.yaml", "--ray.workers", "2", *options])


def refused(capsys, *options):
    with pytest.raises(SystemExit) as stop:
        search(*options)
    assert stop.value.code in (1, 2)
    return capsys.readouterr().err.strip().splitlines()[-1]


def tables(here):
    """What was measured, without the time that it took and where."""
    result = json.loads((here / "results/tiny.json").read_text())
    for row in result["lists"]:
        for run in row["runs"]:
            assert run.pop("seconds") > 0
    return {name: result[name] for name in ("budget", "groups", "lists", "seeds", "recipe")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, one_ray):
    """A study of 4 lists with 2 seeds, and its tables."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "configs").mkdir()
    (folder / "configs/tiny.yaml").write_text(CONFIG)
    before = os.getcwd()
    os.chdir(folder)
    search()
    os.chdir(before)
    return folder, tables(folder)


def test_a_study_has_every_trial_and_a_picture(finished):
    folder, found = finished
    assert len(found["lists"]) == 4
    assert all(len(row["runs"]) == 2 and len(row["runs"][0]["curve"]) == 1 for row in found["lists"])
    assert [4, 12] in [row["channels"] for row in found["lists"]]
    assert found["recipe"]["data"] == {"class_path": "datamodules.Digits", "batch_size": 128}
    assert len(list((folder / "runs/tiny/trials").glob("*.json"))) == 8
    assert (folder / "runs/tiny/widths.png").stat().st_size > 10_000


def test_killed_studies_go_on_and_numbers_do_not_depend_on_workers(finished, here):
    """kill -9 after the first trial; then three workers: the same tables, and no finished trial again."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "frugal", "search", "-c", "configs/tiny.yaml", "--ray.workers", "1"]
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    trials = here / "runs/tiny/trials"
    while process.poll() is None and not (trials.is_dir() and list(trials.glob("*.json"))):
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in trials.glob("*.json")}
    assert 1 <= len(kept) < 8
    search("--ray.workers", "3")
    assert tables(here) == finished[1]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_the_fast_mode_repeats_the_tenths_alone(finished, here):
    shutil.copytree(finished[0] / "runs", here / "runs")
    for path in (here / "runs/tiny/trials").glob("*_seed1.json"):
        path.unlink()
    search("--search.mode", "fast")
    repeated = {path.name for path in (here / "runs/tiny/trials").glob("*_seed1.json")}
    rows = sorted(finished[1]["lists"], key=lambda row: -row["runs"][0]["top1"])
    names = ["-".join(map(str, row["channels"])) + "_seed1.json" for row in rows]
    assert repeated >= {names[0], names[2], names[3]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--search.budget", "z"], "search.budget='z' is none of a, b, c, d, "),
        (["--search.budget.flops", "1.0e12"], "only 0 of 3 lists of 2 blocks have 1e+12 FLOPs"),
        (
            ["--search.lists", "[[12, 4]]"],
            "search.lists has [12, 4]: it takes 2 channels, positive, that do not decrease",
        ),
        (["--search.seeds", "[0, 0]"], "search.seeds=[0, 0] must be different numbers"),
        (["--search.candidates", "0", "--search.lists", "[]"], "there is no list to train: give search.candidates"),
        (["--model.network", "conv2"], "a search trains channel_search_net, whose channels it chooses"),
        (["--seed_everything", "3"], "seed_everything is chosen for each trial"),
        (["--ray.address", "127.0.0.1:9"], "ray.address=127.0.0.1:9: nothing answers there"),
        (["--ray.address", "somewhere"], "ray.address=somewhere must be HOST:PORT or ray://HOST:PORT"),
        (["--trainer.default_root_dir", "a"], "trainer.default_root_dir is chosen for each trial"),
        (["--trainer.fast_dev_run", "true"], "a trial is ranked by its test/top1: leave fast_dev_run"),
        (["--trainer.limit_test_batches", "0"], "a trial is ranked by its test/top1: leave fast_dev_run"),
        (["--trainer.accelerator", "gpu"], "trainer: "),
        (["--search.budget.flops", ".nan"], "budget.flops=nan must be positive"),
        (["--search.seeds", "[-1]"], "seeds=[-1] lie in 0 to 2**32 - 1"),
        (["--search.draw_seed", "-1"], "draw_seed=-1 and seeds=[0, 1] lie in 0"),
        (["--ray.gpus", "2"], "ray.gpus=2.0: a trial computes on one GPU"),
        (["--ray.cpus", "0"], "ray.cpus=0, ray.workers=2, ray.gpus=None: too few"),
        (["--search.moed", "fast"], "unrecognized arguments: --search.moed fast; did you mean mode?"),
    ],
)
def test_mistakes(here, capsys, options, message):
    assert message in refused(capsys, *options)
    assert not (here / "results").exists()


def test_a_folder_of_another_study(finished, here, capsys):
    shutil.copytree(finished[0] / "runs", here / "runs")
    before = {path: path.read_bytes() for path in (here / "runs").rglob("*.json")}
    line = refused(capsys, "--trainer.max_epochs", "2")
    assert "runs/tiny holds a study of another recipe (trainer.max_epochs 1, now 2): rename that folder" in line
    line = refused(capsys, "--search.budget.flops", "5.0e4")
    assert "another budget (flops 60000.0, now 50000.0)" in line
    assert {path: path.read_bytes() for path in (here / "runs").rglob("*.json")} == before


def test_what_fails_before_a_trial_is_kept_claims_no_folder(here, capsys):
    (here / "configs/tiny.yaml").write_text(CONFIG.replace("max_epochs: 1", "max_epochs: 7"))
    refused(capsys, "--ray.address", "127.0.0.1:9")
    (here / "configs/tiny.yaml").write_text(CONFIG)
    search("--search.candidates", "0", "--search.seeds", "[0]")
    assert len(list((here / "runs/tiny/trials").glob("*.json"))) == 1


def test_strided_blocks_of_the_lists_can_be_named(here):
    options = ["--search.candidates", "0", "--search.budget.blocks", "3", "--search.lists", "[[4, 8, 12]]"]
    search(*options, "--search.seeds", "[0]", "--model.network_args.strided", "[3]")
    assert len(tables(here)["lists"]) == 1


def test_a_result_of_other_settings_is_kept_and_trials_of_other_code_are_told(finished, here, capsys):
    shutil.copytree(finished[0] / "runs", here / "runs")
    shutil.copytree(finished[0] / "results", here / "results")
    before = (here / "results/tiny.json").read_bytes()
    path = next((here / "runs/tiny/trials").glob("*_seed0.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), "commit": "0123456789"}))
    search("--search.seeds", "[0]")
    assert (here / "results/tiny.json.1").read_bytes() == before
    assert "mind: these runs are of 0123456" in capsys.readouterr().err


def test_a_trial_that_diverges_has_chances_accuracy(here):
    search("--search.candidates", "0", "--search.seeds", "[0]", "--model.optimizer.lr", "1.0e30")
    (run,) = tables(here)["lists"][0]["runs"]
    assert (run["diverged"], run["top1"]) == (True, 0.1)


def test_more_gpus_than_there_are_are_refused():
    """Ray would wait for ever."""
    nodes = [{"Alive": True, "Resources": {"CPU": 2.0}}, {"Alive": False, "Resources": {"CPU": 2.0, "GPU": 1.0}}]
    ray = SimpleNamespace(nodes=lambda: nodes)
    _check_fits(ray, Pool(), 0)
    with pytest.raises(InputError, match=r"a trial takes 1 cores and 0\.25 GPUs .* which this machine does not have"):
        _check_fits(ray, Pool(), 0.25)


def test_a_start_that_fails_is_told_in_a_line(monkeypatch):
    def times_out(*args, **options):
        raise RuntimeError("The current node timed out during startup.\nMore.")

    monkeypatch.setattr("ray.init", times_out)
    with pytest.raises(InputError, match=r"^Ray did not start .*\(The current node timed out during startup\.\): .*$"):
        pool.run([], [Trial((8,), 0)], Pool(), "group", print, 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_search_that_is_stopped_says_how_it_goes_on(here, capsys, monkeypatch, number):
    before = signal.getsignal(number)
    wait, timer = ray.wait, threading.Timer(0.2, os.kill, (os.getpid(), number))

    def wait_and_be_stopped(*args, **options):
        if timer.ident is None:
            timer.start()
        return wait(*args, **options)

    monkeypatch.setattr("ray.wait", wait_and_be_stopped)
    with pytest.raises(SystemExit) as stop:
        search("--search.candidates", "0")
    assert stop.value.code == 128 + number
    assert capsys.readouterr().err.endswith(
        "stopped: finished trials are kept, and the same command goes on from there\n"
    )
    assert signal.getsignal(number) == before


DEADLY = """\
import os, signal
from lightning_modules import ReXNet
class Deadly(ReXNet):
    def on_fit_start(self):
        with open('tries', 'a') as file:
            file.write(os.environ['PL_GLOBAL_SEED'])
        if os.environ['PL_GLOBAL_SEED'] == '1':
            os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_worker_that_dies_is_replaced_once(here, capsys):
    """Trials of seed 1 kill their process: they are tried twice and told, the others are kept."""
    (here / "deadly.py").write_text(DEADLY)
    line = refused(capsys, "--model.class_path", "deadly.Deadly", "--search.candidates", "0")
    assert "1 of 2 trials were lost with their workers, such as 4-12_seed1; the others are kept" in line
    assert [path.name for path in (here / "runs/tiny/trials").glob("*.json")] == ["4-12_seed0.json"]
    assert sorted((here / "tries").read_text()) == ["0", "1", "1"]
