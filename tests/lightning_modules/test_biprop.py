"""What Biprop says of networks and checkpoints."""

import pytest
import torch

import networks
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
        module = Biprop(Bypassing(), 10, (1, 8, 8))
    assert [name for name, p in module.named_parameters() if p.requires_grad] == ["network.called.scores"]
    architecture = {"name": "bypassing", "input_size": (1, 8, 8)}
    with pytest.raises(InputError, match="uses the weights of read without calling them"):
        networks.biprop.save_ticket(module.network, "never_written.safetensors", architecture)


def test_a_network_without_a_layer_to_mask_is_refused():
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.AdaptiveAvgPool1d(10))
    with pytest.raises(InputError, match="has no layer to mask: Classifier trains it as it is"):
        Biprop(network, 10, (1, 8, 8))
