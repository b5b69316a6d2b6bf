"""Every recipe parses, builds, can be counted, and is the spec's; overlays fit over it; sweeps are what they say."""

import copy
import functools
import itertools
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import timm
import torch
import yaml
from torch import nn
from wandb import wandb_agent

import networks
from callbacks import Distillation
from commands import references, steps
from commands.run_folder import run_folder, typed_configs
from commands.train import FrugalCLI
from lightning_modules import Biprop, Classifier, Detector, ExpertBinary
from lightning_modules.initial import Weights
from networks import complexity
from networks.binarize import Sign
from networks.biprop import subnet_layers
from networks.epitome import epitome_layers
from networks.expert_binary import STEPS
from studies import conventions

ROOT = Path(__file__).parent.parent
OVERLAYS = sorted((ROOT / "configs/hardware").glob("*.yaml"))
SWEEPS = sorted((ROOT / "configs").rglob("sweeps/*.yaml"))
BASES = sorted((ROOT / "configs").rglob("base.yaml"))  # included by others, without a network of their own
STUDIES = [path for room in ("search", "rank") for path in (ROOT / "configs/rexnet" / room).rglob("*.yaml")]
RECIPES = sorted(set((ROOT / "configs").rglob("*.yaml")) - {*OVERLAYS, *SWEEPS, *BASES, *STUDIES})
BIPROP = ROOT / "configs/biprop"
EXPERT_BINARY = ROOT / "configs/expert_binary"

# What `frugal tables` and the documents say of our costs; `make docs` counts them anew.
KEPT_COSTS = {
    config: costs
    for path in (ROOT / "results").glob("*/costs.json")
    for config, costs in json.loads(path.read_text()).items()
}


def name(path):
    return path.relative_to(ROOT / "configs").as_posix()


COUNTED = {}
uncached_count = complexity.count


def count(network, input_size):
    """complexity.count, once for equal networks: it takes longer than to build one."""
    bits = tuple(getattr(module, "quantize_bits", None) for module in network.modules())  # they are in no repr
    key = repr(network), bits, input_size
    if key not in COUNTED:
        COUNTED[key] = uncached_count(network, input_size)
    return COUNTED[key]


@functools.cache
def build(*arguments):
    """Model and data of a command line, without weights: the largest networks would take seconds each."""
    fetch = mock.patch("timm.models._builder.load_pretrained")  # from elsewhere
    unchecked = mock.patch.object(complexity, "output_size", return_value=())  # a test below asks it
    with torch.device("meta"), mock.patch.object(complexity, "count", count), unchecked, fetch:
        return FrugalCLI([str(argument) for argument in arguments], run=False)


@pytest.mark.parametrize("config", RECIPES, ids=name)
def test_builds_and_says_what_it_is(config):
    head = config.read_text().splitlines()[:4]
    assert all(line.startswith("# ") for line in head)
    assert head[1] == f"# frugal fit -c {config.relative_to(ROOT).as_posix()}"
    cli = build("-c", config)
    assert cli.model.num_classes == cli.datamodule.num_classes
    of_classes = () if isinstance(cli.model, Detector) else (cli.model.num_classes,)
    report = count(cli.model.network, cli.model.input_size)
    assert report.output_size == of_classes
    kept = KEPT_COSTS.get(config.relative_to(ROOT).as_posix(), {})
    assert {name: getattr(conventions, name)(cli.model.network, report) for name in kept} == kept


@pytest.mark.parametrize("base", BASES, ids=name)
def test_a_base_is_included_and_runs_nothing_by_itself(base):
    below = [(path, os.path.relpath(base, path.parent)) for path in base.parent.rglob("*.yaml")]
    included = [path for path, relative in below if f"config: {relative}\n" in path.read_text()]
    assert included
    assert not base.read_text().startswith("# frugal fit")
    content = yaml.safe_load(base.read_text())
    assert "model.init_args.network" not in content
    assert "network" not in content.get("model", {"init_args": {}})["init_args"]


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
SPEC["cifar10/resnet18_mpt1_32_distilled"] = SPEC["cifar10/resnet18_mpt1_32"]
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
    """For each point of a sweep, what W&B's own agent would start: its config, and the folder of its run."""
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
        plan = yaml.safe_load((ROOT / "configs" / sweep).read_text())
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
            (recipe,) = {given for given in typed_configs(command) if "hardware" not in given}
            assert folder.parent.parent == Path("runs", recipe.removeprefix("configs/")).with_suffix("") / "sweep_sweep"
            yield config, folder

    return points


