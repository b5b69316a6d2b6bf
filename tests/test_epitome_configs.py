"""Every recipe of NES and WSNet is the spec's: network, stored weights, cost, optimiser, rates and data."""

import functools
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from timm.optim import RMSpropTF

from commands.train import FrugalCLI
from lightning_modules import Epitome
from networks.complexity import count
from networks.epitome import epitome_layers

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "configs/epitome"
RECIPES = {
    path.relative_to(FOLDER).with_suffix("").as_posix()
    for path in FOLDER.rglob("*.yaml")
    if path.stem != "base" and path.parent.name != "sweeps"
}

WS = {"positions": "none"}
# network, its arguments, parameters, multiply-adds, routing floats
SPEC = {
    "esc50/dense": ("soundnet8_esc50", {}, 14_425_615, 583_624_098, 0),
    "esc50/ws25": ("wsnet_esc50_ws25", WS, 622_823, 400_000_418, 0),
    "esc50/ws25_8bit": ("wsnet_esc50_ws25", WS, 622_823, 400_000_418, 0),
    "esc50/ws25_learned": ("wsnet_esc50_ws25", {}, 622_823, 400_000_418, 3433),
    "esc50/ws45": ("wsnet_esc50_ws45", WS, 376_871, 390_591_906, 0),
    "esc50/ws45_8bit": ("wsnet_esc50_ws45", WS, 376_871, 390_591_906, 0),
    "esc50/ws45_learned": ("wsnet_esc50_ws45", {}, 376_871, 390_591_906, 3433),
    "esc50/ws25_learned_shrink_2": ("wsnet_esc50_ws25", {"shrink": 2.0}, 271_340 + 80_399, 400_000_418, 3433),
    "esc50/ws25_learned_shrink_3_16": ("wsnet_esc50_ws25", {"shrink": 3.16}, 171_792 + 80_399, 400_000_418, 3433),
    "esc50/ws45_learned_shrink_3_16": ("wsnet_esc50_ws45", {"shrink": 3.16}, 93_904 + 80_399, 390_591_906, 3433),
    "imagenet/efficientnet_b1": ("epitome_efficientnet_b1", {}, 5_463_496, 327_226_336, 0),
    "imagenet/efficientnet_b0": ("epitome_efficientnet_b0", {}, 3_920_292, 226_581_216, 0),
    "imagenet/efficientnet_b0_small": (
        "epitome_efficientnet_b0", {"se": "grouped", "head": True}, 3_106_212, 215_936_736, 0
    ),
    "imagenet/rexnet_100": ("rexnet", {"width": 1.0}, 3_611_247, 217_466_214, 64),
    "cifar10/mobilenetv2_dense": ("mobilenetv2_cifar", {}, 2_236_682, 87_976_448, 0),
}  # fmt: skip
for m, params, flops, routing in (
    (0.75, 3_076_232, 240_412_544, 64),
    (0.7, 2_991_312, 228_796_800, 64),
    (0.5, 2_647_592, 180_050_816, 64),
    (0.35, 2_391_248, 144_309_824, 96),
    (0.18, 2_099_976, 103_204_704, 192),
):
    recipe = f"imagenet/mobilenetv2_{str(m).replace('.', '')}"
    SPEC[recipe] = ("epitome_mobilenetv2", {"multiplier": m}, params, flops, routing)
for m, params, flops in (
    (0.75, 3_053_144, 236_136_608),
    (0.5, 2_601_416, 171_498_944),
    (0.35, 2_330_329, 132_689_670),
    (0.18, 2_023_693, 88_799_635),
):
    recipe = f"imagenet/mobilenetv2_narrow_{str(m).replace('.', '')}"
    SPEC[recipe] = ("mobilenetv2_narrow", {"multiplier": m}, params, flops, 0)
for ratio, params in ((2, 2_864_872), (4, 2_544_872), (8, 2_384_872)):
    SPEC[f"imagenet/classifier_{ratio}x"] = (
        "epitome_mobilenetv2_classifier", {"multiplier": 1 / ratio}, params, 299_494_272 + 1_280_000 // ratio, ratio
    )  # fmt: skip
for m, params, flops, routing in (
    (0.75, 1_808_042, 69_446_144, 64),
    (0.5, 1_379_402, 50_915_840, 64),
    (0.35, 1_123_058, 39_933_440, 96),
    (0.18, 831_786, 27_297_792, 192),
):
    recipe = f"cifar10/mobilenetv2_{str(m).replace('.', '')}"
    SPEC[recipe] = ("epitome_mobilenetv2_cifar", {"multiplier": m}, params, flops, routing)
OURS = {
    "imagenet/mobilenetv2_a",
    "digits/conv2",
    "digits/rexnet",
    "digits/rexnet_dense",
    "digits/rexnet_narrow",
    "esc50/short/ws25",
    "esc50/short/ws25_learned",
    "esc50/short/ws25_learned_100x",
}
OURS |= {"cifar10/short/mobilenetv2_05"}  # not rows of a table, or their multipliers are not known


@functools.cache
def build(recipe):
    with torch.device("meta"):
        return FrugalCLI(["-c", str(FOLDER / f"{recipe}.yaml")], run=False)


def test_every_recipe_is_in_the_spec():
    assert SPEC.keys() | OURS == RECIPES


