"""A run that diverges stops, and none of its checkpoints is bad."""

import pytest
import torch
from pytorch_lightning import Callback, Trainer
from torch import nn

from callbacks import FiniteLoss, LastCheckpoint
from datamodules import Digits
from lightning_modules import Classifier
from networks import InputError


class Spoil(Callback):
    """From a step on, the loss is not finite, or parameters are not though no loss has shown it yet."""

    def __init__(self, step, value, parameters=False):
        self.step, self.value, self.parameters = step, value, parameters

    def on_train_batch_end(self, trainer, pl_module, *args):
        if trainer.global_step >= self.step and self.parameters:
            with torch.no_grad():
                pl_module.network[1].bias[3] = self.value

    def on_train_batch_start(self, trainer, pl_module, *args):
        if trainer.global_step >= self.step and not self.parameters:
            pl_module.loss_terms["spoiled"] = lambda batch, outputs: outputs.sum() * 0 + self.value


def diverge(folder, spoil):
    module = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), 10, (1, 8, 8))
    last = LastCheckpoint(folder)
    trainer = Trainer(
        default_root_dir=folder, callbacks=[spoil, FiniteLoss(), last], max_epochs=3, logger=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with pytest.raises(InputError) as error:
        trainer.fit(module, datamodule=Digits(32))
    return str(error.value), trainer


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_stops_in_the_step_and_names_the_last_good_checkpoint(tmp_path, value):
    message, trainer = diverge(tmp_path, Spoil(50, value))
    assert trainer.global_step == 51
    expected = f"the loss is NaN or infinite in epoch 1, by step 51; the last good checkpoint is {tmp_path}/last.ckpt"
    assert message.startswith(expected)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 39
    assert all(tensor.isfinite().all() for tensor in saved["state_dict"].values())


def test_says_where_nothing_had_been_saved(tmp_path):
    message, _ = diverge(tmp_path, Spoil(0, float("nan")))
    assert "in epoch 0, by step 1; no checkpoint had been saved. Take a lower learning rate" in message


def test_no_checkpoint_holds_parameters_that_are_not_finite(tmp_path):
    """The last step of the first epoch spoils a bias: the loss of that epoch was fine."""
    message, _ = diverge(tmp_path, Spoil(39, float("inf"), parameters=True))
    assert message.startswith("parameters are NaN or infinite in epoch 0, by step 39; no checkpoint had been saved")
    assert not (tmp_path / "last.ckpt").exists()
