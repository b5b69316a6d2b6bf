"""Several seeds of one config, and what is written about them."""

import json
import math
from pathlib import Path

import pytest

import frugal
from commands import seeds

CONFIG = """\
model:
  class_path: lightning_modules.Biprop
  init_args: {network: conv2, network_args: {width: 0.25}}
trainer: {max_epochs: 2, log_every_n_steps: 10, enable_progress_bar: false}
"""


def test_mean_and_standard_error():
    assert seeds.spread([1.0, 2.0, 6.0]) == {
        "mean": 3.0,
        "standard_error": pytest.approx(math.sqrt(((1 - 3) ** 2 + (2 - 3) ** 2 + (6 - 3) ** 2) / 2) / math.sqrt(3)),
        "values": [1.0, 2.0, 6.0],
    }
    assert seeds.spread([0.5])["standard_error"] is None


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Commands run in this process here, to be quick."""
    monkeypatch.chdir(tmp_path)
    Path("configs/method").mkdir(parents=True)
    Path("configs/method/small.yaml").write_text(CONFIG)
    calls = []

    def process(*arguments):
        calls.append(arguments)
        try:
            frugal.main(list(arguments))
        except SystemExit as stop:
            return stop.code or 0
        return 0

    monkeypatch.setattr(seeds, "process", process)
    return calls


def test_trains_tests_and_writes_what_was_measured(here, capsys):
    frugal.main(["seeds", "-c", "configs/method/small.yaml", "--seeds", "3,5", "--trainer.max_epochs", "1"])
    assert [call[0] for call in here] == ["fit", "test"] * 2
    result = json.loads(Path("results/method/small.json").read_text())
    assert result["config"] == "configs/method/small.yaml"
    assert result["overrides"] == ["--trainer.max_epochs", "1"]
    assert result["seeds"] == [run["seed"] for run in result["runs"]] == [3, 5]
    for name, values in result["metrics"].items():
        assert values == seeds.spread([run["metrics"][name] for run in result["runs"]])
    for seed, run in zip([3, 5], result["runs"], strict=True):
        tested = json.loads(Path(f"runs/method/small/seed{seed}/test/metrics.json").read_text())
        assert run["metrics"] == pytest.approx({**tested, "best val/top1": run["curve"][0]["val/top1"]}, abs=1e-6)
        assert run["epochs"] == len(run["curve"]) == 1
        assert 0 < run["hours"] < 0.1
        assert {"commit", "versions", "hardware", "uncommitted_changes"} <= run.keys()
    assert result["metrics"]["test/top1"]["values"][0] != result["metrics"]["test/top1"]["values"][1]
    shown = capsys.readouterr().out
    assert "standard error" in shown
    assert f"{result['metrics']['test/top1']['mean']:.4f}" in shown


def test_the_same_command_goes_on_where_it_was(here):
    command = ["seeds", "-c", "configs/method/small.yaml", "--seeds", "0,1"]
    frugal.main(command)
    first = Path("results/method/small.json").read_text()
    written = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*.ckpt")}
    here.clear()
    frugal.main(command)
    assert Path("results/method/small.json").read_text() == first
    assert [call[0] for call in here] == ["fit", "test"] * 2
    assert {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*.ckpt")} == written


def test_a_run_whose_length_was_changed_is_not_quoted(here, capsys):
    for epochs in ("1", "2"):
        command = ["fit", "-c", "configs/method/small.yaml", "--ckpt_path", "last", "--trainer.max_epochs", epochs]
        frugal.main(command)
    with pytest.raises(SystemExit) as stop:
        frugal.main(["seeds", "-c", "configs/method/small.yaml", "--seeds", "0"])
    assert stop.value.code == 1
    assert "was trained with different trainer.max_epochs, [1, 2]" in capsys.readouterr().err


def test_names_with_dots_stay_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(seeds, "train_and_test", lambda *arguments: None)
    monkeypatch.setattr(seeds, "summary", lambda configs, *rest: {**seeds.described(configs, []), "seeds": [0]})
    for fraction in ("0.25", "0.5"):
        seeds.run_all([f"configs/method/keep{fraction}.yaml"], [], [0], tmp_path)
    assert {path.name for path in (tmp_path / "method").iterdir()} == {"keep0.25.json", "keep0.5.json"}


def test_a_result_of_other_seeds_or_options_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(seeds, "train_and_test", lambda *arguments: None)
    monkeypatch.setattr(
        seeds,
        "summary",
        lambda configs, overrides, runs: {**seeds.described(configs, overrides), "seeds": list(runs)},
    )
    for overrides, numbers in (([], [0, 1]), ([], [0, 1]), ([], [0]), (["--model.keep_fraction", "0.2"], [0])):
        seeds.run_all(["configs/method/small.yaml"], overrides, numbers, tmp_path)
    kept = [json.loads((tmp_path / f"method/small.json{n}").read_text()) for n in (".1", ".2", "")]
    assert [(each["overrides"], each["seeds"]) for each in kept] == [
        ([], [0, 1]),
        ([], [0]),
        (["--model.keep_fraction", "0.2"], [0]),
    ]


def test_refusals_and_interruptions(here, capsys, monkeypatch):
    for arguments, message in [
        (["--seeds", "1,1"], "1,1 names a seed twice"),
        (["--seeds", "one"], "'one' are no seeds, such as 0,1,2"),
        (["--seed_everything", "3"], "--seed_everything is chosen for each seed: leave it out"),
        (["--ckpt_path=last"], "--ckpt_path is chosen for each seed: leave it out"),
    ]:
        with pytest.raises(SystemExit) as stop:
            frugal.main(["seeds", "-c", "configs/method/small.yaml", *arguments])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        frugal.main(["seeds", "-c", "configs/method/small.yaml", "--model.keep_fraction", "2"])
    assert stop.value.code == 1
    assert "the same command goes on from there" not in capsys.readouterr().err
    monkeypatch.setattr(seeds, "process", lambda *arguments: 143)
    with pytest.raises(SystemExit) as stop:
        frugal.main(["seeds", "-c", "configs/method/small.yaml"])
    assert stop.value.code == 143
    assert "seed 0 has stopped; the same command goes on from there" in capsys.readouterr().err
    assert not Path("results").exists()


def test_runs_of_other_code_are_told(capsys):
    def run(commit, changed=False):
        return {"commit": commit, "uncommitted_changes": changed}

    seeds.warn_of_other_code([run("a" * 40), run("a" * 40)])
    assert not capsys.readouterr().err
    seeds.warn_of_other_code([run("a" * 40), run("b" * 40, True)])
    assert "these runs are of aaaaaaa, bbbbbbb+" in capsys.readouterr().err
    seeds.warn_of_other_code([run("a" * 40, True)])
    assert "aaaaaaa+" in capsys.readouterr().err
