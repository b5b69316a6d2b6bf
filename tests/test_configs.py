"""Every recipe parses, builds, can be counted, and is the spec's; overlays fit over it; sweeps are what they say."""

import functools
import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch import nn
from wandb import wandb_agent

import networks
from commands.run_folder import run_folder, typed_configs
from commands.train import FrugalCLI
from lightning_modules import Biprop, Classifier
from networks import complexity
from networks.binarize import Sign
from networks.biprop import subnet_layers

ROOT = Path(__file__).parent.parent
OVERLAYS = sorted((ROOT / "configs/hardware").glob("*.yaml"))
SWEEPS = sorted((ROOT / "configs").rglob("sweeps/*.yaml"))
RECIPES = sorted(set((ROOT / "configs").rglob("*.yaml")) - {*OVERLAYS, *SWEEPS})
BIPROP = ROOT / "configs/biprop"


def name(path):
    return path.relative_to(ROOT / "configs").as_posix()


@functools.cache
def build(*arguments):
    """Model and data of a command line, without weights: the largest networks would take seconds each."""
    with torch.device("meta"):
        return FrugalCLI([str(argument) for argument in arguments], run=False)


@pytest.mark.parametrize("config", RECIPES, ids=name)
def test_builds_and_says_what_it_is(config):
    head = config.read_text().splitlines()[:4]
    assert all(line.startswith("# ") for line in head)
    assert head[1] == f"# frugal fit -c {config.relative_to(ROOT).as_posix()}"
    cli = build("-c", config)
    assert cli.model.num_classes == cli.datamodule.num_classes
    assert complexity.count(cli.model.network, cli.model.input_size).output_size == (cli.model.num_classes,)


@pytest.mark.parametrize("overlay", OVERLAYS, ids=name)
def test_an_overlay_changes_the_trainer_and_nothing_else(overlay):
    content = yaml.safe_load(overlay.read_text())
    assert content.keys() == {"trainer"}
    plain, laid = build("-c", RECIPES[0]), build("-c", RECIPES[0], "-c", overlay)
    assert {key: laid.config.trainer[key] for key in content["trainer"]} == content["trainer"]
    assert laid.config.data == plain.config.data
    assert laid.config.model == plain.config.model


def sgd(lr, momentum=0.9, weight_decay=1e-4):
    return {"class": torch.optim.SGD, "lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": False}


def adam(lr):
    """As released: it leaves out the weight decay that the paper's tables list."""
    return {"class": torch.optim.Adam, "lr": lr, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0}


