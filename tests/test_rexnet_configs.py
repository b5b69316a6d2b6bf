"""ReXNet's recipes are the spec's: networks, costs, optimiser, data; studies parse and say what they are."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from commands.train import FrugalCLI
from networks import complexity
from networks.rexnet import space
from studies.rank import RankStudy
from studies.search_options import SearchCLI

ROOT = Path(__file__).parent.parent
REXNET = ROOT / "configs/rexnet"
TRAINED = sorted(
    path for room in ("imagenet", "cifar100", "fine_grained") for path in (REXNET / room).glob("*.yaml")
    if path.stem != "base"
)  # fmt: skip
SEARCHES = sorted(path for path in (REXNET / "search").rglob("*.yaml") if path.stem != "base")
RANKS = sorted((REXNET / "rank").glob("*.yaml"))
AUGMENTED = {"auto_augment": "rand-m9-mstd0.5", "re_prob": 0.2, "re_mode": "pixel", "interpolation": "random"}


def name(path):
    return path.relative_to(REXNET).with_suffix("").as_posix()


@pytest.fixture
def no_weights(monkeypatch):
    """timm does not fetch any."""
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *args, **options: None)


def build(path):
    with torch.device("meta"):
        return FrugalCLI(["-c", str(path)], run=False)


IMAGENET = {  # parameters and multiply-adds in units of 10,000 (spec 4.1), 8.3's for the baselines
    "rexnet_090": (4_091_257, 34769), "rexnet_100": (4_796_873, 39837), "rexnet_110": (5_642_328, 48055),
    "rexnet_120": (6_568_698, 56699), "rexnet_130": (7_557_091, 66223), "rexnet_140": (8_606_611, 76231),
    "rexnet_150": (9_728_593, 87583), "rexnet_200": (16_366_620, 152885), "rexnet_220": (19_485_308, 184251),
    "rexnet_300": (34_708_792, 339598), "lite_100": (4_740_056, 40681), "lite_130": (6_747_960, 64645),
    "lite_150": (8_332_296, 83635), "lite_200": (12_966_200, 149825), "plain": (3_399_240, 56467),
    "rexnet_100_relu6": (4_796_873, 39837), "rexnet_100_leaky_relu": (4_796_873, 39837),
    "rexnet_100_softplus": (4_796_873, 39837), "rexnet_100_elu": (4_796_873, 39837),
    "rexnet_100_dagger": (4_796_873, 39837), "mobilenetv1": (4_231_976, None), "mobilenetv2": (3_504_872, 30077),
}  # fmt: skip


def test_every_row_has_a_recipe():
    assert {path.stem for path in TRAINED if path.parent.name == "imagenet"} == IMAGENET.keys()
    assert {path.stem for path in SEARCHES if path.parent.name == "search"} - {"digits"} == {
        f"budget_{budget}" if len(budget) == 1 else budget for budget in space.BUDGETS
    }


@pytest.mark.parametrize("recipe", IMAGENET)
def test_imagenet(recipe):
    cli = build(REXNET / f"imagenet/{recipe}.yaml")
    params, macs = IMAGENET[recipe]
    report = complexity.count(cli.model.network, (3, 224, 224))
    assert report.params == params
    assert macs in (None, round(report.flops / 1e4))
    assert f"{params:,}" in (REXNET / f"imagenet/{recipe}.yaml").read_text() or recipe.startswith("rexnet_100_")
    data, plain = cli.config.data.init_args, recipe.endswith("dagger") or recipe.startswith("mobilenet")
    assert data.augmentation == ({"interpolation": "random"} if plain else AUGMENTED)
    assert (cli.datamodule.batch_size, data.interpolation, cli.config.trainer.max_epochs) == (512, "bicubic", 400)
    assert (cli.model.criterion.label_smoothing, cli.model.warmup_epochs) == (0.1, 5)


def test_augmentation_is_in_the_transforms():
    datamodule = build(REXNET / "imagenet/rexnet_100.yaml").datamodule
    training, evaluation = repr(datamodule._training[1]), repr(datamodule._evaluation[1])
    assert re.search(r"RandAugment\(n=2", training)
    assert re.search(r"RandomErasing\(p=0.2, mode=pixel", training)
    assert "Resize(size=256, interpolation=bicubic" in evaluation


@pytest.mark.parametrize("path", TRAINED, ids=name)
def test_optimiser(path, monkeypatch, no_weights):
    cli = build(path)
    rate, decay = {"imagenet": (0.5, 1e-5), "cifar100": (0.1, 5e-4), "fine_grained": (0.03, 1e-5)}[path.parent.name]
    epochs = {"imagenet": 400, "cifar100": 30, "fine_grained": 50 if path.stem == "food101" else 100}[path.parent.name]
    assert cli.config.trainer.max_epochs == epochs
    monkeypatch.setattr(cli.model, "_trainer", SimpleNamespace(fast_dev_run=False, max_epochs=epochs))
    optimizer = cli.model.configure_optimizers()["optimizer"]
    assert isinstance(optimizer, torch.optim.SGD)
    for group in optimizer.param_groups:
        assert (group["initial_lr"], group["momentum"], group["nesterov"]) == (rate, 0.9, True)
        decays = {parameter.ndim > 1 for parameter in group["params"]}
        assert decays == {group["weight_decay"] == decay}
    assert "callbacks.ChannelsLast" in [callback.class_path for callback in cli.config.trainer.callbacks]


@pytest.mark.parametrize("path", [path for path in TRAINED if path.parent.name == "fine_grained"], ids=name)
def test_fine_tuning_starts_from_the_authors_weights(path, no_weights):
    cli = build(path)
    assert cli.config.model.init_args.network_args == {"pretrained": True}
    assert cli.datamodule.name == path.stem
    assert cli.model.num_classes == cli.datamodule.num_classes
    assert cli.model.network.pretrained_cfg["tag"] == "nav_in1k"


@pytest.mark.parametrize(
    ("row", "ratios", "macs", "expansion"),
    [(1, 0.22, 103e6, 20), (2, 0.22, 99e6, 6), (3, 0.8, 105e6, 6), (4, 0.8, 105e6, 6)],
)
def test_factor_analysis(row, ratios, macs, expansion):
    """Ratios of the blocks within 0.005 and multiply-adds within half a percent (spec 11.16)."""
    cli = build(REXNET / f"cifar100/factors_{row}.yaml")
    blocks = cli.model.network.features[:2]
    assert all(abs(block.in_channels / block.out_channels - ratios) < 0.005 for block in blocks)
    assert all(block.conv_exp.conv.out_channels == expansion * block.in_channels for block in blocks)
    assert abs(complexity.count(cli.model.network, (3, 32, 32)).flops / macs - 1) < 0.005
    activations = {type(block.conv_exp.bn.act).__name__ for block in blocks}
    assert activations == {"SiLU" if row == 4 else "ReLU6"}
    around = cli.model.network.stem, cli.model.network.features[-1]
    assert {type(layer.bn.act).__name__ for layer in around} == {"ReLU6"}
    assert "NuclearNorm" in [callback.class_path.split(".")[-1] for callback in cli.config.trainer.callbacks]


@pytest.mark.parametrize("budget", "abcd")
@pytest.mark.parametrize("kind", ["best", "worst"])
def test_printed_lists(budget, kind):
    channels, percent = space.PUBLISHED[budget][kind]
    path = REXNET / f"cifar100/{budget}_{kind}.yaml"
    assert f"Paper: {percent} %" in path.read_text()
    assert tuple(block.out_channels for block in build(path).model.network.features[1:-1]) == channels


@pytest.mark.parametrize("path", SEARCHES, ids=name)
def test_searches(path):
    assert path.read_text().splitlines()[1] == f"# frugal search -c {path.relative_to(ROOT).as_posix()}"
    cli = SearchCLI(["-c", str(path)])
    lists = cli.config_init.search.channel_lists(cli.around)
    assert cli.config_init.search.limits.accepts(np.array(lists), cli.around).all()
    budget = re.sub("^budget_", "", path.stem)
    if path.stem == "digits":
        assert len(lists) == 20
    elif path.parent.name == "search":
        assert cli.config_init.search.budget == budget
        assert len(lists) == 200 + 2 * (budget in space.PUBLISHED)
        assert (cli.model.num_classes, cli.datamodule.batch_size, cli.config.trainer.max_epochs) == (100, 128, 30)


@pytest.mark.parametrize("path", RANKS, ids=name)
def test_rank_presets(path):
    assert path.read_text().splitlines()[1] == f"# frugal rank -c {path.relative_to(ROOT).as_posix()}"
    study = RankStudy(**yaml.safe_load(path.read_text())["study"])
    presets = {
        "default": RankStudy(),
        "gaussian_train_bn": RankStudy(x_dist="gaussian", bn_mode="train"),
        "t6": RankStudy(t=6),
    }
    assert study == presets[path.stem]
