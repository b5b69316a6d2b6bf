"""Keep what made a run."""

import importlib.metadata
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.cli import LightningArgumentParser, SaveConfigCallback

PACKAGES = ("frugal", "torch", "pytorch-lightning", "torchmetrics", "timm", "jsonargparse", "wandb", "numpy")


class RunRecord(SaveConfigCallback):
    """Writes config.yaml, the whole resolved config, and run.json, where and with what it ran; logs both.

    The stock callback writes ./config.yaml under some loggers, and the second run dies on it. What is kept is the
    config before its folders were derived: given to another command, or with another seed, it derives them again.

    Args:
        resolved: that config.
    """

    def __init__(self, parser: LightningArgumentParser, config: Namespace, resolved: Namespace) -> None:
        super().__init__(parser, config, save_to_log_dir=False)
        self.resolved = resolved

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        folder = Path(trainer.default_root_dir)  # trainer.log_dir broadcasts, and this runs on one process
        folder.mkdir(parents=True, exist_ok=True)
        resolved = yaml.safe_load(self.parser.dump(self.resolved, skip_none=False))
        resolved.pop("ckpt_path")  # belongs to the command
        config = yaml.safe_dump(resolved, sort_keys=False)
        record = provenance()
        (folder / "config.yaml").write_text(config)
        (folder / "run.json").write_text(json.dumps(record, indent=2) + "\n")
        for logger in trainer.loggers:
            logger.log_hyperparams({"config": resolved, "run": record})


def provenance() -> dict[str, Any]:
    """Command, git commit, versions and hardware of this process."""
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return {
        "command": sys.argv,
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": None if changes is None else bool(changes),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "hardware": {
            "machine": platform.machine(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
    }


def _git(*args: str) -> str | None:
    """Output of git in our own checkout; None where there is none."""
    try:
        here = Path(__file__).parent
        return subprocess.run(["git", *args], cwd=here, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
