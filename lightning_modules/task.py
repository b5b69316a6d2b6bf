"""What all our LightningModules share: initial weights, optimiser groups, means of losses, checkpoints that fit."""

from types import ModuleType
from typing import Any

from pytorch_lightning import Callback, LightningModule
from pytorch_lightning.cli import OptimizerCallable
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric

from callbacks.layer_monitor import LayerMonitor
from callbacks.sampling_map import SamplingMap
from lightning_modules import initial
from lightning_modules.schedules import NamedSchedule, Schedule, set_rates
from networks import InputError
from networks.errors import check_choice, mismatch
from networks.registry import without_weights

Network = Any  # str | nn.Module; spelled out, --help would list every module of torch


class Task(LightningModule):
    """Trains a network: Classifier and Detector say for what, and methods inherit those.

    Args:
        num_classes, input_size: as the data say; refused where they are not known.
        optimizer: builds the optimiser from parameter groups.
        schedule: of the learning rate, by name or a class; see `schedule_config`.
        initial_checkpoint: file whose weights training starts from.

    Raises:
        InputError: class count or input size that are not known, an unknown schedule.
    """

    release: ModuleType | None = None  # reads the authors' checkpoints: is_release(state), from_release(state, network)
    defining: tuple[str, ...] = ("network", "network_args")  # what a checkpoint and its model must have in common
    score: str  # name of the metric that says how good the network is
    learns = "labels"  # what of the data: as DataModule.gives

    def __init__(
        self,
        num_classes: int | None,
        input_size: tuple[int, ...] | None,
        optimizer: OptimizerCallable,
        schedule: Schedule,
        initial_checkpoint: str | None,
    ) -> None:
        super().__init__()
        if num_classes is None or input_size is None:
            raise InputError("num_classes and input_size are not known: give both, or data that says them")
        self.num_classes, self.input_size = num_classes, tuple(input_size)
        if isinstance(schedule, str):
            check_choice("schedule", schedule, NamedSchedule)
        self.optimizer, self.schedule = optimizer, schedule
        self.initial_checkpoint = initial_checkpoint
        self.means = nn.ModuleDict()

    def setup(self, stage: str) -> None:
        self.check_data(getattr(self.trainer, "datamodule", None))

    def check_data(self, data: Any) -> None:
        """Refuse data of another kind or class count before anything runs (InputError)."""
        if getattr(data, "gives", self.learns) != self.learns:
            raise InputError(
                f"{type(self).__name__} learns {self.learns}, and {type(data).__name__} gives {data.gives}: take other "
                f"--data, or --model {'Detector' if data.gives == 'objects' else 'Classifier'}"
            )
        classes = getattr(data, "num_classes", self.num_classes)
        if classes != self.num_classes:
            raise InputError(f"the model has num_classes={self.num_classes}, the data have {classes}: drop num_classes")

    def configure_callbacks(self) -> list[Callback]:
        """What draws the figures that a method tells of its layers."""
        drawing = {"layer_metrics": LayerMonitor, "sampling": SamplingMap}
        return [callback() for told, callback in drawing.items() if hasattr(self, told)]

    def on_fit_start(self) -> None:
        self.load_initial()

    def load_initial(self) -> None:
        """Take the weights of `initial_checkpoint`, once, and report what matched and what did not."""
        path, self.initial_checkpoint = self.initial_checkpoint, None
        if path:
            weights = initial.read(path)
            if self.release and self.release.is_release(weights.tensors):
                weights.tensors = self.release.from_release(weights.tensors, self.network)
            rank_zero_info(self.start_from(weights))

    def start_from(self, weights: initial.Weights) -> str:
        """Take what matches by name and size, and say what matched; a method overrides it where its steps differ."""
        return initial.copy_into(self, weights)

    def log_mean(self, name: str, values: Tensor) -> None:
        """Log the mean of values, one for each sample, (N,), exactly over the epoch's batches and all processes."""
        mean = self.mean_of(name)
        mean.update(values.detach())
        self.log(name, mean, on_step=False, on_epoch=True, metric_attribute=f"means.{name}")

    def mean_of(self, name: str) -> MeanMetric:
        """The metric behind `log_mean`; made before a fit starts, it can be restored when a run is resumed."""
        if name not in self.means:
            self.means[name] = MeanMetric(nan_strategy="disable").to(self.device)
        return self.means[name]  # type: ignore[return-value]

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether weight decay acts on a trained parameter; a method overrides it where its paper says so."""
        return True

    def rate_factor(self, name: str, parameter: nn.Parameter) -> float:
        """By which the learning rate of a trained parameter is multiplied; a method overrides it."""
        return 1.0

    def build_optimizer(self) -> Optimizer:
        """The optimiser of all trained parameters.

        Raises:
            InputError: it refuses what it was given, such as a negative rate.
        """
        groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                kind = self.decays(name, parameter), self.rate_factor(name, parameter)
                groups.setdefault(kind, []).append(parameter)
        kinds = sorted(groups, reverse=True)
        given: list[dict[str, Any]] = [
            {"params": groups[decays, factor], **({} if decays else {"weight_decay": 0.0})} for decays, factor in kinds
        ]
        try:
            optimizer = self.optimizer(given)
        except (ValueError, TypeError) as error:
            raise InputError(f"model.optimizer: {error}; see --model.optimizer.help") from error
        for group, (_, factor) in zip(optimizer.param_groups, kinds, strict=True):
            if factor != 1:
                group["lr"] = group["lr"] * factor
        return optimizer

    def configure_optimizers(self) -> Any:
        optimizer = self.build_optimizer()
        config = None if self.trainer.fast_dev_run else self.schedule_config(optimizer)  # type: ignore[attr-defined]
        if config is None:
            return optimizer
        if hasattr(config["scheduler"], "monitor"):  # Lightning's ReduceLROnPlateau
            config["monitor"] = config["scheduler"].monitor
        return {"optimizer": optimizer, "lr_scheduler": config}

    def schedule_config(self, optimizer: Optimizer) -> dict[str, Any] | None:
        """Lightning's description of the schedule: {"scheduler": ..., "interval": "epoch" or "step"}; None is none."""
        raise NotImplementedError

    def check_epochs(self, epochs: int, steps: int | None) -> None:
        """Refuse a number of epochs, of `steps` each if that is known, that the schedule cannot have (InputError)."""

    def check_share(self, samples: int) -> None:
        """Refuse a device's share of a step that cannot be trained on (InputError), before a run begins."""

    def on_train_start(self) -> None:
        """A resumed run may have another max_epochs, and its checkpoint has the rate that came next in the old one."""
        for config in self.trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, LambdaLR):
                set_rates(config.scheduler)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["method"] = type(self).__name__
        checkpoint["means"] = list(self.means)

    def definition(self, name: str, value: Any) -> Any:
        """What of an argument in `defining` a checkpoint and its model must have in common: no weights to fetch."""
        return without_weights(value) if name == "network_args" else value

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another method or network, in one line instead of a list of its tensors."""
        self.initial_checkpoint = None  # these weights come instead
        for name in checkpoint.get("means", ()):  # so that ExactResume can restore them
            self.mean_of(name)
        method = checkpoint.get("method", type(self).__name__)
        if method != type(self).__name__:
            raise InputError(
                f"the checkpoint was trained by {method}, not by {type(self).__name__}; give the config that it was "
                "trained with, or start from its weights: --model.initial_checkpoint FILE"
            )
        trained = checkpoint.get("hyper_parameters", {})
        for name in self.defining:
            if name in trained and name in self.hparams:
                then, now = self.definition(name, trained[name]), self.definition(name, self.hparams[name])
                if then != now:
                    raise InputError(
                        f"the checkpoint was trained with {name}={trained[name]}, this model has {self.hparams[name]}; "
                        "give the config that it was trained with"
                    )
        if wrong := mismatch(self.state_dict(), checkpoint["state_dict"]):
            network = self.hparams.get("network", type(self.network).__name__)
            raise InputError(
                f"the checkpoint is of another network than this {network}: {wrong}; give the config that it was "
                "trained with"
            )
