"""How epitomes are trained: which parameters decay and how fast, what is logged, and averaged weights."""

import csv
import math

import pytest
import torch
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.callbacks import EMAWeightAveraging
from pytorch_lightning.loggers import CSVLogger
from runs import Stop
from torch import nn

from callbacks import ExactResume, LastCheckpoint, LayerMonitor, SamplingMap
from datamodules import Digits
from lightning_modules import Classifier, Epitome
from lightning_modules.initial import rebuild
from networks import InputError
from networks.epitome import EpitomeConv1d, EpitomeConv2d, Rule

RULES = [Rule(r"^convs\.2$", "out", 0.5), Rule(r"^linear\.0$", "in", (0.25,))]
SIZE = (1, 8, 8)
SGD = torch.optim.SGD


def make(network="conv2", **options):
    seed_everything(0)
    given = dict(network_args={"width": 0.1, "img_size": 8}, rules=RULES, optimizer=lambda p: SGD(p, 0.1, 0.9))
    return Epitome(network, 10, SIZE, **{**given, **options})


def fit(folder, module, *callbacks, epochs=2, resume=False, logger=True):
    trainer = Trainer(
        max_epochs=epochs, default_root_dir=folder, logger=CSVLogger(folder, "", "") if logger else False,
        callbacks=[ExactResume(), LastCheckpoint(folder / "checkpoints"), *callbacks],
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    path = folder / "checkpoints/last.ckpt" if resume else None
    stopped = any(isinstance(callback, Stop) for callback in callbacks)
    with pytest.raises(SystemExit) if stopped else torch.enable_grad():
        trainer.fit(module, Digits(), ckpt_path=path, weights_only=True)
    return trainer


def test_weights_decay_and_nothing_else_does():
    module = make(network="epitome_mobilenetv2", network_args={}, rules=None)
    decayed = {name for name, p in module.named_parameters() if module.decays(name, p)}
    assert decayed == {name for name, p in module.named_parameters() if p.ndim > 1}
    assert not any("positions" in name or "bn" in name or "bias" in name for name in decayed)
    assert any("epitome" in name for name in decayed)
    layer = EpitomeConv2d(8, 8, 3, multiplier=0.25, epitome_size=(4, 4))
    assert layer.positions.ndim == 2
    assert not module.decays("network.layer.positions", layer.positions)


def test_positions_have_a_rate_of_their_own(tmp_path):
    module = make(position_lr_factor=10.0, optimizer=lambda p: SGD(p, 0.02, weight_decay=0.5))
    trainer = fit(tmp_path, module, epochs=1)
    names = {id(p): name for name, p in module.named_parameters()}
    groups = [
        ({names[id(p)].rpartition(".")[2] for p in group["params"]}, group["initial_lr"], group["weight_decay"])
        for group in trainer.optimizers[0].param_groups
    ]
    assert groups == [({"weight", "epitome"}, 0.02, 0.5), ({"positions"}, pytest.approx(0.2), 0)]


def test_a_factor_of_one_makes_no_group_of_its_own(tmp_path):
    trainer = fit(tmp_path, make(), epochs=1)
    assert len(trainer.optimizers[0].param_groups) == 2


def test_layers_and_pictures(tmp_path):
    module = make(position_lr_factor=10.0)
    trainer = fit(tmp_path, module, epochs=3)
    monitor = next(c for c in trainer.callbacks if isinstance(c, LayerMonitor))
    seen = next(c for c in trainer.callbacks if isinstance(c, SamplingMap))
    layers = module.layers
    assert list(layers) == ["convs.2", "linear.0"]
    last = monitor.history[-1]
    for name, layer in layers.items():
        assert last["offset"][name] == pytest.approx(layer.positions.abs().mean().item()) != 0
        assert last["offset_max"][name] == pytest.approx(layer.positions.abs().max().item())
        assert last["coverage"][name] == 1
        assert seen.snapshots[0][name].eq(0).all()
        assert seen.snapshots[3][name].equal(layer.positions.detach())
    assert list(seen.snapshots) == [0, 1, 2, 3]
    for picture in ("layers.png", "epitomes.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = [row["layers/offset/convs.2"] for row in csv.DictReader(file) if row["layers/offset/convs.2"]]
    assert [float(row) for row in rows] == pytest.approx([h["offset"]["convs.2"] for h in monitor.history])


def test_fixed_positions_have_no_offset():
    module = make(positions="none")
    assert set(module.layer_metrics()) == {"coverage"}
    assert {offsets for offsets, _ in module.sampling().values()} == {None}


def test_unread_entries_are_told():
    net = nn.Sequential(
        nn.Flatten(), nn.Unflatten(1, (1, 64)), EpitomeConv1d(1, 3, 2, sampling_stride=1),
        nn.AdaptiveAvgPool1d(10), nn.Flatten(), nn.Linear(30, 10),
    )  # fmt: skip
    module = Epitome(net, 10, SIZE)
    layer = module.layers["2"]
    assert layer.epitome.shape == (1, 4)
    assert module.layer_metrics()["coverage"]["2"] == 1
    layer.positions.data.copy_(torch.tensor([1.0, 0.0, -1.0]))  # all filters read entries 1 and 2
    assert module.layer_metrics()["coverage"]["2"] == 0.5
    assert module.sampling()["2"][1].tolist() == [0, 3, 3, 0]


def test_a_run_with_averaged_weights_resumes_exactly(tmp_path):
    """Stopped in the middle of the second of three epochs; buffers of the average are copies."""

    def ema():
        return EMAWeightAveraging(decay=0.9, use_buffers=False)

    def module():
        net = nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(),
            EpitomeConv2d(6, 8, 3, multiplier=0.5, positions="feature"), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Flatten(), nn.Dropout(0.2), nn.Linear(8 * 16, 10),
        )  # fmt: skip
        return Epitome(net, 10, SIZE, optimizer=lambda p: SGD(p, 0.05, 0.9))

    def state(folder):
        return torch.load(folder / "checkpoints/last.ckpt", weights_only=True)

    seed_everything(0)
    fit(tmp_path / "straight", module(), ema(), epochs=3)
    seed_everything(0)
    fit(tmp_path / "parts", module(), ema(), Stop(50), epochs=3)
    seed_everything(9)
    fit(tmp_path / "parts", module(), ema(), epochs=3, resume=True)
    straight, parts = state(tmp_path / "straight"), state(tmp_path / "parts")
    for kind in ("state_dict", "current_model_state"):
        assert straight[kind].keys() == parts[kind].keys()
        for name, value in straight[kind].items():
            assert value.equal(parts[kind][name]), name
    averaged, current = straight["state_dict"], straight["current_model_state"]
    buffers = [name for name in averaged if "running_" in name or "routing_map" in name or "map_updates" in name]
    assert len(buffers) == 2 * 3 + 2
    assert all(averaged[name].equal(current[name]) for name in buffers)
    assert not averaged["network.3.epitome"].equal(current["network.3.epitome"])


def test_checkpoints_hold_rules_as_plain_types_and_are_rebuilt(tmp_path):
    module = make()
    fit(tmp_path, module, epochs=1)
    path = tmp_path / "checkpoints/last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["hyper_parameters"]["rules"][0] == {"pattern": r"^convs\.2$", "share": "out", "multiplier": 0.5}
    again = rebuild(path, checkpoint["method"], checkpoint["hyper_parameters"], "give another")
    again.load_state_dict(checkpoint["state_dict"])
    assert again.layers["linear.0"].epitome.shape == module.layers["linear.0"].epitome.shape


@pytest.mark.parametrize(("option", "value"), [("rules", 0.5), ("positions", "none")])
def test_refuses_a_checkpoint_that_was_trained_otherwise(option, value):
    trained = make()
    checkpoint = {"state_dict": trained.state_dict(), "hyper_parameters": dict(trained.hparams)}
    trained.on_load_checkpoint(checkpoint)
    with pytest.raises(InputError, match=f"trained with {option}="):
        make(**{option: value}).on_load_checkpoint(checkpoint)


def test_quantised_epitomes_may_score_what_was_trained_without():
    trained, quantized = make(), make(quantize_bits=8)
    checkpoint = {"state_dict": trained.state_dict(), "hyper_parameters": dict(trained.hparams)}
    quantized.on_load_checkpoint(checkpoint)
    quantized.load_state_dict(checkpoint["state_dict"])
    assert len(quantized.layers["convs.2"].weight.unique()) <= 256
    x = torch.randn(4, *SIZE)
    torch.testing.assert_close(quantized(x), trained(x), rtol=0.1, atol=0.05)
    assert not quantized(x).equal(trained(x))


def test_several_crops_are_averaged_as_probabilities():
    module = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), 10, SIZE).eval()
    x = torch.randn(3, 4, *SIZE)
    outputs = module._outputs(x)
    mean = torch.stack([module(x[:, i]).softmax(-1) for i in range(4)]).mean(0)
    torch.testing.assert_close(outputs.softmax(-1), mean)
    torch.testing.assert_close(outputs.exp(), mean)
    assert module._outputs(x[:0]).shape == (0, 10)
    assert module._outputs(x[:, 0]).equal(module(x[:, 0]))
    sound = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(12, 10)), 10, (1, 12)).eval()
    crops = torch.randn(3, 4, 1, 12)
    mean = torch.stack([sound(crops[:, i]).softmax(-1) for i in range(4)]).mean(0)
    torch.testing.assert_close(sound._outputs(crops).softmax(-1), mean)


