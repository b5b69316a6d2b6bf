"""Where callbacks write, and what they show."""

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
