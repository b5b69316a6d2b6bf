"""Batch normalisation over all devices: the activations inside timm's layers stay."""

import copy

import pytest
import timm
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.plugins.layer_sync import TorchSyncBatchNorm
from timm.layers import BatchNormAct2d
from torch import nn

from callbacks import SyncBatchNorm
from commands.train import FrugalCLI

NETWORKS = ["rexnet_100", "efficientnet_b0", "mobilenetv3_small_050"]  # with activations in the layers of batch norm
DDP = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp"]


def trained(name):
    """With statistics and scales that are none of the first."""
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=5)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1, 0.2)
            nn.init.normal_(layer.bias, 0, 0.2)
            nn.init.normal_(layer.running_mean, 0, 0.1)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    return network


def norms(network, kind):
    return {name: layer for name, layer in network.named_modules() if isinstance(layer, kind)}


@pytest.mark.parametrize("name", [*NETWORKS, "resnet10t"])
def test_the_network_computes_the_same(name):
    network, x = trained(name).eval(), torch.randn(2, 3, 64, 64)
    converted = SyncBatchNorm().apply(copy.deepcopy(network))
    assert norms(converted, nn.SyncBatchNorm).keys() == norms(network, nn.BatchNorm2d).keys() != set()
    assert not norms(converted, nn.BatchNorm2d)
    assert not any(layer.training for layer in converted.modules())
    with torch.no_grad():
        assert torch.equal(converted(x), network(x))
    assert SyncBatchNorm().revert(converted) is converted


@pytest.mark.parametrize("name", NETWORKS)
def test_torchs_conversion_would_lose_activations(name):
    network, x = trained(name).eval(), torch.randn(2, 3, 64, 64)
    converted = TorchSyncBatchNorm().apply(copy.deepcopy(network))
    assert norms(network, BatchNormAct2d)
    with torch.no_grad():
        assert not torch.allclose(converted(x), network(x), rtol=0.1)


def test_a_step_of_one_process_is_the_same():
    network, x = trained("rexnet_100").train(), torch.randn(4, 3, 64, 64)
    converted = SyncBatchNorm().apply(copy.deepcopy(network))
    for each in (network, converted):
        torch.manual_seed(1)
        each(x).square().sum().backward()
    for (name, a), (other, b) in zip(network.named_parameters(), converted.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(a.grad, b.grad)
    assert network.state_dict().keys() == converted.state_dict().keys()
    assert all(torch.equal(a, converted.state_dict()[name]) for name, a in network.state_dict().items())


def test_the_parameters_are_the_networks_own():
    network = trained("resnet10t")
    before = {id(p) for p in network.parameters()}
    assert {id(p) for p in SyncBatchNorm().apply(network).parameters()} == before


class Unstarted(FrugalCLI):
    """Builds model, data and trainer, and runs nothing."""

    def _run_subcommand(self, subcommand):
        pass


@pytest.mark.parametrize(
    ("arguments", "on_gpu", "kind"),
    [
        (["--trainer.sync_batchnorm", "true"], True, SyncBatchNorm),
        (["--trainer.sync_batchnorm", "true"], False, type(None)),  # torch has none for CPUs
        ([], True, type(None)),
    ],
    ids=["asked for", "on CPUs", "not asked for"],
)
def test_the_command_takes_ours(tmp_path, monkeypatch, arguments, on_gpu, kind):
    monkeypatch.chdir(tmp_path)
    if on_gpu:
        monkeypatch.setattr("commands.hardware.CPUAccelerator", type("Other", (), {}))
    model = ["--model", "Classifier", "--model.network", "conv2"]
    trainer = Unstarted(["fit", *model, *DDP, *arguments]).trainer
    assert type(trainer.strategy._layer_sync) is kind


def test_lightnings_own_would_be_torchs(tmp_path):
    options = dict(accelerator="cpu", devices=2, strategy="ddp", logger=False, default_root_dir=tmp_path)
    assert type(Trainer(sync_batchnorm=True, **options).strategy._layer_sync) is TorchSyncBatchNorm
