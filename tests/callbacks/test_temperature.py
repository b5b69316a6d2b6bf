"""Annealing of temperatures: values by formula, the same series after a resume, one row for each epoch."""

import csv
import math

import pytest
import timm
import torch
from pytorch_lightning import Callback, Trainer, seed_everything
from pytorch_lightning.loggers import CSVLogger
from runs import Stop
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from callbacks import ExactResume, LastCheckpoint, TemperatureAnnealing
from datamodules import Digits
from lightning_modules import Classifier
from networks import InputError

STEPS = 9  # of an epoch: 1257 // 128
LITERAL = {
    "constant": lambda t: 2.0,
    "linear": lambda t: 2.0 + (0.1 - 2.0) * t,
    "cosine": lambda t: 0.1 + (2.0 - 0.1) * (1 + math.cos(math.pi * t)) / 2,
    "exponential": lambda t: 2.0 * (0.1 / 2.0) ** t,
}


class Warm(nn.Identity):
    temperature = 7.0


class Seen(Callback):
    """(epoch, step, temperature) of every forward."""

    def __init__(self):
        self.series = []

    def on_train_batch_end(self, trainer, module, *args):
        layers = [layer for layer in module.modules() if isinstance(layer, Warm)]
        (value,) = {layer.temperature for layer in layers}
        self.series.append((trainer.current_epoch, trainer.global_step, value))


class Log(CSVLogger):
    def __init__(self, folder):
        super().__init__(folder, "", "")
        self.rows = []

    def log_metrics(self, metrics, step=None):
        super().log_metrics(metrics, step)
        if "temperature" in metrics:
            self.rows.append((step, metrics["epoch"], metrics["temperature"]))


