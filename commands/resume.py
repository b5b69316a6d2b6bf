"""Which checkpoint a command takes, and whether it can."""

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from pytorch_lightning import LightningModule

from lightning_modules.initial import reason
from networks import InputError

# What may change when a run goes on: where data are and how fast they come, not what is trained on what.
FREE = ("num_workers", "root", "check_integrity", "skip_corrupt", "initial_checkpoint")


def checkpoint_path(folder: Path, given: str | None) -> Path | None:
    """The checkpoint file meant by --ckpt_path: `last` and `best` are those in the run's folder of checkpoints.

    Raises:
        InputError: there is no such file.
    """
    if given is None:
        return None
    if given not in ("last", "best"):
        if not Path(given).is_file():
            raise InputError(f"no checkpoint at {given}; --ckpt_path takes a file, last or best")
        return Path(given)
    path = folder / f"{given}.ckpt"
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}: run `frugal fit` with this config first, or give --ckpt_path FILE")
    return path


def read(path: Path, device: str = "meta") -> dict[str, Any]:
    """A checkpoint, on the meta device without the values of its tensors; nothing in it is executed.

    Raises:
        InputError: it is no whole checkpoint.
    """
    try:
        # Files of before PyTorch 1.6 are no archives that can be mapped.
        checkpoint = torch.load(path, map_location=device, weights_only=True, mmap=zipfile.is_zipfile(path))
        if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
            raise ValueError("it has no state_dict")
        return checkpoint
    except Exception as error:
        raise InputError(
            f"{path} is cut short or not a checkpoint ({reason(error)}): take another, such as best.ckpt beside it"
        ) from error


def check(path: Path, checkpoint: dict[str, Any], model: LightningModule) -> None:
    """Refuse a checkpoint of another method or network before anything is touched."""
    try:
        model.on_load_checkpoint(checkpoint)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def epochs_done(checkpoint: dict[str, Any]) -> int:
    """Whole epochs behind a checkpoint.

    Raises:
        InputError: it has weights alone, from which no run goes on.
    """
    if not {"loops", "optimizer_states"} <= checkpoint.keys():
        raise InputError("the checkpoint has weights alone: start from them with --model.initial_checkpoint FILE")
    return checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]


def check_same_run(saved: Path, config: dict[str, Any]) -> None:
    """Refuse to go on with another model, other data or another teacher than the run began with.

    Args:
        saved: config.yaml of the run.
        config: the whole resolved config now.

    Raises:
        InputError: they differ, except in what may change.
    """
    if not saved.is_file():
        return
    try:
        before, now = dict(_leaves(yaml.safe_load(saved.read_text()))), dict(_leaves(config))
    except (ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
        raise InputError(f"{saved} is damaged: restore it, or remove it to go on without comparing recipes") from error
    changed = [
        f"{key}={before.get(key)}, now {now.get(key)}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and key.split(".")[-1] not in FREE
    ]
    if changed:
        raise InputError(
            f"the run began with {'; '.join(changed)}. It goes on as it began or not at all: `frugal fit` without "
            "--ckpt_path sets it aside and begins anew, from a copy of its weights with --model.initial_checkpoint FILE"
        )


def _leaves(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Keys and values of the model, the data and our callbacks, which teach and anneal, with dotted keys."""

    def walk(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict):
            for key, part in value.items():
                yield from walk(f"{prefix}.{key}", part)
        elif value is not None:
            yield prefix, value

    for section in ("model", "data"):
        yield from walk(section, config.get(section))
    callbacks = config["trainer"].get("callbacks") or []
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        path = callback["class_path"]
        if path.startswith("callbacks."):
            yield from walk(path, callback.get("init_args") or True)
