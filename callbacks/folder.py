"""Where callbacks write, and what they show."""

import os
from pathlib import Path

from pytorch_lightning import Trainer


def log_folder(trainer: Trainer) -> Path:
    """The folder that the logger writes to; call it on every process, for Lightning broadcasts it."""
    folder = Path(trainer.log_dir or trainer.default_root_dir)
    if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def log_picture(trainer: Trainer, name: str, path: Path) -> None:
    """Log a PNG file as pictures/<name> where a logger takes pictures, as W&B's does; call it on the first process."""
    for logger in trainer.loggers:
        if hasattr(logger, "log_image"):
            logger.log_image(f"pictures/{name}", [str(path)])


def write_whole(path: Path, text: str) -> None:
    """Write a file so that, killed at any moment, the previous one or this one is there."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    os.replace(partial, path)