@pytest.mark.parametrize("recipe", SPEC)
def test_network_and_cost_are_the_specs(recipe):
    network, arguments, params, flops, routing = SPEC[recipe]
    model = build(recipe).model
    assert type(model) is Epitome
    assert (model.hparams.network, model.hparams.network_args or {}) == (network, arguments)
    report = count(model.network, model.input_size)
    assert (report.params, report.flops, report.routing_floats) == (params, flops, routing)
    layers = epitome_layers(model.network).values()
    assert {layer.quantize_bits for layer in layers} <= {8 if recipe.endswith("8bit") else None}
    assert all(layer.source == ("param" if routing else "none") for layer in layers)


RATES = {  # class, base rate, other settings, decay
    "esc50": (torch.optim.Adam, 1e-3, {"betas": (0.9, 0.999)}, 0),
    "mobilenetv2 on imagenet": (torch.optim.SGD, 0.05, {"momentum": 0.9, "nesterov": True}, 4e-5),
    "rexnet": (torch.optim.SGD, 0.5, {"momentum": 0.9, "nesterov": True}, 1e-5),
    "efficientnet": (RMSpropTF, 0.12, {"alpha": 0.9, "momentum": 0.9, "eps": 1e-3}, 1e-5),
    "cifar10": (torch.optim.SGD, 0.1, {"momentum": 0.9, "nesterov": True}, 5e-4),
}


def family(recipe):
    if "efficientnet" in recipe:
        return "efficientnet"
    if recipe == "imagenet/rexnet_100":
        return "rexnet"
    return "mobilenetv2 on imagenet" if recipe.startswith("imagenet") else recipe.split("/")[0]


@pytest.mark.parametrize("recipe", SPEC)
def test_optimiser_is_the_specs(recipe, monkeypatch):
    cli = build(recipe)
    model, (kind, rate, settings, decay) = cli.model, RATES[family(recipe)]
    epochs = cli.config.trainer.max_epochs
    monkeypatch.setattr(model, "_trainer", SimpleNamespace(fast_dev_run=False, max_epochs=epochs))
    built = model.configure_optimizers()
    optimizer = built["optimizer"] if isinstance(built, dict) else built
    assert type(optimizer) is kind
    names = {id(p): name for name, p in model.named_parameters()}
    for group in optimizer.param_groups:
        assert (group["initial_lr"] if isinstance(built, dict) else group["lr"]) == rate
        assert {key: group[key] for key in settings} == settings
        decayed = group["weight_decay"] == decay
        assert decayed or group["weight_decay"] == 0
        if decay:
            assert all((p.ndim > 1 and "positions" not in names[id(p)]) == decayed for p in group["params"])
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)
    smoothing = 0.1 if recipe.startswith("imagenet") else 0
    assert model.criterion.label_smoothing == smoothing


@pytest.mark.parametrize("recipe", [recipe for recipe in SPEC if "efficientnet" in recipe])
def test_efficientnet_trains_as_released(recipe, monkeypatch):
    cli, b1 = build(recipe), recipe.endswith("b1")
    monkeypatch.setattr(cli.model, "_trainer", SimpleNamespace(fast_dev_run=False, max_epochs=700))
    schedule = cli.model.configure_optimizers()["lr_scheduler"]["scheduler"]
    rates = [0.12 * schedule.lr_lambdas[0](epoch) for epoch in range(12)]
    every = 3 if b1 else 2
    warmup = [1e-6 + epoch * (0.12 - 1e-6) / 5 for epoch in range(5)]
    assert rates == pytest.approx([*warmup, *(0.12 * 0.97 ** (epoch // every) for epoch in range(5, 12))])
    assert cli.config.trainer.max_epochs == (700 if b1 else 650)
    assert cli.datamodule.batch_size == (256 if b1 else 4 * 236)
    (average,) = [c for c in cli.config.trainer.callbacks if c.class_path.endswith("EMAWeightAveraging")]
    assert (average.init_args.decay, average.init_args.use_buffers) == (0.9998, False)
    given = cli.config.data.init_args
    assert given.augmentation == {"color_jitter": 0.4, "interpolation": "bicubic"}
    training = repr(cli.datamodule._training[1])
    assert "interpolation=bicubic" in training
    assert re.search(
        r"ColorJitter\(brightness=\(0\.6.*, 1\.4\), contrast=\(0\.6.*, 1\.4\), saturation=\(0\.6", training
    )
    assert "Resize(size=256, interpolation=bilinear" in repr(cli.datamodule._evaluation[1])


@pytest.mark.parametrize("recipe", [recipe for recipe in SPEC if recipe.startswith("esc50")])
def test_sound_is_the_specs(recipe):
    cli = build(recipe)
    data = cli.datamodule
    assert (data.num_classes, data.input_size, data.batch_size, data.val_fold) == (50, (1, 110_250), 64, None)
    assert cli.config.trainer.max_epochs * (1600 // 64) == 100_000
    assert cli.model.schedule == "constant"
    assert cli.model.position_lr_factor == 1


def test_front_layers_are_compressed_more():
    multiplier = build("imagenet/mobilenetv2_a").model.hparams.network_args["multiplier"]
    assert len(multiplier) == 16
    assert multiplier == sorted(multiplier)
    assert multiplier[0] < multiplier[-1]


@pytest.mark.parametrize("recipe", ["esc50/short/ws25", "esc50/short/ws25_learned"])
def test_the_short_comparison_differs_in_offsets_alone(recipe):
    cli = build(recipe)
    data = cli.datamodule
    assert (data.num_classes, data.input_size, data.batch_size, data.test_crops) == (10, (1, 44_100), 16, 10)
    assert (cli.config.trainer.max_epochs, cli.model.schedule) == (50, "cosine")
    learns = any(name.endswith("positions") for name, _ in cli.model.named_parameters())
    assert learns == recipe.endswith("learned")
