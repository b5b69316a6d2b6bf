"""One trial of a search: a channel list, trained with one seed."""

import os
import secrets
import time
from typing import Any, NamedTuple

import numpy as np
from pytorch_lightning import Callback, LightningModule, Trainer

import networks
from callbacks.record import provenance
from networks import InputError
from networks.rexnet import space
from studies.search_options import SearchCLI

_KEPT: dict[str, Any] = {}  # the data of this process, which its trials share


class Trial(NamedTuple):
    """What is trained."""

    channels: tuple[int, ...]
    seed: int

    @property
    def name(self) -> str:
        return f"{'-'.join(map(str, self.channels))}_seed{self.seed}"


class Curve(Callback):
    """The validation's top-1 after each epoch."""

    def __init__(self) -> None:
        self.top1: list[float] = []

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.top1.append(round(float(trainer.callback_metrics["val/top1"]), 6))


def train(arguments: list[str], trial: Trial, group: str) -> dict[str, Any]:
    """Train and test, and say what came out.

    A trial whose loss becomes infinite has chance's accuracy, and says so.

    Args:
        arguments: of `frugal search`.
        trial: what is trained.
        group: of the study, whose runs are one group in Weights & Biases.

    Raises:
        InputError: what cannot work in any trial; a built network that does not cost what the closed form says.
    """
    began, made_by = time.monotonic(), provenance()
    os.environ["WANDB_RUN_GROUP"] = group
    logger = {"id": secrets.token_hex(4), "name": trial.name, "save_dir": f"runs/{group}/loggers"}
    cli = SearchCLI([*arguments, "--seed_everything", str(trial.seed)], trial.channels, logger)
    model, trainer, data, curve = cli.model, cli.trainer, _kept(cli), Curve()
    _check_cost(model, trial.channels, cli.around)
    trainer.callbacks.append(curve)  # type: ignore[attr-defined]
    diverged = False
    try:
        trainer.fit(model, data)
        metrics = trainer.test(model, data, verbose=False)[0]
    except InputError as error:
        if "NaN or infinite" not in str(error):
            raise
        diverged, metrics = True, {"test/top1": 1 / model.num_classes}
    finally:
        _finish_wandb(trainer)
    return {
        "channels": list(trial.channels),
        "seed": trial.seed,
        "top1": metrics["test/top1"],
        "metrics": metrics,
        "diverged": diverged,
        "curve": curve.top1,
        "seconds": round(time.monotonic() - began, 2),
        "device": trainer.strategy.root_device.type,
        **{name: made_by[name] for name in ("commit", "uncommitted_changes")},
    }


def _kept(cli: SearchCLI) -> Any:
    """The data, read once in each process; their order is that of this trial's seed."""
    data = _KEPT.setdefault(str(cli.config.data), cli.datamodule)
    data.seed = None
    return data


def _check_cost(model: Any, channels: tuple[int, ...], around: space.Around) -> None:
    report = networks.complexity.count(model.network, model.input_size)
    lists, classes = np.array([channels]), model.num_classes
    formula = int(space.params(lists, classes, around)[0]), int(space.macs(lists, classes, around)[0])
    if (report.params, report.flops) != formula:
        raise InputError(
            f"{channels} has {report.params} parameters and {report.flops} multiply-adds, where the closed form says "
            f"{formula}: model.network_args change the network's cost in a way that budgets do not know"
        )


def _finish_wandb(trainer: Trainer) -> None:
    """One run for each trial: a process that trains several has to end it."""
    if any(type(logger).__name__ == "WandbLogger" for logger in trainer.loggers):
        import wandb

        wandb.finish()
