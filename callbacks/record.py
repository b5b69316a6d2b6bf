"""Keep what made a run."""

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.cli import LightningArgumentParser, SaveConfigCallback
from pytorch_lightning.loggers import WandbLogger

from callbacks.folder import write_whole

ROOT = Path(__file__).parent.parent
SOURCES = ("*.py", "*.yaml", "*.toml")
PACKAGES = ("frugal", "torch", "pytorch-lightning", "torchmetrics", "timm", "jsonargparse", "wandb", "numpy")


class RunRecord(SaveConfigCallback):
    """Writes config.yaml, the whole resolved config, and run.json, where and with what it ran; logs both, and the code.
    `test` and `validate` leave metrics.json beside them. Runs can be filtered by method, data, seed and commit.

    The stock callback writes ./config.yaml under some loggers, and the second run dies on it. What is kept is the
    config before its folders were derived: given to another command, or with another seed, it derives them again.

    Args:
        resolved: that config.
        wandb_id: of the W&B run, kept here and in the checkpoint, so that a resumed run goes on in it.
    """

    def __init__(
        self, parser: LightningArgumentParser, config: Namespace, resolved: dict[str, Any], wandb_id: str | None
    ) -> None:
        super().__init__(parser, config, save_to_log_dir=False)
        self.resolved, self.wandb_id = resolved, wandb_id

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["wandb_id"] = self.wandb_id

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        folder = Path(trainer.default_root_dir)  # trainer.log_dir broadcasts, and this runs on one process
        folder.mkdir(parents=True, exist_ok=True)
        record = {**provenance(), "wandb_id": self.wandb_id}
        write_whole(folder / "config.yaml", yaml.safe_dump(self.resolved, sort_keys=False))
        write_whole(folder / "run.json", json.dumps(record, indent=2) + "\n")
        named = {
            "method": type(pl_module).__name__,
            "data": type(trainer.datamodule).__name__,  # type: ignore[attr-defined]
            "seed": self.resolved["seed_everything"],
        }
        for logger in trainer.loggers:
            logged = {"resolved": self.resolved, "run": record}  # `config` is a parameter of our sweeps
            if stage == "fit":
                logger.log_hyperparams({**named, "commit": record["commit"], **logged})
            else:  # a test goes on in the run of its fit
                logger.log_hyperparams({**named, stage: logged})
            if stage == "fit" and isinstance(logger, WandbLogger):
                _log_code(logger)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _write_metrics(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            _write_metrics(trainer)


def _write_metrics(trainer: Trainer) -> None:
    """metrics.json: what was scored, whatever the logger."""
    if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        (Path(trainer.default_root_dir) / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")


def _log_code(logger: WandbLogger) -> None:
    """Keep our sources with the W&B run; W&B adds the commit and the changes since."""
    ours = (_git("ls-files", *SOURCES) or "").splitlines() + _new_sources()
    names = [name for name in ours if (ROOT / name).is_file()]
    with tempfile.TemporaryDirectory() as folder:  # W&B would walk through the environment, the data and the runs
        for name in names:
            (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, Path(folder) / name)
        if names:
            logger.experiment.log_code(folder, include_fn=lambda path: True)


def provenance() -> dict[str, Any]:
    """Command, git commit, versions and hardware of this process."""
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": None if changes is None else bool(changes or _new_sources()),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "hardware": {
            "machine": platform.machine(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
    }


def _new_sources() -> list[str]:
    """Sources that git does not know yet, such as a new method's: the commit does not tell what ran."""
    return (_git("ls-files", "--others", "--exclude-standard", *SOURCES) or "").splitlines()


def _git(*args: str) -> str | None:
    """Output of git in our own checkout; None where there is none."""
    try:
        return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    """Name of the processor, where the system tells it."""
    try:
        return re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[0]
    except (OSError, IndexError):
        return platform.processor()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