def run(folder, *callbacks, resume=False, layers=2, max_epochs=3, loader=None, **options):
    seed_everything(0)
    net = nn.Sequential(nn.Flatten(), *(Warm() for _ in range(layers)), nn.Linear(64, 10))
    options = {"log_every_n_steps": 4, "limit_val_batches": 0, **options}
    trainer = Trainer(
        max_epochs=max_epochs, default_root_dir=folder, logger=Log(folder), accelerator="cpu",
        callbacks=[ExactResume(), LastCheckpoint(folder / "checkpoints"), *callbacks, seen := Seen()],
        enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip
    stopped = any(isinstance(callback, Stop) for callback in callbacks)
    module = Classifier(net, 10, (1, 8, 8), schedule="constant")
    data = {"datamodule": Digits(128)} if loader is None else {"train_dataloaders": loader}
    path = folder / "checkpoints/last.ckpt" if resume else None
    with pytest.raises(SystemExit) if stopped else torch.enable_grad():
        trainer.fit(module, **data, ckpt_path=path, weights_only=True)
    return seen.series, trainer.logger.rows


def annealing(schedule, interval):
    return TemperatureAnnealing(2.0, None if schedule == "constant" else 0.1, schedule, interval)


@pytest.mark.parametrize("schedule", LITERAL)
def test_values_by_formula(tmp_path, schedule):
    callback = annealing(schedule, "epoch")
    for t in (0, 0.1, 0.5, 0.9, 1):
        assert callback.value(t) == pytest.approx(LITERAL[schedule](t), rel=1e-14)
    assert callback.value(0.0) == 2.0
    assert callback.value(1.0) == (2.0 if schedule == "constant" else 0.1)
    series, rows = run(tmp_path, callback)
    by_epoch = [callback.value(t) for t in (0, 0.5, 1)]
    assert series == [(i // STEPS, i + 1, by_epoch[i // STEPS]) for i in range(3 * STEPS)]
    assert rows == [((e + 1) * STEPS, e, by_epoch[e]) for e in range(3)]
    with open(tmp_path / "metrics.csv", newline="") as file:
        logged = [float(row["temperature"]) for row in csv.DictReader(file) if row["temperature"]]
    assert logged == by_epoch


@pytest.mark.parametrize("schedule", LITERAL)
def test_values_by_step(tmp_path, schedule):
    callback = annealing(schedule, "step")
    series, rows = run(tmp_path, callback)
    last = 3 * STEPS - 1
    assert series == [(i // STEPS, i + 1, callback.value(i / last)) for i in range(last + 1)]
    assert rows == [(i, i // STEPS, callback.value(i / last)) for i in range(3, last + 1, 4)]  # as Lightning's own


@pytest.mark.parametrize("interval", ["epoch", "step"])
@pytest.mark.parametrize("step", [STEPS, STEPS + 5])  # at the end of an epoch, and inside the next
def test_a_resumed_run_has_the_same_series(tmp_path, interval, step):
    whole = run(tmp_path / "whole", annealing("cosine", interval))
    before = run(tmp_path / "parts", annealing("cosine", interval), Stop(step))
    after = run(tmp_path / "parts", annealing("cosine", interval), resume=True)
    assert len(before[0]) == step
    for part, rest, all_of_it in zip(before, after, whole, strict=True):
        assert part + rest == all_of_it
        assert part != []
        assert rest != []


def test_accumulated_steps_change_nothing(tmp_path):
    for interval in ("epoch", "step"):
        plain = run(tmp_path / "1", annealing("linear", interval), max_epochs=2)
        accumulated = run(tmp_path / "2", annealing("linear", interval), max_epochs=2, accumulate_grad_batches=2)
        assert [value for _, _, value in accumulated[0][::2]] == [value for _, _, value in plain[0]]
        assert [value for _, _, value in accumulated[0][1::2]] == [value for _, _, value in plain[0]]
        assert accumulated[1] == plain[1]


def test_runs_that_end_with_a_step(tmp_path):
    series, _ = run(tmp_path, annealing("linear", "epoch"), max_epochs=-1, max_steps=STEPS + 2)
    assert [value for _, _, value in series] == [2.0] * STEPS + [0.1] * 2
    callback = annealing("linear", "step")
    series, _ = run(tmp_path, callback, max_epochs=-1, max_steps=5)
    assert [value for _, _, value in series] == [callback.value(i / 4) for i in range(5)]
    for interval in ("epoch", "step"):
        series, _ = run(tmp_path, annealing("linear", interval), max_epochs=1, limit_train_batches=1)
        assert series == [(0, 1, 2.0)]


class Stream(IterableDataset):
    """Does not say how many batches it has."""

    def __iter__(self):
        yield from ((torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64)) for _ in range(3))


def test_a_run_without_an_end_is_refused_unless_constant(tmp_path):
    stream = DataLoader(Stream(), batch_size=None)
    for interval in ("epoch", "step"):
        with pytest.raises(InputError, match=rf"give trainer.max_{interval}s, or schedule=constant"):
            run(tmp_path, annealing("cosine", interval), max_epochs=-1)
    with pytest.raises(InputError, match=r"give trainer.max_steps, or"):
        run(tmp_path, annealing("cosine", "step"), loader=stream)
    with pytest.raises(InputError, match=r"give trainer.max_epochs, or"):
        run(tmp_path, annealing("cosine", "epoch"), max_epochs=-1, max_steps=4, loader=stream)
    series, _ = run(tmp_path, annealing("cosine", "epoch"), max_epochs=2, loader=stream)
    assert [value for _, _, value in series] == [2.0] * 3 + [0.1] * 3
    series, _ = run(tmp_path, annealing("constant", "epoch"), max_epochs=-1, max_time="00:00:00:01")
    assert {value for _, _, value in series} == {2.0}


def test_it_says_what_it_does_and_warns_where_nothing_listens(tmp_path, caplog, recwarn):
    with caplog.at_level("INFO"):
        run(tmp_path, TemperatureAnnealing(1, 0.02, "cosine"), max_epochs=2, limit_train_batches=1)
        run(tmp_path, TemperatureAnnealing(3), layers=1, max_epochs=1, limit_train_batches=1)
    said = [message for message in caplog.messages if "temperature" in message]
    assert said == ["temperature 1 to 0.02, cosine, by epoch, in 2 layers", "temperature 3, constant, in 1 layer"]
    assert not [w for w in recwarn if "TemperatureAnnealing" in str(w.message)]
    with pytest.warns(UserWarning, match="does nothing: no submodule has a float attribute `temperature`"):
        assert run(tmp_path, nothing := TemperatureAnnealing(), Only(), layers=0, limit_train_batches=1)[1] == []
    assert nothing._layers == []


class Only(Callback):
    """Takes out Seen, which asks for layers."""

    def on_fit_start(self, trainer, module):
        trainer.callbacks = [callback for callback in trainer.callbacks if not isinstance(callback, Seen)]


def test_gates_follow_and_the_module_itself_does_not(tmp_path):
    net = timm.create_model(
        "expert_binary_resnet", blocks=(1, 1, 1, 1), expansion=0.125, groups=(1, 1, 1, 1), stem="resnet", deep=False,
        num_classes=10, in_chans=1,
    )  # fmt: skip
    gates = [module for module in net.modules() if hasattr(module, "temperature")]
    module = Classifier(net, 10, (1, 8, 8))
    module.temperature = 5.0
    trainer = Trainer(
        max_epochs=2, default_root_dir=tmp_path, logger=False, callbacks=[TemperatureAnnealing(1, 0.02, "cosine")],
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, limit_train_batches=1,
        limit_val_batches=0, accelerator="cpu",
    )  # fmt: skip
    trainer.fit(module, Digits())
    assert [gate.temperature for gate in gates] == [0.02] * 8
    assert module.temperature == 5.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start": 0.0}, r"must be positive and finite; got start=0.0"),
        ({"start": float("nan")}, r"must be positive and finite; got start=nan"),
        ({"end": -1.0, "schedule": "linear"}, r"must be positive and finite; got start=1.0, end=-1.0"),
        ({"end": float("inf"), "schedule": "linear"}, r"must be positive and finite; got start=1.0, end=inf"),
        ({"end": float("nan"), "schedule": "linear"}, r"must be positive and finite; got start=1.0, end=nan"),
        ({"schedule": "cosine"}, r"a cosine temperature needs an end: give end=0.02, say"),
        ({"end": 0.5}, r"a constant temperature stays at start=1.0: drop end=0.5, or choose another schedule"),
        ({"schedule": "sine"}, r"schedule is one of constant, linear, cosine, exponential; got 'sine'"),
        ({"interval": "batch"}, r"interval is one of epoch, step; got 'batch'"),
    ],
)
def test_refusals_at_construction(arguments, message):
    with pytest.raises(InputError, match=message):
        TemperatureAnnealing(**arguments)
