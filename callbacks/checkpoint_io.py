"""Write checkpoints so that the previous one survives anything."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import TorchCheckpointIO

from networks import InputError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, and renames it when it is whole and on the disk.

    Killed or out of space at any moment, the file of that name is the previous checkpoint or the new one. Lightning's
    own goes through the system's temporary folder, and a move from another file system is not atomic.

    Raises:
        InputError: the file cannot be written.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        partial = path.with_name(f"{path.name}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(partial, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except (OSError, RuntimeError) as error:  # PyTorch's writer raises the latter when the disk is full
            with suppress(OSError):
                partial.unlink()
            reason = error.__context__ if isinstance(error.__context__, OSError) else str(error).split("\n")[0]
            raise InputError(
                f"{path} could not be written ({reason}); the checkpoint before it is untouched: make room, and resume "
                "with --ckpt_path last"
            ) from error
