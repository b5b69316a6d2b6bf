"""`frugal fit`, `validate`, `test` and `predict`: LightningCLI with the house's defaults."""

import importlib
import logging
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.utilities import rank_zero_info, rank_zero_only, rank_zero_warn

from callbacks import (
    ComplexityMonitor,
    Distillation,
    ExactResume,
    FiniteLoss,
    KnownMonitors,
    LastCheckpoint,
    LearningRates,
    PredictionWriter,
    ProgressBar,
    TrainingCurves,
    WandbSummary,
)
from callbacks.record import RunRecord
from commands import loggers, references, resume, run_folder
from commands.hardware import check_gpus, trainer_errors, use_our_plugins
from commands.numbers import check_length, check_numbers
from commands.parser import Parser, classes_first, try_int_first
from datamodules.base import DataModule, check_batch_size
from lightning_modules import Biprop
from lightning_modules.task import Task
from networks import InputError
from networks.registry import without_weights

HELP = {
    "fit": "Train a network. The run goes to runs/<path of the config>/seed<k>/; an earlier one there is kept aside. "
    "--ckpt_path last resumes it, exactly, from its last epoch or from where SIGTERM or Ctrl-C stopped it.",
    "validate": "Score a trained network on the validation data; --ckpt_path last (the default), best, or a file.",
    "test": "Score a trained network on the test data; --ckpt_path last (the default), best, or a file.",
    "predict": "Write predictions.csv, labels and probabilities, for the test data, or a detector's objects in COCO's "
    "format; --ckpt_path as for test.",
}
USAGE = (
    "frugal {} -c CONFIG [-c OVERLAY ...] [--model.ARGUMENT VALUE] [--data.ARGUMENT VALUE] [--trainer.ARGUMENT VALUE]"
)
MORE = " --model.help Biprop (or another class) lists the arguments of a model, --data.help those of a DataModule."
FROM_DATA = ("num_classes", "input_size")
BY_SCORE = "the model's score: val/top1, of a detector val/box_ap"  # as --help shows it

logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(lambda record: "Tip:" not in record.msg)  # adverts


def main(arguments: list[str]) -> None:
    """Run one of Lightning's subcommands; `arguments` begin with its name."""
    warnings.filterwarnings("ignore", ".*does not have many workers.*")  # our data sets choose their own
    warnings.filterwarnings("ignore", ".*infer the batch indices.*")  # PredictionWriter asks the loader
    warnings.filterwarnings("ignore", ".*Total length of `list` across ranks is zero.*")  # data without validation
    warnings.filterwarnings("ignore", ".*(box|mask)_ap.*sync_dist=True.*")  # it is computed once, and sent to all
    warnings.filterwarnings("ignore", ".*Previous log files in this directory will be deleted.*")  # of an earlier test
    warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated")  # Lightning's own, with recent torch
    with ExitStack() as held, trainer_errors():
        FrugalCLI(arguments, held=held)


def parse(arguments: list[str]) -> Namespace:
    """The config of a command line, with nothing built."""

    class Parsed(FrugalCLI):
        def instantiate_classes(self) -> None:
            pass

    return Parsed(arguments, run=False).config


def leave_weights_out(config: Namespace) -> dict[str, Any] | None:
    """Fetch none for a network that gets others, or none at all: machines that compute may have no way to them.

    Returns:
        The arguments of the network as they were, if they ask for weights.
    """
    init_args = (config.model or Namespace()).get("init_args", Namespace())
    given = init_args.get("network_args")
    if not isinstance(given, dict):
        return None
    init_args.network_args = without_weights(given)
    return given if given != init_args.network_args else None


def _awaits_validation(callback: Any) -> bool:
    return isinstance(callback, ModelCheckpoint) and str(callback.monitor).startswith("val/")


