"""A run to compare processes with: python training.py DEVICES FOLDER

Writes result.pt: gradients of the first step and weights after training with batch normalisation in eval mode, metrics
over an odd number of samples, and whether the processes agree. What the processes hold in common comes from rank 0.
"""

import copy
import os
import sys
from pathlib import Path

import numpy as np
import torch
from methods import METHODS, build, build_callbacks, write_teacher
from pytorch_lightning import Callback, LightningDataModule, Trainer, seed_everything
from pytorch_lightning.loggers import CSVLogger, WandbLogger
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from callbacks import Distillation, ExactResume, LastCheckpoint, LayerMonitor
from datamodules.base import DataModule
from datamodules.images import Images
from lightning_modules import Biprop, Classifier, Epitome, ExpertBinary
from networks.biprop import subnet_layers
from networks.bits import random_signs
from networks.epitome import EpitomeConv2d


class Odd(DataModule):
    """19 images to train, 7 to validate, 11 to test: on two processes some shares of the last batches are empty."""

    num_classes, input_size = 10, (1, 8, 8)

    def setup(self, stage=None):
        rng = np.random.default_rng(0)
        self.train_set, self.val_set, self.test_set = (
            Images(rng.integers(0, 17, (n, 1, 8, 8), dtype=np.uint8), rng.integers(0, 10, n), (8.0,), (5.0,), pad, flip)
            for n, pad, flip in ((19, 1, True), (7, 0, False), (11, 0, False))
        )


class OneImage(Odd):
    """Always the same image, so that what a device averages over its share is the same on every one."""

    def setup(self, stage=None):
        super().setup(stage)
        labels, crops = self.train_set.labels, self.train_set.crops[:1, :, 1, 1]
        self.train_set = Images(crops.repeat(len(labels), 0), labels, (8.0,), (5.0,))


class FixedStatistics(Callback):
    """Batch normalisation in eval mode alone, and no dropout: there processes and the joined batch compute the same."""

    def on_train_epoch_start(self, trainer, pl_module):
        for layer in pl_module.modules():
            if isinstance(layer, _BatchNorm | nn.Dropout):
                layer.eval()


class FirstGradients(Callback):
    def __init__(self):
        self.gradients = None

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if self.gradients is None:
            named = pl_module.named_parameters()
            self.gradients = {name: p.grad.clone() for name, p in named if p.grad is not None}


class FixedBatchNorm(Classifier):
    """Trains with batch normalisation in eval mode, where processes and the joined batch have equal gradients."""

    def on_train_epoch_start(self):
        self.network.eval()


def trainer(devices: int, folder: str, *callbacks: Callback, logger=False, **options) -> Trainer:
    return Trainer(
        accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", max_epochs=2, logger=logger,
        callbacks=list(callbacks), default_root_dir=folder, enable_checkpointing=bool(options),
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, **options,
    )  # fmt: skip


def gradients_of(name: str, devices: int, folder: Path) -> dict[str, Tensor]:
    """Gradients of a method's first step."""
    torch.manual_seed(4)
    options = {"network_args": {"width": 0.1, "drop_rate": 0.0, "drop_path_rate": 0.0}} if name == "rexnet" else {}
    module, gradients = build(name, **options), FirstGradients()
    data = OneImage(4) if "routed" in name else Odd(4)
    runner = trainer(devices, str(folder), *build_callbacks(name), FixedStatistics(), gradients, max_steps=1)
    runner.fit(module, datamodule=data)
    assert gradients.gradients is not None
    return gradients.gradients


def one_wandb_run(devices: int, folder: Path) -> dict[str, bool]:
    """A run that W&B watches offline; and what holds of it."""
    import wandb

    torch.manual_seed(0)
    logger = WandbLogger(save_dir=folder, offline=True)
    trainer(devices, str(folder), logger=logger).fit(build("biprop"), datamodule=Odd(batch_size=4))
    opened = [wandb.run is not None] * devices
    if devices > 1:
        torch.distributed.all_gather_object(opened, wandb.run is not None)
    wandb.finish()
    return {
        "opened by rank 0 alone": opened == [True, *[False] * (devices - 1)],
        "one folder": len(list(folder.rglob("offline-run-*/run-*.wandb"))) == 1,
    }