def test_optimisers_that_choose_their_rate_are_left_alone(tmp_path):
    from timm.optim import Adafactor

    trainer = fit(tmp_path, make(optimizer=lambda p: Adafactor(p), schedule="constant"), epochs=1)
    assert trainer.global_step == 39


def test_without_rules_a_network_stays_dense():
    module = make(rules=[])
    assert not module.layers
    assert module.configure_callbacks() == []
    assert type(module.network.convs[2]) is nn.Conv2d


def test_a_number_is_for_all_inner_layers():
    assert list(make(rules=0.5).layers) == list(make(rules=None).layers) == ["convs.2", "linear.0", "linear.2"]


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (dict(rules=0.0), "multiplier=0.0"),
        (dict(rules=[Rule("nowhere")]), "no such"),
        (dict(rules=[Rule(r"linear\.4", "out")]), "same scores"),
        (dict(position_lr_factor=-1.0), "position_lr_factor=-1.0"),
        (dict(position_lr_factor=math.nan), "position_lr_factor=nan"),
        (dict(network="epitome_mobilenetv2", network_args={}), "has its epitomes already: drop model.rules"),
        (dict(network="epitome_mobilenetv2", network_args={}, rules=None, positions="none"), "drop model.positions"),
        (dict(quantize_bits=0), "quantize_bits=0"),
    ],
)
def test_what_cannot_be_is_refused(options, what):
    with pytest.raises(InputError, match=what):
        make(**options)