def tickets(points):
    """The layers of each point's network, by its form, and that its folder says the same."""
    for config, folder in points:
        model = config.model.init_args
        with torch.device("meta"):
            network = networks.create(model.network, (3, 32, 32), 10, model.network_args)
            networks.biprop.apply(network, model.keep_fraction, scale=model.scale)
        form = "mpt1_1" if any(isinstance(layer, Sign) for layer in network.modules()) else "mpt1_32"
        assert folder.parts[3] == f"{model.network}_{form}"
        yield model, form, list(subnet_layers(network).values())


def test_every_sweep_has_a_metric_that_runs_log_and_is_looked_at_below():
    assert {name(path) for path in SWEEPS} == {
        "biprop/cifar10/sweeps/keep_fraction.yaml",
        "biprop/cifar10/sweeps/width.yaml",
        "biprop/digits/sweeps/keep_fraction.yaml",
        "epitome/digits/sweeps/multiplier.yaml",
        "expert_binary/digits/sweeps/temperature.yaml",
        "expert_binary/imagenet/sweeps/temperature.yaml",
    }
    for path in SWEEPS:
        assert yaml.safe_load(path.read_text())["metric"] == {"name": "val/top1", "goal": "maximize"}


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
        for model, form, layers in tickets(grid("biprop/cifar10/sweeps/keep_fraction.yaml"))
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
    for model, form, layers in tickets(grid("biprop/cifar10/sweeps/width.yaml")):
        assert {(layer.scale, layer.keep_fraction, layer.init) for layer in layers} == {("none", 0.5, "kaiming_normal")}
        found.append((form, model.network, model.network_args["width"], sum(layer.weight.numel() for layer in layers)))
    assert sorted(found) == sorted(
        (form, net, width, n)
        for form in ("mpt1_32", "mpt1_1")
        for net, counts in weights.items()
        for width, n in zip((0.5, 1, 1.5, 2), counts, strict=True)
    )


def test_sweep_of_keep_fractions_on_digits(grid):
    found = [(form, model.keep_fraction) for model, form, _ in tickets(grid("biprop/digits/sweeps/keep_fraction.yaml"))]
    assert sorted(found) == sorted(itertools.product(("mpt1_32", "mpt1_1"), (0.8, 0.5, 0.2, 0.1)))


@pytest.mark.parametrize("data", ["imagenet", "digits"])
def test_sweep_of_temperatures(grid, data):
    """Table 10: the points are the table's recipes, and begin with the run of one expert, which is of no sweep."""
    found = {}
    for config, _ in grid(f"expert_binary/{data}/sweeps/temperature.yaml"):
        found[config.model.init_args.temperature] = config.clone()
        references.resolve(config, 0, needs=False, starts=False)
        before = f"expert_binary/{data}/{'2222_1/' if data == 'imagenet' else ''}one_expert"
        assert config.model.init_args.initial_checkpoint == f"runs/{before}/seed0/checkpoints/last.ckpt"
    assert set(found) == {0.02, 1, 5, 25}
    if data == "imagenet":
        recipes = {0.02: "experts_n4_tau0_02", 1: "experts_n4", 5: "experts_n4_tau5", 25: "experts_n4_tau25"}
        for temperature, recipe in recipes.items():
            assert found[temperature].model == expert_recipe(f"imagenet/2222_1/{recipe}").config.model


def test_sweep_of_multipliers(grid):
    """Of each inner layer the share of the weight that is stored; positions are apart."""
    stored = {}
    for config, _ in grid("epitome/digits/sweeps/multiplier.yaml"):
        network = networks.create("conv2", (1, 8, 8), 10)
        dense = sum(layer.weight.numel() for layer in (network.convs[2], network.linear[0], network.linear[2]))
        networks.epitome.apply(network, config.model.init_args.rules)
        stored[config.model.init_args.rules] = (
            sum(layer.epitome.numel() for layer in epitome_layers(network).values()) / dense
        )
    assert stored == pytest.approx({m: m for m in (0.5, 0.25, 0.125, 0.0625)})


