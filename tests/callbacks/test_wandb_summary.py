"""The best epoch in W&B's summary; tests/commands/test_wandb_runs.py reads whole runs."""

from types import SimpleNamespace

import torch

from callbacks import WandbSummary


def test_the_best_epoch_survives_a_resumption():
    def epoch(callback, number, value, name="top1"):
        trainer = SimpleNamespace(
            state=SimpleNamespace(fn="fit"), sanity_checking=False, is_global_zero=False, loggers=[],
            callback_metrics={f"val/{name}": torch.tensor(value)}, current_epoch=number,
        )  # fmt: skip
        callback.on_validation_end(trainer, SimpleNamespace(score=name))

    first = WandbSummary()
    for number, value in enumerate((0.25, 0.75, 0.75)):
        epoch(first, number, value)
    assert first.best == {"val/best_top1": 0.75, "val/best_epoch": 1}
    second = WandbSummary()
    second.load_state_dict(first.state_dict())
    epoch(second, 3, 0.5)
    assert second.best == first.best
    epoch(second, 4, 1.0)
    assert second.best == {"val/best_top1": 1.0, "val/best_epoch": 4}
    detector = WandbSummary()
    epoch(detector, 0, 0.125, "box_ap")
    assert detector.best == {"val/best_box_ap": 0.125, "val/best_epoch": 0}
