"""`frugal fit`, `validate`, `test` and `predict`: LightningCLI with the house's defaults."""

import logging
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.utilities import rank_zero_info, rank_zero_only

from callbacks import ComplexityMonitor, PredictionWriter, TrainingCurves
from callbacks.record import RunRecord
from commands import run_folder
from commands.parser import Parser
from datamodules.batching import device_batch_size
from networks import InputError

HELP = {
    "fit": "Train a network. The run goes to runs/<path of the config>/seed<k>/; an earlier one there is kept aside. "
    "--ckpt_path last resumes it.",
    "validate": "Score a trained network on the validation data; --ckpt_path last (the default), best, or a file.",
    "test": "Score a trained network on the test data; --ckpt_path last (the default), best, or a file.",
    "predict": "Write predictions.csv, labels and probabilities, for the test data; --ckpt_path as for test.",
}
USAGE = (
    "frugal {} -c CONFIG [-c OVERLAY ...] [--model.ARGUMENT VALUE] [--data.ARGUMENT VALUE] [--trainer.ARGUMENT VALUE]"
)
MORE = " --model.help Biprop (or another class) lists the arguments of a model, --data.help those of a DataModule."
FROM_DATA = ("num_classes", "input_size")


def main(arguments: list[str] | None = None) -> None:
    """Run one of Lightning's subcommands; `arguments` begin with its name."""
    warnings.filterwarnings("ignore", ".*does not have many workers.*")  # our data sets choose their own
    warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated")  # Lightning's own, with recent torch
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(lambda record: "Tip:" not in record.msg)
    FrugalCLI(arguments)


class FrugalCLI(LightningCLI):
    """Model and data by class path; class count and input size go from the data to the model.

    A run lives in a folder that its config and seed name, see `run_folder`; --trainer.default_root_dir overrides it.
    With `run=False` model and data are only built.
    """

    def __init__(self, arguments: list[str] | None, run: bool = True) -> None:
        super().__init__(
            save_config_callback=RunRecord,
            seed_everything_default=0,
            trainer_defaults={
                "enable_model_summary": False,  # it counts scores as parameters; ComplexityMonitor counts the ticket
                "callbacks": [ComplexityMonitor(), TrainingCurves(), PredictionWriter()],
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
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "checkpoint.filename": "best",
                "checkpoint.monitor": "val/top1",
                "checkpoint.mode": "max",
                "checkpoint.enable_version_counter": False,
                "data": {"class_path": "datamodules.Digits"},
            }
        )
        for name in FROM_DATA:
            parser.link_arguments(
                "data", f"model.init_args.{name}", compute_fn=partial(self._agree, name), apply_on="instantiate"
            )

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand != "fit":
            parser.set_defaults({"ckpt_path": "last"})  # to test weights as they are built: --ckpt_path null
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """Not Lightning's, which lets the checkpoint override what was typed: here the two must agree."""

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand] if self.subcommand else self.config
        init_args = (config.model or Namespace()).get("init_args", Namespace())
        self.typed = {name: init_args.get(name) for name in FROM_DATA}
        if self.subcommand:
            self.save_config_kwargs = {"resolved": config.clone()}
            self._choose_folders(config)
            # last.ckpt is written after every epoch, also where validation is rarer
            last = ModelCheckpoint(
                config.checkpoint.dirpath, "last", save_on_train_epoch_end=True, enable_version_counter=False
            )
            self.trainer_defaults["callbacks"].append(last)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer | None:  # type: ignore[override]
        return super().instantiate_trainer(**kwargs) if self.subcommand else None

    def _choose_folders(self, config: Namespace) -> None:
        self.folder_is_ours = config.trainer.default_root_dir is None
        if self.folder_is_ours:
            configs = [path.absolute for path in config.config or []]
            config.trainer.default_root_dir = str(run_folder.run_folder(configs, config.seed_everything))
        self.folder = Path(config.trainer.default_root_dir)
        if config.checkpoint.dirpath is None:
            config.checkpoint.dirpath = str(self.folder / "checkpoints")
        log_folder = str(self.folder if self.subcommand == "fit" else self.folder / str(self.subcommand))
        config.trainer.default_root_dir = log_folder
        if config.trainer.logger in (None, True):
            csv = {"save_dir": log_folder, "name": "", "version": ""}
            config.trainer.logger = Namespace(
                class_path="pytorch_lightning.loggers.CSVLogger", init_args=Namespace(csv)
            )
        loggers = config.trainer.logger if isinstance(config.trainer.logger, list) else [config.trainer.logger]
        for logger in filter(None, loggers):
            if logger.init_args.get("save_dir") in (None, "."):
                logger.init_args.save_dir = log_folder
            if logger.init_args.get("name", "") is None:
                logger.init_args.name = str(self.folder)

    def _agree(self, name: str, data: Any) -> Any:
        """What the data say of themselves, unless it contradicts what was typed."""
        typed, said = self.typed[name], getattr(data, name, None)
        if typed is not None and said is not None and typed != said:
            raise InputError(f"{name} was given as {typed}, but {type(data).__name__} has {said}: leave it out")
        return said if said is not None else typed

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        path = run_folder.checkpoint(self.folder, kwargs["ckpt_path"])
        if path:
            self._check(path)
        if hasattr(self.datamodule, "batch_size"):
            device_batch_size(self.datamodule.batch_size, self.trainer, subcommand == "fit")
        if subcommand == "fit" and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._make_room(resuming=path is not None and path.resolve().is_relative_to(self.folder.resolve()))
        return {**kwargs, "ckpt_path": path, "weights_only": True}

    def _check(self, path: Path) -> None:
        """Refuse, before anything is touched, a file that is no whole checkpoint or is of another network."""
        try:  # reads no tensor and executes nothing
            checkpoint = torch.load(path, map_location="meta", weights_only=True, mmap=True)
            self.model.on_load_checkpoint(checkpoint)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        except Exception as error:
            reason = str(error).split("\n")[0]
            raise InputError(
                f"{path} is cut short or not a checkpoint ({reason}): take another, such as best.ckpt beside it"
            ) from error

    @rank_zero_only
    def _make_room(self, resuming: bool) -> None:
        """Keep an earlier run; of the run that is resumed, its metrics and records. A user's folder is not renamed."""
        if not (self.folder / "run.json").exists():
            return
        if not resuming and not self.folder_is_ours:
            raise InputError(f"{self.folder} holds a run: --ckpt_path last resumes it, or give another folder")
        earlier = ("metrics.csv", "config.yaml", "run.json") if resuming else ("",)
        for kept in [run_folder.set_aside(self.folder / name) for name in earlier]:
            if kept:
                rank_zero_info(f"kept what an earlier run had written: {kept}")
