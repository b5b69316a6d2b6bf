import json
import subprocess
import sys
from pathlib import Path

import pytest

from commands.run_folder import run_folder, set_another_aside, set_aside, typed_configs


def test_folder_follows_the_first_config_and_the_seed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_folder(["configs/a/b.yaml", "configs/hardware/cpu.yaml"], 3) == Path("runs/a/b/seed3")
    assert run_folder([str(tmp_path / "mine/c.yaml")], 0) == Path("runs/mine/c/seed0")
    assert run_folder(["/elsewhere/c.yaml"], 0) == Path("runs/elsewhere/c/seed0")
    assert run_folder([], False) == Path("runs/unnamed/unseeded")


def test_a_saved_config_belongs_to_its_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("runs/a/seed0", "runs/a/seed0.1", "runs/a/seed0/test"):
        Path(name).mkdir(parents=True)
        Path(name, "run.json").touch()
    assert run_folder(["runs/a/seed0/config.yaml"], 0) == Path("runs/a/seed0")
    assert run_folder(["runs/a/seed0.1/config.yaml"], 0) == Path("runs/a/seed0.1")
    assert run_folder(["runs/a/seed0/test/config.yaml"], 0) == Path("runs/a/seed0")
    assert run_folder(["runs/a/seed0/config.yaml"], 2) == Path("runs/a/seed2")


@pytest.fixture
def agent(tmp_path, monkeypatch):
    """What `wandb agent` gives to a run of a sweep, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    monkeypatch.setenv("WANDB_RUN_ID", "r")


def test_runs_of_a_sweep_have_their_own_folders(agent, monkeypatch):
    config = "configs/a/b.yaml"
    assert run_folder([config], 3) == Path("runs/a/b/sweep_s/r/seed3")
    monkeypatch.delenv("WANDB_SWEEP_ID")
    assert run_folder([config], 3) == Path("runs/a/b/seed3")


def test_a_run_of_a_sweep_has_the_agents_id_and_is_found_again(agent, monkeypatch):
    Path("small.yaml").write_text(
        "model: {class_path: Biprop, init_args: {network: conv2, network_args: {width: 0.1}}}"
    )
    short = ("max_epochs=1", "limit_train_batches=1", "limit_val_batches=1", "enable_progress_bar=false")
    wandb_offline = ("logger=WandbLogger", "logger.offline=true")
    command = [sys.executable, "-c", "import frugal; frugal.main()", "fit", "--config=small.yaml"]
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    # In a process of its own, as an agent starts it: W&B reads the environment once.
    subprocess.run([*command, *(f"--trainer.{option}" for option in short + wandb_offline)], check=True)
    folder = Path("runs/small/sweep_s/r/seed0")
    assert json.loads((folder / "run.json").read_text())["wandb_id"] == "r"
    assert [path.name.split("-")[-1] for path in folder.glob("wandb/offline-run-*")] == ["r"]
    for name in ("WANDB_SWEEP_ID", "WANDB_RUN_ID"):  # later, in a shell
        monkeypatch.delenv(name)
    assert run_folder([str(folder / "config.yaml")], 0) == folder


def test_setting_aside_never_overwrites(tmp_path):
    folder = tmp_path / "seed0"
    assert set_aside(folder) is None
    for number in (1, 2):
        folder.mkdir()
        (folder / "file").write_text(str(number))
        assert set_aside(folder) == tmp_path / f"seed0.{number}"
    assert (tmp_path / "seed0.1/file").read_text() == "1"


def test_typed_configs_are_those_of_the_command_line():
    arguments = [
        "fit",
        "-c",
        "a.yaml",
        "--model.keep_fraction",
        "0.2",
        "--config=b.yaml",
        "--config",
        "c.yaml",
        "-cd.yaml",
    ]
    assert typed_configs(arguments) == ["a.yaml", "b.yaml", "c.yaml", "d.yaml"]
    assert typed_configs(["fit", "--checkpoint.monitor", "val/loss"]) == []


def test_a_result_of_other_settings_is_kept_aside(tmp_path, capsys):
    path, result = tmp_path / "small.json", {"overrides": [], "seeds": (0, 1), "accuracy": 0.9}
    set_another_aside(path, result, ("overrides", "seeds"))
    assert not any(tmp_path.iterdir())
    path.write_text(json.dumps({**result, "accuracy": 0.8}))
    set_another_aside(path, result, ("overrides", "seeds"))
    assert not capsys.readouterr().out
    set_another_aside(path, {**result, "seeds": (0,)}, ("overrides", "seeds"))
    assert capsys.readouterr().out == f"kept the result of other settings: {path}.1\n"
    assert json.loads((tmp_path / "small.json.1").read_text())["accuracy"] == 0.8
    path.write_text('{"seeds": ')  # cut off
    set_another_aside(path, result, ("overrides", "seeds"))
    assert (tmp_path / "small.json.2").read_text() == '{"seeds": '
