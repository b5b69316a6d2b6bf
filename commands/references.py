"""A config may start from the run of another, or be taught by it: `initial_checkpoint: configs/.../one_expert.yaml`.

Such a name stands for the last checkpoint of that config's run with the same seed.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from jsonargparse import Namespace

from commands.run_folder import run_folder
from networks import InputError


class Reference(NamedTuple):
    """An argument that names a config."""

    arguments: Namespace
    key: str
    config: str


def references(config: Namespace) -> Iterator[Reference]:
    """Arguments of the model and the callbacks whose names end in "checkpoint" and whose values are YAML files."""
    callbacks = config.trainer.callbacks or []
    for part in (config.model, *(callbacks if isinstance(callbacks, list) else [callbacks])):
        arguments = (part or Namespace()).get("init_args") or Namespace()
        for key, value in vars(arguments).items():
            if key.endswith("checkpoint") and isinstance(value, str) and value.endswith((".yaml", ".yml")):
                yield Reference(arguments, key, value)


def checkpoint_of(config: str, seed: int | bool) -> Path:
    """Last checkpoint of a config's run."""
    return run_folder([config], seed, in_sweep=False) / "checkpoints/last.ckpt"


def resolve(config: Namespace, seed: int | bool, needs: bool, starts: bool) -> None:
    """Put the checkpoints in place of the configs.

    Args:
        needs: whether the checkpoints are read at all (in fit).
        starts: whether the run begins, so that it needs its initial weights.

    Raises:
        InputError: one that is needed is not there.
    """
    for reference in list(references(config)):
        path = checkpoint_of(reference.config, seed)
        if needs and not path.is_file() and (starts or reference.arguments is not config.model.init_args):
            raise InputError(
                f"{reference.key}: no checkpoint at {path}: run `frugal fit -c {reference.config}` first, or "
                "`frugal steps` with your config, which trains all that it starts from"
            )
        reference.arguments[reference.key] = str(path)
