"""How a classifier is trained: loss, loss terms, metrics, optimiser and schedule. Every method inherits it."""

import math
from collections.abc import Callable
from typing import Any

import torch
from pytorch_lightning.cli import OptimizerCallable
from timm.data import Mixup
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

import networks
from lightning_modules.schedules import check_epochs, check_schedule, warmup_then
from lightning_modules.task import Network, Schedule, Task
from networks import InputError

LossTerm = Callable[[Any, Tensor], Tensor]  # (batch, outputs) -> loss


class Classifier(Task):
    """Trains any network to classify: cross-entropy with label smoothing, top-1 and top-5 accuracy.

    Logs train/loss, train/top1, val/loss, val/top1, test/loss, test/top1, and top5 where there are more than five
    classes; accuracies are fractions. `loss_terms` maps a name to a callable (batch, outputs) -> loss; each term is
    added to the loss in training and logged as train/<name>.

    Args:
        network: a timm name ("conv4", "resnet18"), the import path of your own ("my_own.Net"), or, from Python, any
            module that gives logits (N, num_classes).
        num_classes: number of classes; the command takes it from the data.
        input_size: size of one input, (C, H, W) or (C, T); the command takes it from the data.
        network_args: arguments for a network given by name, such as {"width": 0.5}.
        optimizer: builds the optimiser from parameter groups.
        schedule: "cosine" from the optimiser's rate to 0 over trainer.max_epochs, "steps", or "constant"; or a class of
            torch's or lightning_modules.schedules.StepDecay. It changes every epoch.
        drop_epochs: with "steps", epochs from which on the rate is a tenth of what it was, warm-up included.
        warmup_epochs: w epochs before that with rate * (epoch + 1) / w.
        label_smoothing: mass spread evenly over the classes, in evaluation's loss too.
        mixup_alpha: train on mixtures of pairs, by timm's Mixup, with weights from Beta(alpha, alpha), one for each
            batch of a device (Zhang et al., ICLR 2018); 0 is none. Loss, loss terms and train/top1 see mixed images
            and labels; the label of larger weight counts as the true one.
        initial_checkpoint: file whose weights training starts from: a checkpoint of ours or of the paper's authors, a
            state_dict, safetensors. What matches by name and size is taken, the rest reported. (--ckpt_path is for
            resuming a run.)

    Raises:
        InputError: an unknown network, or one that does not fit num_classes or input_size; initial weights that cannot
            be read or that do not match at all.
    """

    score = "top1"

    def __init__(
        self,
        network: Network,
        num_classes: int | None = None,
        input_size: tuple[int, ...] | None = None,
        network_args: dict[str, Any] | None = None,
        optimizer: OptimizerCallable = lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-4),
        schedule: Schedule = "cosine",
        drop_epochs: tuple[int, ...] = (),
        warmup_epochs: int = 0,
        label_smoothing: float = 0.0,
        mixup_alpha: float = 0.0,
        initial_checkpoint: str | None = None,
    ) -> None:
        super().__init__(num_classes, input_size, optimizer, schedule, initial_checkpoint)
        objects = {"optimizer": optimizer, "schedule": schedule, "network": network}
        self.save_hyperparameters(ignore=[name for name, value in objects.items() if not isinstance(value, str)])
        if warmup_epochs < 0 or not 0 <= label_smoothing <= 1:
            raise InputError(f"{warmup_epochs=} must not be negative, {label_smoothing=} must lie in 0 to 1")
        if not 0 <= mixup_alpha < math.inf:
            raise InputError(f"{mixup_alpha=} must not be negative")
        check_schedule(schedule, drop_epochs, warmup_epochs=warmup_epochs)
        if isinstance(network, str):
            network = networks.create(network, self.input_size, num_classes, network_args)
        outputs = networks.complexity.output_size(network, self.input_size)
        if outputs not in ((), (num_classes,)):
            raise InputError(f"the network gives outputs of size {outputs}, not ({num_classes},), one per class")
        self.network = network
        self.drop_epochs, self.warmup_epochs = tuple(drop_epochs), warmup_epochs
        # No smoothing here: the criterion smooths.
        self.mixup = Mixup(mixup_alpha, label_smoothing=0.0, num_classes=num_classes) if mixup_alpha else None
        self.criterion = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        self.loss_terms: dict[str, LossTerm] = {}
        top_k = {"top1": 1, "top5": 5} if self.num_classes > 5 else {"top1": 1}
        self.metrics = nn.ModuleDict()
        for stage in ("train", "val", "test"):  # without checks, which would wait for the device in every step
            self.metrics[f"{stage}/loss"] = MeanMetric(nan_strategy="disable")
            for name, k in top_k.items():
                accuracy = MulticlassAccuracy(self.num_classes, k, average="micro", validate_args=False)
                self.metrics[f"{stage}/{name}"] = accuracy

    def on_fit_start(self) -> None:
        super().on_fit_start()
        for name in self.loss_terms:
            self.mean_of(f"train/{name}")

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of inputs (N, *input_size)."""
        return self.network(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        batch = inputs, targets = self._mix(*batch)
        outputs = self(inputs)
        loss = self.criterion(outputs, targets)
        for name, term in self.loss_terms.items():
            value = term(batch, outputs)
            self.log_mean(f"train/{name}", value.expand(len(targets)))
            loss = loss + value
        self.log("train/loss_step", loss, prog_bar=True)
        self._measure("train", loss, outputs, labels_of(targets))
        return loss

    def check_share(self, samples: int) -> None:
        """Refuse a device's share of a step that cannot be mixed in pairs (InputError)."""
        if self.mixup is not None and samples % 2:
            raise InputError(
                f"mixup pairs samples, and a device has {samples} in a step: give a data.batch_size of which devices "
                "and accumulated steps get even shares"
            )

    def _mix(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mixed inputs and the probabilities of their classes, (N, num_classes)."""
        if self.mixup is None:
            return inputs, targets
        self.check_share(len(targets))
        return self.mixup(inputs.clone(), targets)  # it works in place, and data may be kept

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate("val", batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate("test", batch)

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Probabilities (N, num_classes) and, from the data, the true labels (N,)."""
        inputs, targets = batch
        return {"probabilities": self._outputs(inputs).softmax(-1), "targets": targets}

    def _outputs(self, inputs: Tensor) -> Tensor:
        """Logits in evaluation; of several crops (N, crops, *input_size) the logarithms of mean probabilities.

        A process may have no share of the last batch, and not every network takes that.
        """
        if not len(inputs):
            return inputs.new_zeros(0, self.num_classes)
        if inputs.ndim == len(self.input_size) + 1:
            return self(inputs)
        each = [self(crop).log_softmax(-1) for crop in inputs.unbind(1)]
        return torch.stack(each).logsumexp(0) - math.log(len(each))

    def _evaluate(self, stage: str, batch: Any) -> None:
        inputs, targets = batch
        outputs = self._outputs(inputs)
        self._measure(stage, self.criterion(outputs, targets), outputs, targets)

    def _measure(self, stage: str, loss: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Log metric objects, which stay exact over uneven batches and several processes."""
        for name, metric in self.metrics.items():
            if not name.startswith(f"{stage}/"):
                continue
            if len(targets):  # else this process only logs, for all wait for each other at the epoch's end
                # A loss for each sample: without its checks torchmetrics (1.7 to 1.9) drops the weights of values.
                mean = isinstance(metric, MeanMetric)
                values = (loss.detach().expand(len(targets)),) if mean else (outputs.detach(), targets)
                metric.update(*values)  # type: ignore[operator]
            self.log(name, metric, on_step=False, on_epoch=True, prog_bar=name == "val/top1")  # type: ignore[arg-type]

    def check_epochs(self, epochs: int, steps: int | None) -> None:
        check_epochs(self.schedule, epochs, self.warmup_epochs)

    def schedule_config(self, optimizer: Optimizer) -> dict[str, Any] | None:
        if self.schedule == "constant" and not self.warmup_epochs:
            return None
        if not isinstance(self.schedule, str):
            return {"scheduler": self.schedule(optimizer), "interval": "epoch"}
        epochs = self.trainer.max_epochs or 0
        scheduler = warmup_then(self.schedule, optimizer, epochs, self.warmup_epochs, self.drop_epochs)
        return {"scheduler": scheduler, "interval": "epoch"}


def labels_of(targets: Tensor) -> Tensor:
    """Labels (N,); of a mixture's probabilities (N, num_classes) the likeliest."""
    return targets.argmax(-1) if targets.ndim == 2 else targets
