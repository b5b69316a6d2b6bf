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
    for _ in range(9):
        first, second = (group["lr"] for group in optimizer.param_groups)
        assert second == pytest.approx(5 * first)
        optimizer.step()
        schedule.step()


def test_a_schedule_of_ones_own_has_its_own_warmup():
    with pytest.raises(InputError, match="warmup_epochs=5 belong to the schedules by name"):
        Classifier("conv2", 10, (1, 8, 8), schedule=lambda optimizer: StepDecay(optimizer, 3, 0.97), warmup_epochs=5)
