"""The layout of maps: channels innermost in every 2-D convolution, and the same numbers."""

import pytest
import torch
from pytorch_lightning import Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from callbacks import ChannelsLast
from lightning_modules import Biprop, Classifier, Epitome, ExpertBinary


def train(model, *callbacks):
    """Two steps on images of three channels."""
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(64, 3, 16, 16, generator=generator), torch.arange(64) % 10
    options = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "accelerator": "cpu",
        "precision": "64-true",
    }
    trainer = Trainer(max_epochs=1, callbacks=list(callbacks), **options)
    trainer.fit(model, DataLoader(TensorDataset(images, labels), batch_size=32))
    return model


def test_maps_are_laid_out_so_and_weights_are_the_same():
    layouts, trained = set(), []
    for callbacks in ([ChannelsLast()], []):
        torch.manual_seed(0)
        model = Classifier("channel_search_net", 10, (3, 16, 16), {"channels": [8, 12]})
        if callbacks:
            for layer in model.modules():
                if isinstance(layer, nn.Conv2d):
                    layer.register_forward_hook(
                        lambda _, args, out: layouts.add(out.is_contiguous(memory_format=torch.channels_last))
                    )
        trained.append([p.detach() for p in train(model, *callbacks).parameters()])
    assert layouts == {True}
    for a, b in zip(*trained, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("method", [Biprop, Epitome, ExpertBinary])
def test_every_method_trains_so(method):
    """Weights of experts have five axes, which that layout does not know."""
    torch.manual_seed(0)
    arguments = {"network_args": {"width": 0.25}} if method is Biprop else {}
    model = train(method("conv2", 10, (3, 16, 16), **arguments), ChannelsLast())
    assert all(p.isfinite().all() for p in model.parameters())