def with_dropout(devices: int, folder: Path, seed: int, max_steps: int = -1, resume: bool = False) -> dict:
    """State after training a network whose dropout draws other numbers in each process."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(0.5), nn.Linear(144, 10))
    module = Classifier(net, 10, (1, 8, 8))
    torch.manual_seed(seed + int(os.environ.get("LOCAL_RANK", 0)))
    runner = trainer(devices, str(folder), ExactResume(), LastCheckpoint(folder), max_steps=max_steps)
    runner.fit(module, datamodule=Odd(4), ckpt_path=folder / "last.ckpt" if resume else None, weights_only=True)
    return {name: value.clone() for name, value in module.state_dict().items()}


def resumed_equals_straight(devices: int, folder: Path) -> bool:
    """Stopped after 6 of 8 steps, in the middle of the second epoch, and resumed by processes with other states."""
    straight = with_dropout(devices, folder / "straight", seed=1)
    stopped = with_dropout(devices, folder / "parts", seed=1, max_steps=6)
    resumed = with_dropout(devices, folder / "parts", seed=50, resume=True)
    differs = any(not torch.equal(stopped[name], value) for name, value in straight.items())
    return differs and all(torch.equal(resumed[name], value) for name, value in straight.items())


def same_everywhere(module: nn.Module) -> bool:
    """Whether every process holds the same parameters and, but for running statistics, buffers."""
    mine = {name: tensor for name, tensor in module.state_dict().items() if ".running_" not in name}
    if torch.distributed.is_initialized():
        everyone = [mine] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(everyone, mine)
        return all(torch.equal(other[name], mine[name]) for other in everyone for name in mine)
    return True


def trained_ticket(devices: int, folder: str, selection: str) -> dict[str, bool]:
    """A ticket that each process has drawn with another seed, and what holds after 8 steps."""
    torch.manual_seed(int(os.environ.get("LOCAL_RANK", 0)))
    arguments = {"activation": "sign", "width": 0.25}
    ticket = Biprop("conv2", 10, (1, 8, 8), arguments, keep_fraction=0.3, selection=selection)
    apart, before = not same_everywhere(ticket), copy.deepcopy(ticket.state_dict())
    trainer(devices, folder).fit(ticket, datamodule=Odd(batch_size=4))
    layers = subnet_layers(ticket.network)
    chosen = nn.Module()
    for name, layer in layers.items():
        chosen.register_buffer(f"mask {name.replace('.', ' ')}", layer.mask())
        chosen.register_buffer(f"value {name.replace('.', ' ')}", layer.effective_weight().detach())
    drawn = [random_signs(int(m.sign_seed), m.weight.numel()).view_as(m.weight).to(m.weight) for m in layers.values()]
    after = {name: torch.equal(tensor, before[name]) for name, tensor in ticket.state_dict().items()}
    return {
        "apart at first": apart,
        "same scores, weights and sign seeds": same_everywhere(ticket),
        "same masks": same_everywhere(chosen) and len(layers) == 5,
        "signs are the seeds'": all(
            torch.equal(m.weight.sign(), s) for m, s in zip(layers.values(), drawn, strict=True)
        ),
        "rank 0's weights": all(after[f"network.{name}.weight"] for name in layers),
        "scores moved": not any(after[f"network.{name}.scores"] for name in layers),
    }


def taught_experts(devices: int, folder: Path) -> dict[str, bool]:
    """Steps "one_expert" and "experts" under a teacher, each process drawn with another seed; and what holds."""
    torch.manual_seed(int(os.environ.get("LOCAL_RANK", 0)))
    args = {"blocks": [1, 1, 1, 1], "expansion": 0.125, "groups": [1, 1, 1, 1], "stem": "cifar"}
    holds, counted = {}, []
    for step in ("one_expert", "experts"):  # plain DDP fails where a parameter gets no gradient
        module = ExpertBinary("expert_binary_resnet", 10, (1, 8, 8), args, step=step)
        distillation = Distillation(ExpertBinary("expert_binary_resnet", 10, (1, 8, 8), args, step="fp"), validate=True)
        runner = trainer(devices, str(folder), distillation, logger=CSVLogger(folder, "", ""))
        runner.fit(module, datamodule=Odd(batch_size=4))
        monitor = next(c for c in runner.callbacks if isinstance(c, LayerMonitor))
        histories = [monitor.history] * devices
        if devices > 1:
            torch.distributed.all_gather_object(histories, monitor.history)
        holds[f"{step}: same weights"] = same_everywhere(module)
        holds[f"{step}: same history"] = all(history == histories[0] for history in histories)
        holds[f"{step}: term over all samples"] = "train/agreement" in runner.callback_metrics
        counted = [value for name, row in monitor.history[-1].items() if "share" in name for value in row.values()]
    holds["shares of 16 samples"] = all((16 * value).is_integer() for value in counted) and sum(counted) == 12
    return holds


def learned_positions(devices: int, folder: Path) -> dict[str, bool]:
    """Epitomes whose positions come from what each process sees; and what holds of their routing maps."""
    torch.manual_seed(int(os.environ.get("LOCAL_RANK", 0)))
    layer = EpitomeConv2d(4, 6, 1, positions="feature", map_momentum=0.0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), layer, nn.Flatten(), nn.Linear(216, 10))
    seen: list[torch.Tensor] = []
    assert layer.learner is not None
    layer.learner.register_forward_hook(lambda module, args, z: seen.append(layer._from_learner(z).detach()))
    module = Epitome(net, 10, (1, 8, 8))
    trainer(devices, str(folder)).fit(module, datamodule=Odd(batch_size=4))
    everyone = [seen[-1]] * devices
    if devices > 1:
        torch.distributed.all_gather_object(everyone, seen[-1])
    return {
        "own positions": devices == 1 or not torch.equal(*everyone),
        "the map is their mean": torch.allclose(layer.routing_map, torch.stack(everyone).mean(0)),
        "same maps and weights": same_everywhere(module),
    }


def predicted(runner: Trainer, module: Classifier, data: LightningDataModule) -> list[int]:
    """Which samples this process has predicted."""
    runner.predict(module, datamodule=data)
    return [index for batch in runner.predict_dataloaders.indices() for index in batch]


def main(devices: int, folder: str) -> None:
    seed_everything(5)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    module, data, gradients = FixedBatchNorm(net, 10, (1, 8, 8)), Odd(batch_size=4), FirstGradients()
    runner = trainer(devices, folder, gradients)
    runner.fit(module, datamodule=data)
    result = {"gradients": gradients.gradients, "state": module.state_dict(), "steps": runner.global_step}
    result["val"] = {name: value.item() for name, value in runner.callback_metrics.items() if name.startswith("val/")}
    result["train"] = {name: runner.callback_metrics[name].item() for name in ("train/loss", "train/top1")}
    data.batch_size = 2
    runner.test(module, datamodule=data, verbose=False)
    result["test"] = {name: value.item() for name, value in runner.callback_metrics.items()}
    mine = predicted(runner, module, data)
    everyone = [mine] * devices
    if devices > 1:
        torch.distributed.all_gather_object(everyone, mine)
    result["predicted"] = sorted(index for part in everyone for index in part)

    result["tickets"] = {how: trained_ticket(devices, folder, how) for how in ("layer", "global")}
    result["experts"] = taught_experts(devices, Path(folder) / "experts")
    result["positions"] = learned_positions(devices, Path(folder) / "positions")
    result["resumed equals straight"] = resumed_equals_straight(devices, Path(folder))
    write_teacher(Path())
    methods = [name for name in METHODS if name != "mixup"]  # it draws a weight for each device
    result["methods"] = {name: gradients_of(name, devices, Path(folder) / "methods") for name in methods}
    result["wandb"] = one_wandb_run(devices, Path(folder) / "wandb")
    if runner.is_global_zero:
        torch.save(result, Path(folder) / "result.pt")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
