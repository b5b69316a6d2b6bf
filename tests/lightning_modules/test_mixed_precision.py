"""Mixed precision: what is chosen in 16 bits is what 32 choose, losses fall, and the scaler of gradients is kept.

float16 with a scaler runs on CPU here, through a plugin, and on a GPU as `--trainer.precision 16-mixed` (mark "gpu").
"""

from itertools import pairwise

import pytest
import torch
from methods import METHODS, build, build_callbacks, write_teacher
from pytorch_lightning import Callback, Trainer, seed_everything
from pytorch_lightning.plugins import MixedPrecision
from runs import Stop, result, same
from torch import nn

from callbacks import ExactResume, FiniteLoss, LastCheckpoint, TrainingCurves
from datamodules import Digits
from lightning_modules import Biprop, Classifier, ExpertBinary
from networks.biprop import subnet_layers
from networks.epitome import EpitomeConv1d, EpitomeConv2d
from networks.expert_binary import expert_layers

GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
DEVICES = ["cpu", pytest.param("cuda", marks=GPU)]


def bfloat16():
    return torch.autocast("cpu", torch.bfloat16)


def fit(folder, module, *callbacks, resume=False, **options):
    given = dict(max_epochs=2, limit_train_batches=8, limit_val_batches=1, num_sanity_val_steps=0, accelerator="cpu")
    trainer = Trainer(
        default_root_dir=folder, callbacks=list(callbacks), enable_progress_bar=False, enable_model_summary=False,
        logger=False, **{**given, **options},
    )  # fmt: skip
    path = folder / "last.ckpt" if resume else None
    stopped = any(isinstance(callback, Stop) for callback in callbacks)
    with pytest.raises(SystemExit) if stopped else torch.enable_grad():
        trainer.fit(module, datamodule=Digits(16), ckpt_path=path, weights_only=True)
    return trainer


def halves(device, scale=2.0**16):
    """Options of a trainer that computes in float16 and scales the loss."""
    scaler = torch.amp.GradScaler(device, init_scale=scale)
    return {"accelerator": "gpu" if device == "cuda" else "cpu", "plugins": MixedPrecision("16-mixed", device, scaler)}


@pytest.mark.parametrize("selection", ["layer", "global"])
def test_masks_gains_and_weights_of_a_ticket_are_those_of_float32(selection):
    """Scores that bfloat16 cannot tell apart lie on both sides of the cut."""
    torch.manual_seed(0)
    arguments = dict(network_args={"width": 0.1}, keep_fraction=0.3, selection=selection)
    layers = subnet_layers(Biprop("conv2", 10, (1, 8, 8), **arguments).network).values()
    for layer in layers:
        layer.scores.data.mul_(1e-3).add_(1)
    before = [(layer.mask(), layer.gain(), layer.effective_weight()) for layer in layers]
    with bfloat16():
        under = [(layer.mask(), layer.gain(), layer.effective_weight()) for layer in layers]
    assert same(before, under)
    assert {value.dtype for _, *values in under for value in values} == {torch.float32}
    assert any(not same(layer.mask(), layer.bfloat16().mask()) for layer in layers)


def test_a_ticket_that_is_trained_in_bfloat16_has_gradients_of_float32(tmp_path):
    """dL/dS = G W sign(S) in the dtype of scores, from a convolution in bfloat16."""
    torch.manual_seed(0)
    module = Biprop("conv2", 10, (1, 8, 8), {"width": 0.1})
    inputs, targets = torch.randn(16, 1, 8, 8), torch.arange(16) % 10
    found = []
    for precise in (True, False):
        module.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=not precise):
            loss = nn.functional.cross_entropy(module(inputs), targets)
        loss.backward()
        found.append([layer.scores.grad for layer in subnet_layers(module.network).values()])
    for exact, rounded in zip(*found, strict=True):
        assert rounded.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(exact.flatten(), rounded.flatten(), 0) > 0.98
        assert not same(exact, rounded)


@pytest.mark.parametrize("routing", ["winner", "mixture"])
def test_gates_have_logits_of_float32_and_choose_the_same(routing):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 10))
    (layer,) = expert_layers(ExpertBinary(net, 10, (1, 8, 8), routing=routing).network).values()
    seen = []
    layer.gate.register_forward_hook(lambda gate, args, phi: seen.append((*args, phi)))
    layer.gate.weight.data.mul_(1e-4).add_(1)  # nearly ties
    layer.gate.bias.data.zero_()
    x = torch.randn(64, 8, 6, 6) + 2 * torch.randn(64, 8, 1, 1)
    layer.train()(x)
    with bfloat16():
        layer(x)
    (average, phi), (average_under, phi_under) = seen
    assert average_under.dtype == phi_under.dtype == torch.float32
    assert same((average, phi), (average_under, phi_under))
    hasty = nn.functional.linear(average.bfloat16(), layer.gate.weight.bfloat16()).argmax(1)
    assert not same(phi.argmax(1), hasty)


