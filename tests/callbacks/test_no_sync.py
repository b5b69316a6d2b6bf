"""A training step never waits for the device.

Tensors on the meta device have no values: whatever would read one back, as waiting for a GPU does, fails on them.
"""

from types import SimpleNamespace

import pytest
import torch

from callbacks import FiniteLoss, ProgressBar
from lightning_modules import Biprop, Classifier, Epitome, ExpertBinary


def trainer(step):
    def decide(decision, all):
        return decision

    strategy = SimpleNamespace(reduce_boolean_decision=decide)
    return SimpleNamespace(
        world_size=1, global_step=step, log_every_n_steps=50, training=True, strategy=strategy, checkpoint_callbacks=[],
        current_epoch=0, progress_bar_metrics={"loss": 1.5}, loggers=[],
    )  # fmt: skip


def learner(*args):
    return Epitome(*args, positions="feature")


@pytest.mark.parametrize("make", [Classifier, Biprop, ExpertBinary, Epitome, learner])
def test_training_step_and_optimizer_step(make):
    module = make("conv2", 10, (1, 8, 8), {"activation": "sign"})
    module.loss_terms["penalty"] = lambda batch, outputs: outputs.square().mean()
    module.log = lambda *args, **kwargs: None
    module.to("meta")
    for metric in module.metrics.values():
        metric.to("meta")
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    for _ in range(2):
        batch = torch.empty(6, 1, 8, 8, device="meta"), torch.empty(6, dtype=torch.int64, device="meta")
        loss = module.training_step(batch, 0)
        assert loss.device.type == "meta"
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with pytest.raises((RuntimeError, NotImplementedError)):  # it would be seen
        loss.item()


def test_the_divergence_check_reads_only_where_metrics_are_logged():
    watch, outputs = FiniteLoss(), {"loss": torch.empty((), device="meta")}
    for step in (1, 49, 51):
        watch.on_train_batch_end(trainer(step), None, outputs, None, 0)
    with pytest.raises((RuntimeError, NotImplementedError)):
        watch.on_train_batch_end(trainer(100), None, outputs, None, 0)


def test_the_progress_bar_reads_only_where_metrics_are_logged(monkeypatch):
    reads = []
    parent = ProgressBar.__mro__[1]
    monkeypatch.setattr(parent, "get_metrics", lambda self, trainer, module: reads.append(trainer.global_step) or {})
    bar = ProgressBar()
    for device, steps in (("cuda", [50, 100]), ("cpu", list(range(1, 101)))):
        reads.clear()
        for step in range(1, 101):
            bar.get_metrics(trainer(step), SimpleNamespace(device=torch.device(device)))
        assert reads == steps
