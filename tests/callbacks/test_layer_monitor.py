"""What is logged of each layer after every epoch."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from pytorch_lightning import Callback, Trainer, seed_everything
from pytorch_lightning.loggers import CSVLogger
from runs import Stop

from callbacks import ComplexityMonitor, ExactResume, LastCheckpoint, LayerMonitor
from callbacks.layer_monitor import draw
from datamodules import Digits
from lightning_modules import Biprop
from networks.biprop import subnet_layers


class Masks(Callback):
    """The masks before training and after each epoch."""

    def __init__(self):
        self.seen = []

    def on_train_start(self, trainer, module):
        self.on_train_epoch_end(trainer, module)

    def on_train_epoch_end(self, trainer, module):
        self.seen.append({name: layer.mask() for name, layer in subnet_layers(module.network).items()})


def run(folder, logger=True, callbacks=(), resume=False, epochs=3, **options):
    seed_everything(0)
    module = Biprop("conv2", 10, (1, 8, 8), {"width": 0.1, "img_size": 8}, **options)
    trainer = Trainer(
        max_epochs=epochs, default_root_dir=folder, logger=CSVLogger(folder, "", "") if logger else False,
        callbacks=[ExactResume(), LastCheckpoint(folder / "checkpoints"), *callbacks],
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    stopped = any(isinstance(callback, Stop) for callback in callbacks)
    with pytest.raises(SystemExit) if stopped else torch.enable_grad():
        trainer.fit(module, Digits(), ckpt_path=folder / "checkpoints/last.ckpt" if resume else None, weights_only=True)
    return next(c for c in trainer.callbacks if isinstance(c, LayerMonitor)), module, trainer


def test_kept_fraction_gain_and_flips_are_those_of_the_masks(tmp_path):
    masks = Masks()
    monitor, module, _ = run(tmp_path, callbacks=[masks], keep_fraction=0.3)
    assert monitor.epochs == [0, 1, 2]
    layers = subnet_layers(module.network)
    assert len(layers) == 5
    for row, before, after in zip(monitor.history, masks.seen[:-1], masks.seen[1:], strict=True):
        for name, layer in layers.items():
            assert row["kept_fraction"][name] == layer.kept / layer.weight.numel()
            assert row["mask_flips"][name] == (before[name] ^ after[name]).double().mean().item()
            kept = layer.weight[after[name]].abs().double()
            assert row["gain"][name] == pytest.approx(kept.mean().item(), rel=1e-6)
    assert sum(monitor.history[0]["mask_flips"].values()) > 0
    logged = (tmp_path / "metrics.csv").read_text()
    last = monitor.history[-1]["mask_flips"]["linear.0"]
    assert "layers/mask_flips/linear.0" in logged
    assert str(last) in logged
    assert (tmp_path / "layers.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_is_computed_when_nothing_listens(tmp_path, monkeypatch):
    monkeypatch.setattr(Biprop, "layer_metrics", lambda self: pytest.fail("computed"))
    run(tmp_path, logger=False, epochs=1)
    assert not (tmp_path / "layers.png").exists()


@pytest.mark.parametrize("step", [39, 50])  # at the end of an epoch, and inside the next
@pytest.mark.parametrize("options", [{}, {"selection": "global", "keep_fraction": 0.1, "selection_epochs": 2}])
def test_a_resumed_run_has_the_same_history(tmp_path, step, options):
    whole, _, _ = run(tmp_path / "whole", **options)
    run(tmp_path / "parts", callbacks=[Stop(step)], **options)
    parts, _, _ = run(tmp_path / "parts", resume=True, **options)
    assert parts.history == whole.history
    assert parts.epochs == whole.epochs


def test_global_selection_follows_its_schedule_and_checkpoints_carry_the_fraction(tmp_path):
    masks = Masks()
    monitor, module, _ = run(tmp_path, callbacks=[masks], selection="global", keep_fraction=0.05, selection_epochs=2)
    layers = subnet_layers(module.network)
    sizes = {name: layer.weight.numel() for name, layer in layers.items()}
    total = sum(sizes.values())
    for row, sparsity in zip(monitor.history, [0.5, 0.95 - 0.45 / 8, 0.95], strict=True):
        kept = sum(row["kept_fraction"][name] * n for name, n in sizes.items())
        assert kept == pytest.approx(total - int(sparsity * total), abs=2)  # ties at the threshold are pruned
    before, after = masks.seen[:2]  # flips are those of training, not of going from 0.05 to 0.5
    assert monitor.history[0]["mask_flips"] == {n: (before[n] ^ after[n]).double().mean().item() for n in layers}
    assert sum(int(mask.sum()) for mask in before.values()) == pytest.approx(total / 2, abs=2)
    run(tmp_path / "early", selection="global", keep_fraction=0.05, selection_epochs=9, epochs=1)
    again = Biprop(
        "conv2", 10, (1, 8, 8), {"width": 0.1, "img_size": 8}, selection="global", keep_fraction=0.05,
        selection_epochs=9,
    )  # fmt: skip
    again.on_load_checkpoint(torch.load(tmp_path / "early/checkpoints/last.ckpt", weights_only=True))
    assert {layer.keep_fraction for layer in subnet_layers(again.network).values()} == {0.5}


def test_layers_that_become_empty_are_named(recwarn):
    module = Biprop("conv2", 10, (1, 8, 8), {"width": 0.1, "img_size": 8}, selection="global", keep_fraction=0.001)
    assert not [w for w in recwarn if "keep no weight" in str(w.message)]  # the schedule begins at a half
    with torch.no_grad():
        module.network.linear[2].scores.zero_()
    with pytest.warns(UserWarning, match=r"linear\.2.* keep no weight and give zeros"):
        metrics = module.layer_metrics()
    assert metrics["kept_fraction"]["linear.2"] == metrics["gain"]["linear.2"] == 0


def test_the_cost_of_a_global_selection_is_that_of_the_trained_ticket(tmp_path):
    _, module, _ = run(tmp_path, callbacks=[ComplexityMonitor()], selection="global", keep_fraction=0.2)
    with open(tmp_path / "cost.csv", newline="") as file:
        written = {row["name"]: int(row["params"]) for row in csv.DictReader(file)}
    assert written == {name: layer.kept for name, layer in subnet_layers(module.network).items()}


def test_each_metric_is_a_map_of_layers_by_epochs_and_a_layer_may_be_missing_from_it(tmp_path, monkeypatch):
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **options: figures.append(self) or save(self, *args))
    names = ("weight_flips", "expert_entropy", "expert_0_share", "expert_1_share")
    history = [
        {names[0]: {"a": 0.25 * epoch, "b": 0.5}, **{name: {"b": 0.1 * i + epoch} for i, name in enumerate(names[1:])}}
        for epoch in range(3)
    ]
    draw([4, 5, 6], history, str(tmp_path / "layers.png"))
    assert (tmp_path / "layers.png").read_bytes().startswith(b"\x89PNG")
    panels = {axes.get_title(): axes for axes in figures[0].axes if axes.get_title()}
    assert list(panels) == ["weight flips", "expert entropy", "expert 0 share", "expert 1 share"]
    maps = [np.ma.filled(axes.images[0].get_array().astype(float), np.nan) for axes in panels.values()]
    absent = [np.nan] * 3
    np.testing.assert_array_equal(maps[0], [[0, 0.25, 0.5], [0.5, 0.5, 0.5]])
    for i, values in enumerate(maps[1:]):
        np.testing.assert_array_equal(values, [absent, [0.1 * i, 0.1 * i + 1, 0.1 * i + 2]])
    for axes in panels.values():
        assert axes.images[0].get_extent() == [4.5, 7.5, 1.5, -0.5]  # epochs are counted from 1
    assert [panels[f"expert {i} share"].images[0].get_clim() for i in range(2)] == [(0, 1)] * 2  # to be compared
    labels = ["".join(label.get_text() for label in axes.get_yticklabels()) for axes in panels.values()]
    assert labels == ["ab", "", "", "ab"]  # at the first of each row of three


def test_a_module_of_its_own_is_asked_before_the_first_epoch_and_after_each(tmp_path, monkeypatch):
    asked = []

    def layer_metrics(module):
        asked.append(module.trainer.global_step)
        return {"asked": {"layer": float(len(asked))}, "rare": {} if len(asked) % 2 else {"layer": 1.0}}

    monkeypatch.setattr(Biprop, "layer_metrics", layer_metrics)
    run(tmp_path, callbacks=[Stop(20)])  # inside the first epoch of 39 steps
    assert asked == [0]
    monitor, _, _ = run(tmp_path, resume=True)
    assert asked == [0, 39, 78, 117]
    assert [row["asked"]["layer"] for row in monitor.history] == [2, 3, 4]
    assert [row["rare"] for row in monitor.history] == [{"layer": 1}, {}, {"layer": 1}]
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["layers/asked/layer"]]
    assert [(row["epoch"], row["layers/asked/layer"], row["layers/rare/layer"]) for row in rows] == [
        ("0", "2.0", "1.0"),
        ("1", "3.0", ""),
        ("2", "4.0", "1.0"),
    ]


def test_is_drawn_at_most_every_ten_seconds_and_at_the_end(tmp_path, monkeypatch):
    drawn, now = [], [95.0]
    module = SimpleNamespace(layer_metrics=lambda: {"metric": {"layer": 1.0}})
    trainer = SimpleNamespace(
        loggers=[SimpleNamespace(log_metrics=lambda *args, **options: None)], fast_dev_run=False, global_step=0,
        is_global_zero=True, log_dir=tmp_path,
    )  # fmt: skip
    monkeypatch.setattr("callbacks.layer_monitor.time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr("callbacks.layer_monitor.draw", lambda epochs, history, path: drawn.append(list(epochs)))
    monitor = LayerMonitor()
    for trainer.current_epoch, now[0] in enumerate([100.0, 106.0, 109.0, 115.9, 117.0, 118.0]):
        monitor.on_train_epoch_end(trainer, module)
    assert drawn == [[0, 1], [0, 1, 2, 3, 4]]
    now[0] = 119.0
    monitor.on_fit_end(trainer, module)
    assert drawn == [[0, 1], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5]]
