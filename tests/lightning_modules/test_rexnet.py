"""What is particular to ReXNet's training: what decays, released weights."""

import pytest
import timm
import torch
from pytorch_lightning import Trainer
from torch import nn

from lightning_modules import ReXNet
from networks import InputError


def module(**options):
    torch.manual_seed(0)
    arguments = {"network": "channel_search_net", "network_args": {"channels": [16, 24]}, "num_classes": 10}
    return ReXNet(**{**arguments, "input_size": (3, 32, 32), **options})


def test_biases_and_normalisation_do_not_decay():
    model = module()
    model.trainer = Trainer(max_epochs=2, logger=False, enable_checkpointing=False)
    optimizer = model.configure_optimizers()["optimizer"]
    decayed = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    kinds = {nn.Conv2d: set(), nn.BatchNorm2d: set(), nn.Linear: set()}
    for layer in model.modules():
        for kind, found in kinds.items():
            if isinstance(layer, kind):
                found.add((decayed[id(layer.weight)], decayed.get(id(layer.bias))))
    assert list(kinds.values()) == [{(1e-4, None)}, {(0.0, 0.0)}, {(1e-4, 0.0)}]


def test_training_starts_from_the_released_layout(tmp_path):
    """The authors' file, with another number of classes: all but the classifier is taken."""
    source = timm.create_model("rexnet", width=0.9)
    state = {}
    for i, (name, tensor) in enumerate(source.state_dict().items()):
        if name.startswith("head.fc"):
            state[f"output.1.{name.rpartition('.')[2]}"] = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
        else:
            state[f"features.{i}"] = tensor
    torch.save(state, tmp_path / "rexnetv1_0.9.pth")
    options = dict(network="rexnet", input_size=(3, 64, 64), initial_checkpoint=str(tmp_path / "rexnetv1_0.9.pth"))
    model = ReXNet(num_classes=7, network_args={"width": 0.9}, **options)
    model.load_initial()
    assert torch.equal(model.network.features[16].conv.weight, source.features[16].conv.weight)
    assert model.network.head.fc.weight.shape == (7, 1152)
    with pytest.raises(InputError, match="another width"):
        ReXNet(num_classes=7, network_args={"width": 1.0}, **options).load_initial()
