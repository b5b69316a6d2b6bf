"""Step decay against timm's scheduler, as the authors had it: epochs of the decay count from 0."""

import pytest
import torch
from timm.scheduler import StepLRScheduler

from lightning_modules import Classifier
from lightning_modules.schedules import StepDecay
from networks import InputError


@pytest.mark.parametrize("every", [1, 2, 3])
def test_rates_are_those_of_timm(every):
    ours, theirs = (torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.12) for _ in range(2))
    schedule = StepDecay(ours, every, 0.97, warmup_epochs=5, warmup_start=1e-6)
    timms = StepLRScheduler(theirs, every, 0.97, warmup_t=5, warmup_lr_init=1e-6, warmup_prefix=False)
    for epoch in range(40):
        timms.step(epoch)
        assert ours.param_groups[0]["lr"] == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-9), epoch
        ours.step()
        schedule.step()


def test_groups_keep_their_proportion():
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": parameters[:1]}, {"params": parameters[1:], "lr": 0.5}], lr=0.1)
    schedule = StepDecay(optimizer, 3, 0.97, warmup_epochs=5, warmup_start=1e-6)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-6)
    for _ in range(9):
        first, second = (group["lr"] for group in optimizer.param_groups)
        assert second == pytest.approx(5 * first)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize(
    "wrong", [{"every": 0}, {"factor": 0.0}, {"warmup_epochs": -1}, {"warmup_start": 0.2}, {"warmup_start": -1.0}]
)
def test_numbers_that_cannot_be_are_refused(wrong):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(InputError, match=next(iter(wrong))):
        StepDecay(optimizer, **{"every": 3, "factor": 0.97, **wrong})


def test_a_plateau_watches_its_metric(tmp_path):
    from pytorch_lightning import Trainer
    from pytorch_lightning.cli import ReduceLROnPlateau

    from datamodules import Digits

    module = Classifier(
        "conv2", 10, (1, 8, 8), {"width": 0.1},
        schedule=lambda optimizer: ReduceLROnPlateau(optimizer, "val/loss", patience=0, factor=0.5, threshold=1.0),
    )  # fmt: skip
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer = Trainer(max_epochs=3, limit_train_batches=2, **quiet)
    trainer.fit(module, Digits())
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0125)  # three epochs, none better


def test_a_schedule_of_ones_own_has_its_own_warmup():
    with pytest.raises(InputError, match="warmup_epochs=5 belong to the schedules by name"):
        Classifier("conv2", 10, (1, 8, 8), schedule=lambda optimizer: StepDecay(optimizer, 3, 0.97), warmup_epochs=5)
