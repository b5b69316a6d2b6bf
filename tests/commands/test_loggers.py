"""What loggers are given, and what Weights & Biases calls a run."""

from pathlib import Path

from jsonargparse import Namespace

from commands.loggers import choose, wandb_names


def test_names_of_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, group = "configs/a/b/c.yaml", {"group": "a/b/c", "job_type": "fit", "tags": ["a", "b"]}
    assert wandb_names([config, "configs/hardware/gpu.yaml"], "fit") == group
    saved = tmp_path / "runs/a/b/c/seed3/config.yaml"
    saved.parent.mkdir(parents=True)
    (saved.parent / "run.json").touch()
    assert wandb_names([str(saved)], "fit") == group
    assert wandb_names([], "test") == {"group": None, "job_type": "test", "tags": None}
    logger = Namespace(class_path="WandbLogger", init_args=None)
    for typed, variable, expected in (("mine", "", "mine"), (None, "", "a/b/c"), (None, "theirs", None)):
        with monkeypatch.context() as patch:
            if variable:
                patch.setenv("WANDB_RUN_GROUP", variable)
            logger.init_args = Namespace(id=None, group=typed)
            trainer = Namespace(logger=logger, default_root_dir="x")
            assert choose(trainer, Path("runs/a/b/c/seed0"), group, None) == logger.init_args.id
            assert logger.init_args.group == expected
    logger.init_args = Namespace(id=None, group=None)
    assert choose(Namespace(logger=logger, default_root_dir="x"), Path("x"), group, "kept") == "kept"
    assert logger.init_args.group is None
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    monkeypatch.setenv("WANDB_RUN_ID", "r")
    assert wandb_names([config], "fit") == {**group, "group": None}
