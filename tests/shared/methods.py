"""A small run of each method on the digits, in the words of a config: for what must hold of all of them."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule

import callbacks
import lightning_modules
import networks

TEACHER = "teacher.pt"  # in the working directory, see write_teacher
TAUGHT = [
    ("Distillation", dict(teacher="conv4", teacher_args=dict(width=0.1), checkpoint=TEACHER, layers=r"convs\.[57]")),
    ("TemperatureAnnealing", dict(start=1.0, end=0.1, schedule="exponential", interval="step")),
]
SIGN = dict(network="conv2", network_args=dict(activation="sign", width=0.1))
CONV2 = dict(network="conv2", network_args=dict(width=0.1))
EXPERTS = dict(network="conv4", network_args=dict(width=0.1), num_experts=3)
DROPPED = dict(network="rexnet", network_args=dict(width=0.1, drop_rate=0.2, drop_path_rate=0.3))

METHODS: dict[str, tuple[str, dict[str, Any], list[tuple[str, dict[str, Any]]]]] = {  # class, arguments, callbacks
    "biprop": ("Biprop", dict(SIGN, keep_fraction=0.3, train_bn=True), []),
    "biprop, global": ("Biprop", dict(CONV2, keep_fraction=0.1, selection="global", selection_epochs=2), []),
    "experts": ("ExpertBinary", dict(EXPERTS, step="experts"), TAUGHT),
    "binary": ("ExpertBinary", dict(EXPERTS, step="binary"), TAUGHT),
    "epitome": ("Epitome", dict(CONV2, rules=0.25, positions="param"), []),
    "epitome, routed": ("Epitome", dict(CONV2, rules=0.25, positions="feature"), []),
    "rexnet": ("ReXNet", DROPPED, []),
    "mixup": ("Classifier", dict(CONV2, mixup_alpha=0.3), []),
}


def build(name: str, **options: Any) -> LightningModule:
    """The module of a method for the digits, from the global generator; `options` are laid over its arguments."""
    kind, given, _ = METHODS[name]
    return getattr(lightning_modules, kind)(num_classes=10, input_size=(1, 8, 8), **deepcopy({**given, **options}))


def build_callbacks(name: str) -> list[Callback]:
    return [getattr(callbacks, kind)(**given) for kind, given in METHODS[name][2]]


def write_teacher(folder: Path) -> None:
    """Weights of the teacher that Distillation of these runs finds in the working directory."""
    torch.manual_seed(7)
    torch.save(networks.create("conv4", (1, 8, 8), 10, dict(width=0.1)).state_dict(), folder / TEACHER)


def config(name: str, **trainer: Any) -> dict[str, Any]:
    """A config of `frugal fit`."""
    kind, given, called = METHODS[name]
    listed = [{"class_path": f"callbacks.{each}", "init_args": arguments} for each, arguments in called]
    return deepcopy(
        {
            "model": {"class_path": f"lightning_modules.{kind}", "init_args": given},
            "data": {"class_path": "datamodules.Digits", "init_args": {"batch_size": 16}},
            "trainer": {**trainer, **({"callbacks": listed} if listed else {})},
        }
    )
