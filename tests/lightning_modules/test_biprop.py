"""What Biprop says of networks and checkpoints."""

import pytest
import torch

from lightning_modules import Biprop
from networks import InputError


@pytest.mark.parametrize(
    ("option", "value"), [("keep_fraction", 0.1), ("binarize", "none"), ("gain_count", "floor_kn")]
)
def test_refuses_a_checkpoint_that_was_trained_otherwise(option, value):
    trained = Biprop("conv2", 10, (1, 8, 8))
    other = Biprop("conv2", 10, (1, 8, 8), **{option: value})
    checkpoint = {"state_dict": trained.state_dict(), "hyper_parameters": dict(trained.hparams)}
    trained.on_load_checkpoint(checkpoint)
    with pytest.raises(InputError, match=f"trained with {option}=.*, this model has {value}"):
        other.on_load_checkpoint(checkpoint)


def test_says_which_layers_a_network_uses_without_calling_them():
    class Bypassing(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.called, self.read = torch.nn.Linear(64, 10), torch.nn.Linear(64, 10)

        def forward(self, x):
            x = x.flatten(1)
            return self.called(x) + torch.nn.functional.linear(x, self.read.weight)

    with pytest.warns(UserWarning, match="uses the weights of read without calling them: they stay unmasked"):
        Biprop(Bypassing(), 10, (1, 8, 8))
