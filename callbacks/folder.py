"""Where callbacks write."""

import os
from pathlib import Path

from pytorch_lightning import Trainer


def log_folder(trainer: Trainer) -> Path:
    """The folder that the logger writes to; call it on every process, for Lightning broadcasts it."""
    folder = Path(trainer.log_dir or trainer.default_root_dir)
    if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_whole(path: Path, text: str) -> None:
    """Write a file that a run cannot go on without: killed at any moment, the previous one or this one is there."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    os.replace(partial, path)
