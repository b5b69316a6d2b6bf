"""The nuclear norm of the test set's features, against the features themselves."""

import json

import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.loggers import CSVLogger

import networks
from callbacks import NuclearNorm
from datamodules import Digits
from lightning_modules import Classifier


@pytest.mark.parametrize(("network", "args"), [("conv2", {"width": 0.1}), ("channel_search_net", {"channels": [8, 8]})])
def test_it_is_of_the_pooled_features_of_all_test_samples(tmp_path, network, args):
    torch.manual_seed(0)
    model = Classifier(network, 10, (1, 8, 8), network_args=args)
    data = Digits(batch_size=100)
    logger = CSVLogger(tmp_path, "", "")
    trainer = Trainer(accelerator="cpu", logger=logger, callbacks=[NuclearNorm()], enable_progress_bar=False)
    logged = trainer.test(model, data, verbose=False)[0]["test/nuclear_norm"]

    images = torch.cat([images for images, _ in data.test_dataloader()])
    *_, classifier = (m for m in model.network.modules() if isinstance(m, torch.nn.Linear))
    seen = []
    classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model.eval()(images)
    expected = torch.linalg.matrix_norm(seen[0].double(), "nuc")
    assert logged == pytest.approx(float(expected), rel=1e-4)
    written = json.loads((tmp_path / "singular_values.json").read_text())
    assert written["samples"] == len(images)
    assert len(written["singular_values"]) == min(seen[0].shape)
    assert sum(written["singular_values"]) == pytest.approx(logged, rel=1e-5)
    assert (tmp_path / "singular_values.png").stat().st_size > 5_000


def test_the_classifier_of_every_network_of_ours_is_found():
    """What gives the scores takes the penultimate width, or the lite head's 1024."""
    for name, width in (("rexnet_lite", 1024), ("rexnet_plain", 1024), ("rexnet", 1280)):
        with torch.device("meta"):
            net = networks.create(name, (3, 64, 64), 7)
        layer = net.get_classifier()
        assert layer.weight.shape[:2] == (7, width)