@pytest.mark.parametrize(
    "make",
    [
        lambda: EpitomeConv2d(1100, 2, 1, multiplier=0.5, bias=False, execution="materialised"),
        lambda: EpitomeConv1d(2, 600, 2, sampling_stride=1, bias=False),
    ],
    ids=["2-D", "1-D"],
)
def test_a_fractional_position_near_500_survives(make):
    """bfloat16 has no numbers between 500 and 502. Blend, weight and the gradient of positions are those of float32."""
    torch.manual_seed(0)
    layer = make()
    two = isinstance(layer, EpitomeConv2d)
    layer.positions.data.uniform_(500, 501) if two else layer.positions.data.uniform_(-0.9, 0.9)  # starts are 0 to 599
    weights, gradients = [], []
    x = torch.randn(4, 1100, 1, 1) if two else torch.randn(4, 2, 5)
    for precise in (True, False):
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=not precise):
            weights.append(layer.weight.detach())
            layer(x).float().square().sum().backward()
        gradients.append(layer.positions.grad)
    assert same(*weights)
    assert weights[1].dtype == gradients[1].dtype == torch.float32
    assert nn.functional.cosine_similarity(*gradients, 0) > 0.99
    layer.positions.data.add_(0.25)
    assert not torch.allclose(layer.weight, weights[0], atol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_in_bfloat16(tmp_path, monkeypatch, name):
    """The same two batches over and over. Trained numbers and their optimiser stay in float32."""
    monkeypatch.chdir(tmp_path)
    write_teacher(tmp_path)
    seed_everything(0)
    curves, module = TrainingCurves(), build(name, **{"keep_fraction": 0.5} if "global" in name else {})
    monkeypatch.setattr("callbacks.curves.draw", lambda *args: None)
    dtypes = set()
    module.network.register_forward_hook(lambda net, args, logits: dtypes.add(logits.dtype))
    options = dict(precision="bf16-mixed", overfit_batches=2, max_epochs=10)
    trainer = fit(tmp_path, module, *build_callbacks(name), curves, **options)
    assert torch.bfloat16 in dtypes
    losses = [row["train/loss"] for row in curves.history]
    assert losses[-1] < losses[0]
    (optimizer,) = trainer.optimizers
    states = [value for state in optimizer.state.values() for value in state.values() if hasattr(value, "dtype")]
    assert {value.dtype for value in (*module.parameters(), *states)} == {torch.float32}


class Watch(Callback):
    """Scale and weights after each step."""

    def __init__(self):
        self.scales, self.weights = [], []

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.scales.append(trainer.precision_plugin.scaler.get_scale())
        named = pl_module.named_parameters()
        self.weights.append({name: p.detach().cpu().clone() for name, p in named if p.requires_grad})


@pytest.mark.parametrize("device", DEVICES)
def test_steps_that_overflow_are_left_out(tmp_path, device):
    """Scaled by 2^40 gradients overflow; each such step halves the scale and changes nothing, and the run goes on."""
    torch.manual_seed(0)
    watch, module = Watch(), Biprop("conv2", 10, (1, 8, 8), {"width": 0.1})
    start = {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}
    fit(tmp_path, module, watch, FiniteLoss(), limit_train_batches=40, max_epochs=1, **halves(device, 2.0**40))
    scales = [2.0**40, *watch.scales]
    overflown = [after < before for before, after in pairwise(scales)]
    assert overflown[0]
    assert not overflown[-1]
    for skipped, before, after in zip(overflown, [start, *watch.weights[:-1]], watch.weights, strict=True):
        assert same(before, after) == skipped


@pytest.mark.parametrize("device", DEVICES)
def test_scores_of_small_gradients_learn(device):
    """Gradients below 6e-8, float16's least number: without a scale none is left, with it they are those of float32."""
    torch.manual_seed(0)
    module = Biprop("conv2", 10, (1, 8, 8), {"width": 0.1}).to(device)
    inputs, targets = torch.randn(16, 1, 8, 8, device=device), torch.arange(16, device=device) % 10
    found = {}
    for kind, scale in (("exact", 1.0), ("unscaled", 1.0), ("scaled", 2.0**20)):
        module.zero_grad()
        with torch.autocast(device, torch.float16, enabled=kind != "exact"):
            logits = module(inputs)
        loss = 1e-8 * nn.functional.cross_entropy(logits.float(), targets)
        (scale * loss).backward()
        layers = subnet_layers(module.network).values()
        found[kind] = torch.cat([layer.scores.grad.flatten() / scale for layer in layers])
    assert found["exact"].abs().max() < 6e-8
    assert not found["unscaled"].any()
    assert (found["scaled"] != 0).float().mean() > 0.9 * (found["exact"] != 0).float().mean()
    scaled, exact = (found[kind] / found[kind].norm() for kind in ("scaled", "exact"))
    assert scaled @ exact > 0.99


@pytest.mark.parametrize("device", DEVICES)
def test_a_resumed_run_has_the_scale_that_it_had(tmp_path, monkeypatch, device):
    """Stopped after a scale was halved and while it is counted when to double it: on CPU the result is the same."""
    monkeypatch.setattr("callbacks.curves.draw", lambda *args: None)

    def run(folder, *stop, resume=False):
        seed_everything(99 if resume else 3)
        callbacks = [ExactResume(), TrainingCurves(), LastCheckpoint(folder), *stop]
        scale = 1.0 if resume else 2.0**30  # that of the checkpoint comes instead
        module = Classifier("conv2", 10, (1, 8, 8), {"width": 0.1})
        fit(folder, module, *callbacks, resume=resume, limit_train_batches=6, **halves(device, scale))
        return result(folder / "last.ckpt")

    whole = run(tmp_path / "whole")
    saved = run(tmp_path / "parts", Stop(4))["MixedPrecision"]
    assert saved["scale"] < 2.0**30
    parts = run(tmp_path / "parts", resume=True)
    assert parts["MixedPrecision"] == whole["MixedPrecision"]
    assert saved["_growth_tracker"] < whole["MixedPrecision"]["_growth_tracker"]
    if device == "cpu":
        assert same(parts, whole)
