"""Every method on networks of every kind of timm's, as docs/any_network.md has it: it works, or says why not."""

import math
import re
from pathlib import Path

import pytest
import torch
import yaml
from pytorch_lightning import Callback, Trainer
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

import networks
from lightning_modules import Biprop, Epitome, ExpertBinary
from networks import InputError
from networks.biprop import subnet_layers
from networks.epitome import epitome_layers
from networks.expert_binary import expert_layers

uncached_count = networks.complexity.count
PAGE = Path(__file__).parents[2] / "docs/any_network.md"
METHODS = {
    "biprop": (Biprop, networks.biprop.apply, {}),
    "expert binary": (ExpertBinary, networks.expert_binary.apply, {"num_experts": 2}),
    "epitome": (Epitome, networks.epitome.apply, {}),
}
FAMILIES = {  # of which the page has a row each
    "ResNet", "WideResNet", "VGG", "MobileNetV2", "MobileNetV3", "EfficientNet", "ReXNet", "RegNet", "ConvNeXt",
    "GhostNet", "MixNet", "DenseNet", "Inception", "ViT", "NF-RegNet",
}  # fmt: skip


def rows():
    """Of each row of the page's table: family; network, arguments and side of the image; a cell for each method."""
    lines = re.findall(r"^\| (?!family|---)(.+) \|$", PAGE.read_text(), re.MULTILINE)
    table = [line.split(" | ") for line in lines if line.count(" | ") == 5]
    for family, network, side, *cells in table:
        name, _, args = network.strip("`").partition(" ")
        yield family, (name, yaml.safe_load(args or "{}"), int(side)), dict(zip(METHODS, cells, strict=True))


PAIRS = [
    pytest.param(case, method, cell, id=f"{case[0]}{'-changed' if 'ls_init_value' in case[1] else ''}-{method}")
    for _, case, cells in rows()
    for method, cell in cells.items()
]


def test_the_page_has_every_family():
    assert {family for family, _, _ in rows()} == FAMILIES


class Gradients(Callback):
    """Notes which parameters had a gradient that is not zero, and refuses one that is missing or not finite."""

    def __init__(self):
        self.reached = set()

    def on_after_backward(self, trainer, module):
        for name, parameter in module.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, name
            if parameter.requires_grad:
                assert parameter.grad.isfinite().all(), name
                if parameter.grad.any():
                    self.reached.add(name)


def trainer_of_three_steps(*callbacks):
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    return Trainer(accelerator="cpu", max_steps=3, callbacks=list(callbacks), **quiet)


COUNTED = {}


def count(network, size):
    """complexity.count, once for all that are built alike: it takes longer than to train three steps."""
    key = repr(network), size
    if key not in COUNTED:
        COUNTED[key] = uncached_count(network, size)
    return COUNTED[key]


def adam(parameters):
    return torch.optim.Adam(parameters, 1e-3, eps=1e-20)  # what has any gradient moves