# The recipes of "High-Capacity Expert Binary Networks" (EBN) on ImageNet and CIFAR-100, by folder and file. A folder is
# a network, here with its binary operations: to the unit, or as read off Fig. 2, in 1e9.
TABLE_2 = {"2222_1": 1_676_279_808, "2222_2_4_4_4_4": 1_618_477_056, "2222_4_16_16_16_16": 1_589_575_680}
TABLE_3 = dict.fromkeys(["1133_1", "1142_1", "1124_1"], 1_676_279_808)
TABLE_4 = {
    "1242_2_4_4_16_32": 1_307_787_264,
    "1262_2_4_4_16_32": 1_526_153_216,
    "1282_2_4_4_16_32": 1_744_519_168,
    "1242_2_4_4_8_16": 1_575_124_992,
    "1262_2_4_4_8_16": 1_909_096_448,
    "1282_2_4_4_8_16": 2_243_067_904,
    "1262_2_4_8_8_16": 1_706_786_816,
}
MARKED = dict.fromkeys(["1262_2_4_8_8_16_star", "1262_2_4_8_8_16_dagger"], 1_706_786_816)
FIGURE_2A = {
    **{"1284_2_4_4_8_16": 2.4614, "2212_2_4_4_4_4": 1.3873, "2232_2_4_4_4_4": 1.8497, "2233_2_4_4_4_4": 2.0809},
    **{"2244_2_4_4_4_4": 2.5433, "2255_2_4_4_4_4": 3.0057, "2277_2_4_4_4_4": 3.9306},
    **{"2244_1": 2.6011, "2254_1": 2.8323, "2255_1": 3.0635, "2277_1": 3.9884, "2287_1": 4.2196},
}  # and networks of Tables 2 and 4, as in Fig. 2(b) and 3
FIGURE_2B = {
    f"{blocks}_2_{groups}": bops
    for blocks, line in (
        ("1142", (1.2925, 1.2058, 1.0758, 0.9385)),
        ("1162", (1.6265, 1.5398, 1.2941, 1.1569)),
        ("1182", (1.9605, 1.8738, 1.5125, None)),
        ("1242", (None, 1.3728, 1.3584, 1.1055)),
    )
    for groups, bops in zip(("4_4_8_16", "4_8_8_16", "4_4_16_16", "4_8_16_32"), line, strict=True)
    if bops
}
U = 64 * 64 * 9 * 56 * 56  # a 3x3 convolution of ResNet-18's first stage
FIGURE_3 = {  # by the closed form of section 9.1
    **{f"{blocks}_2_4_4_4_4": 14 * U for blocks in (1133, 1142, 1124)},
    **{f"{blocks}_2_4_4_4_4_1x1": 14 * U + 8 * 4 * U // 9 for blocks in (1133, 1142, 1124, 2222)},
    "2212_2_4_4_4_4_1x1": 12 * U + 7 * 4 * U // 9,
}
IMAGENET = {**TABLE_2, **TABLE_3, **TABLE_4, **MARKED, **FIGURE_2A, **FIGURE_2B, **FIGURE_3}
CIFAR100 = {"2222_1": 547_356_672, "1262_2_4_8_8_16": 557_318_144}
CIFAR100 |= {f"{network}_star": bops for network, bops in CIFAR100.items()}
BOPS = {f"imagenet/{folder}": bops for folder, bops in IMAGENET.items()}
BOPS |= {f"cifar100/{folder}": bops for folder, bops in CIFAR100.items()}
BY_N = ["one_expert", "binary_n1", "experts_n4", "binary_n4", "experts_n8", "binary_n8"]
FILES = {
    **{folder: ["one_expert", "experts", "binary"] for folder in BOPS},
    **{f"imagenet/{folder}": ["one_expert"] for folder in TABLE_3},
    **{f"imagenet/{folder}": ["one_expert", "experts"] for folder in FIGURE_2A | FIGURE_2B | FIGURE_3},
    **{folder: ["fp", "one_expert", "experts", "binary"] for folder in BOPS if folder.endswith(("_star", "_dagger"))},
    "imagenet/2222_1": [*BY_N, "binary_n4_mixture"],
    "imagenet/2222_2_4_4_4_4": BY_N,
    "imagenet/2222_4_16_16_16_16": BY_N[:2],
}
FILES["imagenet/2222_1"] += [f"experts_n4_{what}" for what in ("tau0_02", "tau5", "tau25", "sigmoid", "mixture")]
FILES["imagenet/1242_2_4_4_8_16"] += [f"one_expert_{what}" for what in ("plain", "plain_prelu", "linear", "relu")]
PRETRAINED = {"star": "resnet34.tv_in1k", "dagger": "resnet50.tv_in1k"}
PARAMS = {  # section 9.4
    "imagenet/2222_1/binary_n1": 11_696_296,
    "imagenet/2222_1/binary_n4": 44_666_344,
    "imagenet/2222_1/binary_n8": 88_621_864,
    "imagenet/2222_2_4_4_4_4/binary_n4": 45_226_040,
    "imagenet/1262_2_4_8_8_16/binary": 39_782_332,
    "imagenet/1262_2_4_8_8_16_star/binary": 42_558_396,
    "imagenet/1262_2_4_8_8_16_dagger/binary": 42_558_396,
    "imagenet/1242_2_4_4_8_16/binary": 33_974_180,
    "imagenet/1282_2_4_4_16_32/binary": 34_383_828,
}
EBN = [f"{folder}/{file}" for folder, files in FILES.items() for file in files]
TEACHER = "cifar100/teacher"


def expert_recipe(recipe):
    return build("-c", EXPERT_BINARY / f"{recipe}.yaml")


def expected_network(folder):
    """Name and arguments of a folder's network."""
    data, network = folder.removesuffix("_star").removesuffix("_dagger").split("/")
    blocks, _, *groups = network.removesuffix("_1x1").split("_")
    if data == "imagenet" and network in FIGURE_3:  # pairs with and without the 1x1 unit, else the same
        args = {"blocks": [int(n) for n in blocks], "expansion": 2, "groups": [4] * 4, "stem": "resnet"}
        return "expert_binary_resnet", {**args, "deep": network.endswith("_1x1")}
    deep = "deep_" if len(set(groups)) > 1 else ""
    return f"expert_binary_{deep}{network}", {} if data == "imagenet" else {"stem": "cifar"}


def test_every_recipe_of_expert_binary_is_in_the_spec():
    recipes = {path.relative_to(EXPERT_BINARY).with_suffix("") for path in RECIPES if EXPERT_BINARY in path.parents}
    assert {path.as_posix() for path in recipes if path.parts[0] in ("imagenet", "cifar100")} == {*EBN, TEACHER}


@pytest.mark.parametrize("recipe", EBN)
def test_recipe_of_expert_binary_is_the_specs(recipe):
    folder, file = recipe.rsplit("/", 1)
    step, n, variant = re.fullmatch(r"(fp|one_expert|experts|binary)(?:_n(\d))?(?:_(.+))?", file).groups()
    marked = folder.endswith(("_star", "_dagger"))
    network, network_args = expected_network(folder)
    options = {"temperature": 1.0, "gate_grad": "softmax", "routing": "winner", "rescale": marked}
    options |= {
        "tau0_02": {"temperature": 0.02}, "tau5": {"temperature": 5}, "tau25": {"temperature": 25},
        "sigmoid": {"gate_grad": "sigmoid"}, "mixture": {"routing": "mixture"},
    }.get(variant, {})  # fmt: skip
    experts = int(n or 4) if step in ("experts", "binary") else 1
    if step == "one_expert" and variant:
        network_args = {**network_args, "shortcut": variant}
    before = {
        "fp": None,
        "one_expert": "fp" if marked else None,
        "experts": "one_expert",
        "binary": "one_expert" if experts == 1 else file.replace("binary", "experts"),
    }[step]

    cli = expert_recipe(recipe)
    model = cli.model
    hparams = model.hparams
    assert type(model) is ExpertBinary
    assert (hparams.network, hparams.network_args or {}) == (network, network_args)
    assert (model.step, hparams.num_experts, hparams.fp_activation) == (step, experts, "identity")
    assert {key: hparams[key] for key in options} == options
    path = str(EXPERT_BINARY.relative_to(ROOT) / folder / "{}.yaml")
    assert cli.config.model.init_args.initial_checkpoint == (before and path.format(before))

    taught = [callback.init_args for callback in cli.config.trainer.callbacks or []]
    given, checkpoint = None, path.format("experts" if step == "binary" else "fp")
    if step == "fp" and recipe.startswith("cifar100"):
        checkpoint = f"configs/expert_binary/{TEACHER}.yaml"
    elif step == "fp" and marked:
        given, checkpoint = PRETRAINED[folder.rsplit("_", 1)[1]], None
        assert timm.is_model_pretrained(given)
    attention = 0 if step == "binary" else 1000
    keys = ("teacher", "checkpoint", "logit_weight", "temperature", "attention_weight", "layers")
    expected = (given, checkpoint, 1, 1, attention, "layer[2-4]")
    assert [tuple(by[key] for key in keys) for by in taught] == ([expected] if marked else [])

    bops = count(model.network, model.input_size).bops
    assert bops == (BOPS[folder] if isinstance(BOPS[folder], int) else pytest.approx(BOPS[folder] * 1e9, abs=7e4))
    assert {layer.num_experts for layer in model.layers.values()} == {experts}
    if recipe in PARAMS:
        assert sum(p.numel() for p in model.network.parameters()) == PARAMS[recipe]


RATES = {  # by epoch
    "imagenet": {
        **{0: 1e-4, 4: 5e-4, 9: 1e-3, 10: 1e-3, 39: 1e-3},
        **{40: 1e-4, 54: 1e-4, 55: 1e-5, 64: 1e-5, 65: 1e-6, 74: 1e-6},
    },
    "cifar100": {
        **{0: 2e-4, 4: 1e-3, 5: 1e-3, 149: 1e-3},
        **{150: 1e-4, 249: 1e-4, 250: 1e-5, 319: 1e-5, 320: 1e-6, 349: 1e-6},
    },
    "cifar100, binary": {0: 2e-4, 149: 2e-4, 150: 2e-5, 249: 2e-5, 250: 2e-6, 319: 2e-6, 320: 2e-7, 349: 2e-7},
}  # fmt: skip


@pytest.mark.parametrize("recipe", [*EBN, TEACHER])
def test_expert_binary_optimises_as_the_spec_says(recipe, monkeypatch):
    """Oracles 18 and 19: rates by epoch; decay in Stage I, none in Stage II."""
    cli, imagenet = expert_recipe(recipe), recipe.startswith("imagenet")
    model, data = cli.model, cli.config.data
    epochs = cli.config.trainer.max_epochs
    binary = getattr(model, "step", None) == "binary"
    assert (data.class_path, data.init_args.batch_size, epochs) == (
        ("datamodules.ImageNet", 256, 75) if imagenet else ("datamodules.CIFAR", 128, 350)
    )
    if not imagenet:
        assert (data.init_args.classes, data.init_args.rotation) == (100, 15)
    assert (model.hparams.mixup_alpha, model.hparams.label_smoothing) == (0.2, 0)
    monkeypatch.setattr(model, "_trainer", SimpleNamespace(fast_dev_run=False, max_epochs=epochs))
    optimizer, schedule = model.configure_optimizers().values()
    assert type(optimizer) is (torch.optim.AdamW if imagenet else torch.optim.Adam)
    decay = 0 if binary else 1e-2 if imagenet else 1e-5
    found = [(group["weight_decay"], group["betas"], group["eps"]) for group in optimizer.param_groups]
    assert found == [(decay, (0.9, 0.999), 1e-8)]
    assert len(optimizer.param_groups[0]["params"]) == sum(p.requires_grad for p in model.parameters())
    assert schedule["interval"] == "epoch"
    (rate,), (factor,) = schedule["scheduler"].base_lrs, schedule["scheduler"].lr_lambdas
    rates = RATES["imagenet" if imagenet else "cifar100, binary" if binary else "cifar100"]
    assert {epoch: rate * factor(epoch) for epoch in rates} == pytest.approx(rates, rel=1e-9)


CHAINS = [path for path in RECIPES if EXPERT_BINARY in path.parents and path.stem != "teacher"]


@pytest.mark.parametrize("config", CHAINS, ids=name)
def test_steps_follow_each_other(config, monkeypatch):
    """`frugal steps` finds all that a recipe needs, in order, and each step's weights are what the next begins with."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("commands.train.parse", lambda arguments: build("-c", ROOT / arguments[1]).config)
    chain = [ROOT / path for path in steps.in_order(str(config.relative_to(ROOT)), [])]
    chain = [build("-c", path).model for path in chain if path.stem != "teacher"]
    model = build("-c", config).model
    assert chain[-1] is model
    wanted = STEPS[chain[0].step != "fp" : STEPS.index(model.step) + 1]
    one = model.hparams.num_experts == 1
    assert [each.step for each in chain] == [step for step in wanted if not (one and step == "experts")]
    for before, after in itertools.pairwise(chain):
        begin, own = before.state_dict(), after.state_dict()
        report = after.start_from(Weights("before", begin, type(before).__name__, dict(before.hparams)))
        drawn_anew = [name for name in own if ".gate." in name] if after.step == "experts" else []
        assert report.startswith(f"{len(own) - len(drawn_anew)} of {len(own)} tensors")
        assert begin.keys() == own.keys() - set(drawn_anew)


def test_teachers_fit_their_students():
    """All logits, and attention at three equal heights and widths."""
    taught = [recipe for recipe in EBN if re.search(r"_(star|dagger)/(fp|one_expert)$", recipe)]
    assert len(taught) == 8  # the later steps have the same networks
    for recipe in taught:
        cli = expert_recipe(recipe)
        given = cli.config.trainer.callbacks[0].init_args
        with torch.device("meta"), mock.patch.object(complexity, "count", count):
            if given.teacher:
                teacher = timm.create_model(given.teacher)
            else:
                teacher = copy.deepcopy(build("-c", ROOT / given.checkpoint).model)
            distillation = Distillation(teacher, layers=given.layers, teacher_layers=given.teacher_layers)
            distillation.prepare(cli.model)
        assert distillation.pairs == [(stage, stage) for stage in ("layer2", "layer3", "layer4")]