SIGN = {"activation": "sign"}
WIDE = {**SIGN, "variant": "bn", "width": 1.25}
IMAGENET_SGD = sgd(0.256, 0.875, 2**-15)
# network, its arguments, optimiser, batch, epochs, keep fraction, weights that are left, trained values
SPEC = {
    "cifar10/vgg_small_mpt1_32": ("vgg_small", {"variant": "lit"}, adam(0.1), 128, 250, 0.05, 232_828, 4_656_512),
    "cifar10/vgg_small_full_mpt1_32": ("vgg_small", {"variant": "full"}, adam(0.1), 128, 250, 0.05, 232_828, 4_656_512),
    "cifar10/vgg_small_wide_mpt1_1": ("vgg_small", WIDE, adam(0.1), 128, 250, 0.25, 1_812_280, 7_249_120),
    "cifar10/vgg_small_wide_mpt1_1_bn": ("vgg_small", WIDE, adam(2e-4), 128, 250, 0.25, 1_812_280, 7_249_120 + 4480),
    "cifar10/vgg_small_dense": (
        "vgg_small", {"variant": "full"}, sgd(0.1, 0.9, 5e-4), 256, 100, None, 4_656_512, 4_656_512 + 3584
    ),
    "cifar10/resnet18_mpt1_32": ("cifar_resnet18", {}, sgd(0.1, 0.9, 5e-4), 256, 250, 0.2, 2_232_880, 11_164_352),
    "cifar10/resnet18_mpt1_32_bn": ("cifar_resnet18", {}, sgd(0.1, 0.9, 5e-4), 256, 250, 0.2, 2_232_880, 11_173_952),
    "cifar10/resnet18_mpt1_1": ("cifar_resnet18", SIGN, adam(0.1), 256, 250, 0.2, 2_232_880, 11_164_352),
    "cifar10/resnet18_dense": ("cifar_resnet18", {}, sgd(0.1, 0.9, 5e-4), 256, 100, None, 11_164_352, 11_173_952),
    "imagenet/wrn50_mpt1_32": ("wrn50", {}, IMAGENET_SGD, 256, 120, 0.2, 13_762_830, 68_814_016),
    "imagenet/wrn50_mpt1_32_bn": ("wrn50", {}, IMAGENET_SGD, 256, 120, 0.2, 13_762_830, 68_814_016 + 2 * 34_112),
    "imagenet/wrn34_mpt1_1": ("wrn34", SIGN, adam(2.56e-4), 256, 250, 0.4, 19_308_229, 48_270_528),
    "imagenet/wrn34_mpt1_1_bn": ("wrn34", SIGN, adam(2.56e-4), 256, 250, 0.4, 19_308_229, 48_295_616),
    "imagenet/wrn34_mpt1_1_bn_sgd": ("wrn34", SIGN, IMAGENET_SGD, 256, 250, 0.4, 19_308_229, 48_295_616),
    "imagenet/resnet34_dense": (
        "imagenet_resnet34", {}, IMAGENET_SGD, 256, 100, None, 21_779_648, 21_779_648 + 2 * 8512
    ),
}  # fmt: skip
for net, n, half, rate in (
    ("conv2", 4_300_992, 2_150_496, 2e-4),
    ("conv4", 2_425_024, 1_212_512, 3e-4),
    ("conv6", 2_261_184, 1_130_592, 3e-4),
    ("conv8", 5_275_840, 2_637_920, 3e-4),
):
    SPEC[f"cifar10/{net}_mpt1_32"] = (net, {}, sgd(0.1), 128, 250, 0.5, half, n)
    SPEC[f"cifar10/{net}_edge_popup"] = SPEC[f"cifar10/{net}_mpt1_32"]
    SPEC[f"cifar10/{net}_mpt1_1"] = (net, SIGN, adam(0.1), 128, 250, 0.5, half, n)
    SPEC[f"cifar10/{net}_dense"] = (net, {}, sgd(0.01), 128, 100, None, n, n)
    SPEC[f"cifar10/{net}_dense_adam"] = (net, {}, adam(rate), 60, 100, None, n, n)
SPEC["cifar10/conv4_mpt1_32_half_hour"] = ("conv4", {}, sgd(0.1), 128, 7, 0.5, 1_212_512, 2_425_024)


def test_every_recipe_of_the_paper_is_in_the_spec():
    recipes = {path.relative_to(BIPROP).with_suffix("").as_posix() for path in RECIPES if path.is_relative_to(BIPROP)}
    assert {recipe for recipe in recipes if not recipe.startswith(("digits/", "cifar10/short/"))} == SPEC.keys()


@pytest.mark.parametrize("recipe", SPEC)
def test_recipe_is_the_specs(recipe):
    network, network_args, optimizer, batch, epochs, keep_fraction, left, trained = SPEC[recipe]
    cli = build("-c", BIPROP / f"{recipe}.yaml")
    model = cli.model
    dense, imagenet = keep_fraction is None, recipe.startswith("imagenet/")
    assert type(model) is (Classifier if dense else Biprop)
    assert (model.hparams.network, model.hparams.network_args or {}) == (network, network_args)
    assert (cli.datamodule.batch_size, cli.config.trainer.max_epochs) == (batch, epochs)
    assert model.schedule == ("constant" if recipe.endswith("dense_adam") else "cosine")
    assert (model.warmup_epochs, model.criterion.label_smoothing) == ((5, 0.1) if imagenet else (0, 0))
    built = model.optimizer([nn.Parameter(torch.zeros(1))])
    assert {
        "class": type(built),
        **{key: built.param_groups[0][key] for key in optimizer if key != "class"},
    } == optimizer
    layers = complexity.count(model.network, model.input_size).layers
    assert sum(layer.params for layer in layers if "Norm" not in layer.type) == left
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trained
    if not dense:
        signed = "edge_popup" in recipe or network == "wrn50"
        normalised = any("Norm" in type(layer).__name__ for layer in model.modules())
        (found,) = {(m.keep_fraction, m.init, m.scale, m.binarize) for m in subnet_layers(model).values()}
        assert found == (
            keep_fraction,
            "signed_constant" if signed else "kaiming_normal",
            "none" if normalised else "kept",
            "none" if "edge_popup" in recipe else "sign_gain",
        )