@pytest.mark.parametrize(("case", "method", "cell"), PAIRS)
@pytest.mark.filterwarnings("ignore:.*left special layers")
def test_it_works_or_says_why_not(case, method, cell, tmp_path, monkeypatch):
    (name, args, side), (module_class, apply, options) = case, METHODS[method]
    size = (3, side, side)
    monkeypatch.setattr(networks.complexity, "count", count)
    torch.manual_seed(0)
    given = dict(network=name, network_args=args, num_classes=6, input_size=size, schedule="constant", **options)
    if cell.startswith("refused"):
        with pytest.raises(InputError, match=re.escape(cell.removeprefix("refused: "))) as error:
            module_class(**given, optimizer=adam)
        assert "\n" not in str(error.value)
        return
    module = module_class(**given, optimizer=adam)
    dense = networks.create(name, size, 6, args)  # not on the meta device: torch 2.4 has no unique there, for RegNet
    replaced = RELATIONS[method](module.network, dense, size)
    weighted = [layer for layer in dense.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert cell == f"{len(replaced)} of {len(weighted)}"

    # Three steps of training.
    before = {key: value.clone() for key, value in module.state_dict().items()}
    trained = {key for key, parameter in module.named_parameters() if parameter.requires_grad}
    frozen = dict(module.named_parameters()).keys() - trained | {key for key in before if key.endswith("sign_seed")}
    everything = {key for key, _ in module.named_parameters()}
    scores = {f"network.{name}.scores" for name in replaced}
    assert trained == (scores if method == "biprop" else everything)
    batches = [(torch.randn(4, *size), torch.randperm(6)[:4]) for _ in range(3)]
    gradients = Gradients()
    trainer = trainer_of_three_steps(gradients)
    trainer.fit(module, DataLoader(batches, batch_size=None))
    assert gradients.reached == trained
    after = module.state_dict()
    assert {key for key in trained | frozen if torch.equal(after[key], before[key])} == frozen

    # A file, from which a network that was drawn otherwise computes the same.
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    other = networks.create(name, size, 6, args)
    assert apply(other, **options) == list(replaced)
    other.load_state_dict({key.removeprefix("network."): value for key, value in state.items() if "metrics" not in key})
    with torch.no_grad():
        logits = module.eval()(batches[0][0])
        assert torch.equal(other.eval()(batches[0][0]), logits)
    assert logits.isfinite().all()
    assert logits.std(0).min() > 0


def counted(network, size):
    """The report, of which nothing is unknown, and its rows by name."""
    report = count(network, size)
    assert report.output_size == (6,)
    assert not [row.name for row in report.layers if row.uncounted]
    return report, {row.name: row for row in report.layers}


def of_tickets(network, dense, size):
    """Of each layer n - floor((1 - k) n) weights are kept; biases and what batch normalisation trains are gone."""
    (report, rows), (whole, _) = counted(network, size), counted(dense, size)
    layers = subnet_layers(network)
    numbers = {name: layer.weight.numel() for name, layer in layers.items()}
    kept = {name: n - math.floor(0.5 * n) for name, n in numbers.items()}
    assert {name: rows[name].params for name in layers} == kept
    assert {name: int(layer.mask().sum()) for name, layer in layers.items()} == kept
    assert all(rows[name].kept_flops * n == rows[name].flops * kept[name] for name, n in numbers.items())
    biases = [bias.numel() for name in layers if (bias := dense.get_submodule(name).bias) is not None]
    norms = [layer for layer in dense.modules() if isinstance(layer, _BatchNorm)]
    affine = [parameter.numel() for layer in norms for parameter in layer.parameters()]
    assert report.dense_params == whole.params - sum(biases) - sum(affine)
    assert report.params == report.dense_params - sum(numbers.values()) + sum(kept.values())
    assert report.binary_params == sum(kept.values())
    assert report.flops == whole.flops
    return layers


def of_experts(network, dense, size):
    """What the replaced convolutions multiply is binary, all else is real as before; two experts are stored."""
    (report, _), (whole, rows) = counted(network, size), counted(dense, size)
    replaced = [name.removesuffix(".1") for name in expert_layers(network)]
    assert report.bops == sum(rows[name].flops for name in replaced)
    assert report.flops == whole.flops - report.bops
    assert report.binary_params == 2 * sum(dense.get_submodule(name).weight.numel() for name in replaced)
    assert not [name for name in replaced if re.search(r"(^|\.)(se|attn)\.|downsample", name)]
    return replaced


def of_epitomes(network, dense, size):
    """What epitomes leave out is all that is saved, stored and multiplied; squeeze and excitation is as it was."""
    (report, own), (whole, rows) = counted(network, size), counted(dense, size)
    layers = epitome_layers(network)
    assert report.dense_params == whole.params
    assert whole.params - report.params == sum(
        math.prod(layer.size) - layer.epitome.numel() for layer in layers.values()
    )
    for name, layer in layers.items():
        assert layer.epitome.shape[1] == math.ceil(layer.size[1] / 2)
        assert own[name].flops * math.prod(layer.size) == rows[name].flops * layer.epitome.numel()
    unchanged = rows.keys() - layers.keys()
    assert {name: own[name].flops for name in unchanged} == {name: rows[name].flops for name in unchanged}
    assert not [name for name in layers if re.search(r"(^|\.)(se|attn\.fc\d)($|\.)", name)]
    return layers


RELATIONS = {"biprop": of_tickets, "expert binary": of_experts, "epitome": of_epitomes}
