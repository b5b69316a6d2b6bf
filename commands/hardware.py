"""What a run's trainer stands on: GPUs that PyTorch can use, and our plugins; and what it says where it cannot."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning import Trainer
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.plugins.layer_sync import TorchSyncBatchNorm
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from callbacks import AtomicCheckpointIO, SyncBatchNorm
from networks import InputError


@contextmanager
def trainer_errors(*others: type[Exception]) -> Iterator[None]:
    """Say in one line what Lightning refuses, or cannot do on this machine.

    Args:
        others: errors that mean the same while a trainer is built.
    """
    kinds: tuple[type[Exception], ...] = (MisconfigurationException, *others)
    try:
        yield
    except kinds as error:
        remedy = "`frugal fit --help` lists what it takes"
        if re.search("accelerator|device|backend|strategy", str(error)):
            remedy = (
                f"torch sees {torch.cuda.device_count()} GPUs here: leave the hardware overlay out, or give "
                "--trainer.accelerator and --trainer.devices"
            )
        raise InputError(f"trainer: {' '.join(str(error).split()).rstrip('.!')}; {remedy}") from error


def check_gpus(trainer: Trainer) -> None:
    """Refuse GPUs that this build of PyTorch has no kernels for, or that lack the asked precision.

    Raises:
        InputError: says which build to take, or which precision.
    """
    if trainer.strategy.root_device.type != "cuda":
        return
    for device in trainer.device_ids:
        name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
        built = [tuple(map(int, (arch[3:-1], arch[-1]))) for arch in torch.cuda.get_arch_list() if arch[3:].isdigit()]
        if built and capability < min(built):
            raise InputError(
                f"{name} has compute capability {'.'.join(map(str, capability))}, and this PyTorch "
                f"({torch.__version__}) begins at {'.'.join(map(str, min(built)))}: install an older one, for a V100 "
                "torch 2.14 or earlier in its CUDA 12.6 build (see PyTorch's page of previous versions)"
            )
        if "bf16" in str(trainer.precision) and capability < (8, 0):
            raise InputError(f"{name} has no bf16: take --trainer.precision 16-mixed")


def use_our_plugins(trainer: Trainer) -> None:
    """Put ours in place of Lightning's own where the user gave none: atomic checkpoints, timm's SyncBatchNorm."""
    strategy: Any = trainer.strategy
    if type(strategy.checkpoint_io) is TorchCheckpointIO:
        strategy.checkpoint_io = AtomicCheckpointIO()
    if type(getattr(strategy, "_layer_sync", None)) is TorchSyncBatchNorm:
        on_gpu = not isinstance(trainer.accelerator, CPUAccelerator)  # torch has no other
        strategy._layer_sync = SyncBatchNorm() if on_gpu else None