@pytest.fixture
def grid(tmp_path, monkeypatch):
    """For each point of a sweep, what W&B's own agent would start: config, network, and the folder of its run."""
    started = []

    def start(command, **_):
        started.append((command, run_folder(typed_configs(command), 0)))  # in the environment that it would inherit
        return SimpleNamespace()

    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    monkeypatch.setenv("WANDB_RUN_ID", "")  # the agent sets both for each run; here they are unset again
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", "")
    monkeypatch.setattr(wandb_agent, "AgentProcess", start)

    def points(sweep):
        plan = yaml.safe_load((BIPROP / "cifar10/sweeps" / sweep).read_text())
        assert plan["method"] == "grid"
        agent = wandb_agent.Agent.__new__(wandb_agent.Agent)  # its constructor asks W&B's server
        options = {"_in_jupyter": False, "_function": None, "_forward_signals": False, "_run_processes": {}}
        vars(agent).update(options, _sweep_command=plan["command"])
        parameters = {key: given.get("values", [given.get("value")]) for key, given in plan["parameters"].items()}
        for number, values in enumerate(itertools.product(*(parameters[key] for key in sorted(parameters)))):
            args = {key: {"value": value} for key, value in zip(sorted(parameters), values, strict=True)}  # W&B sorts
            agent._command_run({"run_id": f"run{number}", "program": plan["program"], "args": args})
        assert len({folder for _, folder in started}) == len(started)
        parser = build("-c", RECIPES[0]).parser
        for command, folder in started:
            assert command[:2] == ["frugal", "fit"]
            config = parser.parse_args(command[2:])
            assert config.trainer.logger.class_path.endswith("WandbLogger")
            model = config.model.init_args
            with torch.device("meta"):
                network = networks.create(model.network, (3, 32, 32), 10, model.network_args)
                networks.biprop.apply(network, model.keep_fraction, scale=model.scale)
            form = "mpt1_1" if any(isinstance(layer, Sign) for layer in network.modules()) else "mpt1_32"
            assert str(folder.parent.parent) == f"runs/biprop/cifar10/{model.network}_{form}/sweep_sweep"
            yield model, form, list(subnet_layers(network).values())

    return points


def test_sweep_of_keep_fractions(grid):
    kept = {
        0.8: (3440797, 1940023, 1808952, 4220678),
        0.6: (2580597, 1455017, 1356714, 3165508),
        0.5: (2150496, 1212512, 1130592, 2637920),
        0.4: (1720399, 970013, 904478, 2110342),
        0.2: (860200, 485008, 452241, 1055173),
        0.1: (430101, 242505, 226122, 527588),
    }
    found = [
        (form, model.network, model.keep_fraction, sum(layer.kept for layer in layers))
        for model, form, layers in grid("keep_fraction.yaml")
    ]
    assert sorted(found) == sorted(
        (form, f"conv{depth}", k, count)
        for form in ("mpt1_32", "mpt1_1")
        for k, counts in kept.items()
        for depth, count in zip((2, 4, 6, 8), counts, strict=True)
    )


def test_sweep_of_widths(grid):
    weights = {
        "conv4": (607_328, 2_425_024, 5_453_088, 9_691_520),
        "conv6": (566_368, 2_261_184, 5_084_448, 9_036_160),
        "conv8": (1_320_032, 5_275_840, 11_867_424, 21_094_784),
    }
    found = []
    for model, form, layers in grid("width.yaml"):
        assert {(layer.scale, layer.keep_fraction, layer.init) for layer in layers} == {("none", 0.5, "kaiming_normal")}
        found.append((form, model.network, model.network_args["width"], sum(layer.weight.numel() for layer in layers)))
    assert sorted(found) == sorted(
        (form, net, width, n)
        for form in ("mpt1_32", "mpt1_1")
        for net, counts in weights.items()
        for width, n in zip((0.5, 1, 1.5, 2), counts, strict=True)
    )
