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
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.cli import SaveConfigCallback

PACKAGES = ("frugal", "torch", "pytorch-lightning", "torchmetrics", "timm", "jsonargparse", "wandb", "numpy")


class RunRecord(SaveConfigCallback):
    """Writes config.yaml, the whole resolved config, and run.json, where and with what it ran; logs both.

    The stock callback writes ./config.yaml under some loggers, and the second run dies on it.
    """

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        folder = Path(trainer.default_root_dir)  # trainer.log_dir broadcasts, and this runs on one process
        folder.mkdir(parents=True, exist_ok=True)
        config = self.parser.dump(self.config, skip_none=False)
        record = provenance()
        (folder / "config.yaml").write_text(config)
        (folder / "run.json").write_text(json.dumps(record, indent=2) + "\n")
        for logger in trainer.loggers:
            logger.log_hyperparams({"config": yaml.safe_load(config), "run": record})


def provenance() -> dict[str, Any]:
    """Command, git commit, versions and hardware of this process."""
    return {
        "command": sys.argv,
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
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