class FrugalCLI(LightningCLI):
    """Model and data by class path; class count and input size go from the data to the model.

    A run lives in a folder that its config and seed name, see `run_folder`; --trainer.default_root_dir overrides it.
    With `run=False` model and data are only built.

    Args:
        held: releases the run folder when it is closed.
    """

    def __init__(self, arguments: list[str], run: bool = True, held: ExitStack | None = None) -> None:
        self.arguments, self.held = arguments, held or ExitStack()
        super().__init__(
            save_config_callback=RunRecord,
            seed_everything_default=0,
            trainer_defaults={
                "enable_model_summary": False,  # it counts scores as parameters; ComplexityMonitor counts the ticket
                "callbacks": [
                    ComplexityMonitor(),
                    LearningRates(),
                    TrainingCurves(),
                    WandbSummary(),
                    PredictionWriter(),
                    ExactResume(),
                    FiniteLoss(),
                    KnownMonitors(),
                ],
            },
            parser_class=Parser,
            parser_kwargs={
                name: {"usage": USAGE.format(name), "description": text + MORE} for name, text in HELP.items()
            },
            auto_configure_optimizers=False,
            args=arguments,
            run=run,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's four, without --weights_only: loading never executes code."""
        return {name: skipped | {"weights_only"} for name, skipped in LightningCLI.subcommands().items()}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        try_int_first(parser)
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "checkpoint.filename": "best",
                "checkpoint.monitor": BY_SCORE,
                "checkpoint.mode": "max",
                "checkpoint.enable_version_counter": False,
                "data": {"class_path": "datamodules.Digits"},
            }
        )
        for name in FROM_DATA:
            parser.link_arguments(
                "data", f"model.init_args.{name}", compute_fn=self._agreeing(name), apply_on="instantiate"
            )

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand != "fit":
            parser.set_defaults({"ckpt_path": "last"})  # to test weights as they are built: --ckpt_path null
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(classes_first(args))

    def _set_seed(self) -> None:
        seed = self._get(self.config, "seed_everything")
        if not isinstance(seed, bool) and not 0 <= seed < 2**32:
            raise InputError(f"seed_everything={seed} must lie in 0 to 2**32 - 1")
        super()._set_seed()

    def _parse_ckpt_path(self) -> None:
        """Not Lightning's, which lets the checkpoint override what was typed: here the two must agree."""

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand] if self.subcommand else self.config
        init_args = (config.model or Namespace()).get("init_args", Namespace())
        self.typed = {name: init_args.get(name) for name in FROM_DATA}
        if config.checkpoint.monitor == BY_SCORE:
            module, _, name = config.model.class_path.rpartition(".") if config.model else ("", "", "")
            model = getattr(importlib.import_module(module), name) if module else None
            config.checkpoint.monitor = f"val/{getattr(model, 'score', 'top1')}"
        if self.subcommand:
            self.resolved = yaml.safe_load(self._parser(self.subcommand).dump(config, skip_none=False))
            self.resolved.pop("ckpt_path")  # belongs to the command
            self._choose_folders(config)
            self.ckpt_path = self._find_checkpoint(Path(config.checkpoint.dirpath), config.ckpt_path)
            self.ticket = self._find_ticket()
            self.checkpoint = resume.read(self.ckpt_path) if self.ckpt_path else {}
            path = self.ckpt_path
            self.resuming = path is not None and path.resolve().is_relative_to(self.folder.resolve())
            if self.subcommand == "fit" and self.resuming:
                resume.check_same_run(self.folder / "config.yaml", self.resolved)
            fits = self.subcommand == "fit"
            references.resolve(config, config.seed_everything, needs=fits, starts=fits and self.ckpt_path is None)
            asked = leave_weights_out(config)
            self.asked = None if self.ckpt_path or self.ticket else asked
            check_numbers(config.trainer)
            names = loggers.wandb_names(run_folder.typed_configs(self.arguments), self.subcommand)
            kept = self.checkpoint.get("wandb_id") if self.resuming or not fits else None
            wandb_id = loggers.choose(config.trainer, self.folder, names, kept)
            self.save_config_kwargs = {"resolved": self.resolved, "wandb_id": wandb_id}
            self._choose_callbacks(config)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer | None:  # type: ignore[override]
        if not self.subcommand:
            return None
        with trainer_errors(ValueError):
            trainer = super().instantiate_trainer(**kwargs)
        use_our_plugins(trainer)
        if not getattr(self.datamodule, "validates", True):  # then no epoch is the best one: last.ckpt is the result
            trainer.callbacks = [c for c in trainer.callbacks if not _awaits_validation(c)]  # type: ignore[attr-defined]
        return trainer

    def _choose_folders(self, config: Namespace) -> None:
        self.folder_is_ours = config.trainer.default_root_dir is None
        if self.folder_is_ours:
            folder = run_folder.run_folder(run_folder.typed_configs(self.arguments), config.seed_everything)
            config.trainer.default_root_dir = str(folder)
        self.folder = Path(config.trainer.default_root_dir)
        if config.checkpoint.dirpath is None:
            config.checkpoint.dirpath = str(self.folder / "checkpoints")
        for folder in (self.folder, Path(config.checkpoint.dirpath)):
            if folder.exists() and not folder.is_dir():
                raise InputError(f"{folder} is a file, and a run needs a folder there: rename it, or give another")
        log_folder = self.folder if self.subcommand == "fit" else self.folder / str(self.subcommand)
        config.trainer.default_root_dir = str(log_folder)

    def _find_checkpoint(self, folder: Path, given: str | None) -> Path | None:
        """`fit --ckpt_path last` begins where there is nothing to resume, as Lightning's does."""
        if self.subcommand == "fit" and given == "last" and not (folder / "last.ckpt").is_file():
            rank_zero_info(f"no checkpoint in {folder} yet: training starts at the beginning")
            return None
        return resume.checkpoint_path(folder, given)

    def _find_ticket(self) -> Path | None:
        """A ticket file stands for a checkpoint where nothing is trained."""
        if self.ckpt_path is None or self.ckpt_path.suffix != ".safetensors":
            return None
        if self.subcommand == "fit":
            raise InputError(f"{self.ckpt_path} is a ticket: it can be scored, but has no scores to train further")
        ticket, self.ckpt_path = self.ckpt_path, None
        return ticket

    def _choose_callbacks(self, config: Namespace) -> None:
        """Add what depends on the config: where last.ckpt goes, and whether there is a progress bar already."""
        if config.trainer.enable_checkpointing is False:
            raise InputError("a run keeps last.ckpt and best.ckpt: leave --trainer.enable_checkpointing out")
        callbacks, given = self.trainer_defaults["callbacks"], config.trainer.callbacks or []
        names = [callback.class_path for callback in (given if isinstance(given, list) else [given])]
        callbacks.append(LastCheckpoint(config.checkpoint.dirpath))
        if config.trainer.enable_progress_bar is not False and not any("ProgressBar" in name for name in names):
            callbacks.append(ProgressBar())

    def _agreeing(self, name: str) -> Callable[[Any], Any]:
        """What the data say of themselves, unless it contradicts what was typed."""

        def as_data_say(data: Any) -> Any:  # --help shows this name
            typed, said = self.typed[name], getattr(data, name, None)
            if typed is not None and said is not None and typed != said:
                raise InputError(f"{name} was given as {typed}, but {type(data).__name__} has {said}: leave it out")
            return said if said is not None else typed

        return as_data_say

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Refuse what cannot work before anything is touched, then make room."""
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        check_gpus(self.trainer)
        if self.ckpt_path:
            resume.check(self.ckpt_path, self.checkpoint, self.model)
            if subcommand != "fit":
                self._say_whether_unfinished()
        if self.ticket:
            if not isinstance(self.model, Biprop):
                raise InputError(f"{self.ticket} is a ticket of Biprop's, not of {type(self.model).__name__}'s")
            self.model.load_ticket(self.ticket)
        if isinstance(self.datamodule, DataModule):
            check_batch_size(self.datamodule.batch_size, self.trainer, subcommand == "fit")
            if self.trainer.is_global_zero:
                self.datamodule.prepare_data()
        if subcommand == "validate" and not getattr(self.datamodule, "validates", True):
            raise InputError(
                f"{type(self.datamodule).__name__} has nothing to validate on as it is: `frugal test` scores the test "
                "data, and --data.val_fold takes a fold from training"
            )
        if isinstance(self.model, Task):
            self.model.check_data(self.datamodule)
        if subcommand == "fit":
            self._prepare_fit()
        elif self.asked:
            self._fetch_weights()
        if not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            folder = Path(self.trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)  # from there W&B looks for the commit
        return {**kwargs, "model": self.model, "ckpt_path": self.ckpt_path, "weights_only": True}

    def _fetch_weights(self) -> None:
        """Build the model once more, with the weights that it asks for.

        To learn that they are out of reach takes a minute; all else has been refused by then.
        """
        self.config[self.subcommand].model.init_args.network_args = self.asked
        del self.config_dump  # Lightning's copy, of which a module's hyperparameters are
        self._set_seed()
        self.model = self._get(self.parser.instantiate_classes(self.config), "model")

    def _run_subcommand(self, subcommand: str) -> None:
        """A start that fails leaves an earlier run as it was: loggers have to write before all can be refused."""
        self.moved: list[Path] = []
        begun = self.checkpoint.get("global_step", 0)
        try:
            super()._run_subcommand(subcommand)
        except Exception:  # not a signal's SystemExit: that run goes on later
            if self.trainer.global_step <= begun:
                for kept in self.moved:
                    run_folder.put_back(kept)
            raise

    def _say_whether_unfinished(self) -> None:
        """A run that was stopped can be scored, but its score is not that of the recipe."""
        if self.ckpt_path and self.ckpt_path.stem == "last" and "loops" in self.checkpoint:
            done, wanted = resume.epochs_done(self.checkpoint), self.trainer.max_epochs
            if wanted is not None and done < wanted:
                rank_zero_warn(
                    f"{self.ckpt_path} has {done} of {wanted} epochs: `frugal fit ... --ckpt_path last` goes on"
                )

    def _prepare_fit(self) -> None:
        trial = self.trainer.fast_dev_run  # type: ignore[attr-defined]
        steps = None  # of an epoch
        if isinstance(self.datamodule, DataModule):
            self.datamodule.setup("fit")
            batches = len(self.datamodule.train_dataloader())
            check_length(self.trainer, batches)
            steps = batches // self.trainer.accumulate_grad_batches
        if isinstance(self.model, Task):
            if self.trainer.max_epochs is not None and not trial:
                self.model.check_epochs(self.trainer.max_epochs, steps)
            if isinstance(self.datamodule, DataModule):
                shares = self.trainer.world_size * self.trainer.accumulate_grad_batches
                self.model.check_share(self.datamodule.batch_size // shares)
            self.model.build_optimizer()
            self._check_initial(self.model.initial_checkpoint)
        done, wanted = resume.epochs_done(self.checkpoint) if self.ckpt_path else 0, self.trainer.max_epochs
        if self.resuming and not trial:
            if wanted == done:
                rank_zero_info(f"{self.folder} has its {done} epochs already: nothing to do")
                raise SystemExit
            if wanted is not None and 0 <= wanted < done:
                more = f"{done} epochs, more than --trainer.max_epochs {wanted}"
                raise InputError(f"{self.folder} has {more}: rename it to begin anew, or give more")
        self._take_weights()
        if not trial:
            self._make_room()

    def _take_weights(self) -> None:
        """Those of the network, of an earlier run, of a teacher: last, for some of them may have to be fetched."""
        if self.asked:
            self._fetch_weights()
        if isinstance(self.model, Task) and not self.ckpt_path:
            self.model.load_initial()
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Distillation):
                callback.prepare(self.model)

    def _check_initial(self, path: str | None) -> None:
        if path and self.folder_is_ours and Path(path).resolve().is_relative_to(self.folder.resolve()):
            raise InputError(f"initial_checkpoint {path} lies in the folder that this run sets aside: copy it first")

    @rank_zero_only
    def _make_room(self) -> None:
        """Keep an earlier run; of the run that is resumed, its metrics and records. A user's folder is not renamed."""
        self.held.enter_context(run_folder.lock(self.folder))
        if not any((self.folder / name).exists() for name in ("run.json", "checkpoints")):
            return
        if self.resuming:
            kept = [run_folder.set_aside(self.folder / "metrics.csv")]  # the logger deletes the one that it finds
            kept += [run_folder.copy_aside(self.folder / name) for name in ("config.yaml", "run.json")]
        elif self.folder_is_ours:
            kept = [run_folder.set_aside(self.folder)]
        else:
            raise InputError(f"{self.folder} holds a run: --ckpt_path last resumes it, or give another folder")
        self.moved = list(filter(None, kept))
        for path in self.moved:
            rank_zero_info(f"kept what an earlier run had written: {path}")
