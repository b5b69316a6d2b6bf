"""Where loggers write, and what Weights & Biases calls a run."""

import os
import secrets
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from commands.run_folder import run_folder, sweep_folder

WANDB_NAMES = {"group": "WANDB_RUN_GROUP", "job_type": "WANDB_JOB_TYPE", "tags": "WANDB_TAGS"}


def choose(trainer: Namespace, folder: Path, names: dict[str, Any], kept: str | None) -> str | None:
    """Let loggers write to the trainer's root folder, and W&B go on with the run's own id; a CSV logger is the default.

    Args:
        trainer: its config, which is changed.
        folder: of the run, which is its name.
        names: group, job type and tags of a run that begins in W&B; what the user gives comes first.
        kept: id of the W&B run that goes on.

    Returns:
        The id of the W&B run, also where W&B does not listen this time; None where there is none.
    """
    if trainer.logger in (None, True):
        csv = {"save_dir": trainer.default_root_dir, "name": "", "version": ""}
        trainer.logger = Namespace(class_path="pytorch_lightning.loggers.CSVLogger", init_args=Namespace(csv))
    wandb_id = kept
    for logger in filter(None, trainer.logger if isinstance(trainer.logger, list) else [trainer.logger]):
        given = logger.get("init_args", Namespace())
        if given.get("save_dir", "elsewhere") in (None, "."):
            given.save_dir = os.path.abspath(trainer.default_root_dir)  # W&B's own process may stand elsewhere
        if given.get("name", "") is None:
            given.name = str(folder)
        if logger.class_path.endswith("WandbLogger"):
            wandb_id = given.id or kept or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)
            given.id = wandb_id
            if kept is not None:  # it has its own, and tags since added
                continue
            for key, variable in WANDB_NAMES.items():
                if given.get(key) is None and variable not in os.environ:
                    given[key] = names[key]
    return wandb_id


def wandb_names(configs: list[str], subcommand: str) -> dict[str, Any]:
    """Seeds of a config are a group, named by its path, whose folders are tags.

    Runs of a sweep differ in more than seeds: W&B shows them by sweep, and they are no group.
    """
    path = run_folder(configs, False, in_sweep=False).parent
    parts = path.parts[1:] if path.parts[0] == "runs" else path.parts
    group = "/".join(parts) if configs and sweep_folder() == Path() else None
    return {"group": group, "job_type": subcommand, "tags": list(parts[:-1]) or None}
