"""Every recipe parses, builds and can be counted; every overlay fits over each of them."""

from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from commands.train import FrugalCLI
from networks import complexity

ROOT = Path(__file__).parent.parent
OVERLAYS = sorted((ROOT / "configs/hardware").glob("*.yaml"))
RECIPES = sorted(set((ROOT / "configs").rglob("*.yaml")) - set(OVERLAYS))
CIFAR10 = [path for path in RECIPES if path.parent.name == "cifar10"]


def name(path):
    return path.relative_to(ROOT / "configs").as_posix()


@pytest.mark.parametrize("config", RECIPES, ids=name)
def test_builds_and_says_what_it_is(config):
    head = config.read_text().splitlines()[:4]
    assert all(line.startswith("# ") for line in head)
    assert head[1] == f"# frugal fit -c {config.relative_to(ROOT).as_posix()}"
    cli = FrugalCLI(["-c", str(config)], run=False)
    assert cli.model.num_classes == cli.datamodule.num_classes
    assert complexity.count(cli.model.network, cli.model.input_size).output_size == (cli.model.num_classes,)


@pytest.mark.parametrize("overlay", OVERLAYS, ids=name)
def test_an_overlay_changes_the_trainer_and_nothing_else(overlay):
    recipe = str(RECIPES[0])
    content = yaml.safe_load(overlay.read_text())
    assert content.keys() == {"trainer"}
    plain, laid = (
        FrugalCLI(arguments, run=False) for arguments in (["-c", recipe], ["-c", recipe, "-c", str(overlay)])
    )
    assert {key: laid.config.trainer[key] for key in content["trainer"]} == content["trainer"]
    assert laid.config.data == plain.config.data
    assert laid.config.model == plain.config.model


def test_the_recipes_of_cifar10_are_the_specs():
    """Of the authors' release: 250 epochs, batch 128, SGD for 1/32, Adam without weight decay for 1/1, rate 0.1."""
    assert len(CIFAR10) == 2 * 4 + 1
    for path in CIFAR10:
        cli = FrugalCLI(["-c", str(path)], run=False)
        assert cli.datamodule.batch_size == 128
        assert cli.config.trainer.max_epochs == (7 if "half_hour" in path.name else 250)
        assert (cli.model.schedule, cli.model.warmup_epochs, cli.model.criterion.label_smoothing) == ("cosine", 0, 0)
        optimizer = cli.model.optimizer([nn.Parameter(torch.zeros(1))])
        settings = optimizer.param_groups[0]
        assert settings["lr"] == 0.1
        if "mpt1_32" in path.name:
            assert type(optimizer) is torch.optim.SGD
            assert (settings["momentum"], settings["weight_decay"], settings["nesterov"]) == (0.9, 1e-4, False)
        else:
            assert type(optimizer) is torch.optim.Adam
            assert (settings["betas"], settings["eps"], settings["weight_decay"]) == ((0.9, 0.999), 1e-8, 0)
