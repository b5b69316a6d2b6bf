"""The rank study: identities, the presets, and what the paper's figure shows (specs/rexnet.md 6.3)."""

import json
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import frugal
from networks import InputError
from studies.rank import ACTIVATIONS, PANELS, RATIOS, RankStudy, _features, _weight, measure, ranks

LINEAR, RELU6, SILU = (list(ACTIVATIONS).index(name) for name in ("Linear", "ReLU6", "SiLU"))
CONV1X1, CONV3X3, IB_CONV, IB_DW = range(4)


@pytest.fixture(scope="module")
def curves():
    """Of the default preset: (panels, nonlinearities, ratios)."""
    found = measure(RankStudy(networks=20))
    return np.array([[found[panel][name] for name in ACTIVATIONS] for panel in PANELS])


def test_linear_layers_have_the_rank_of_their_inputs():
    """Exactly d_in / d_out below ratio 1; there a matrix of random weights may lose one by rounding."""
    study = RankStudy(d_out_range=(40, 40))
    for index in range(3):
        found = ranks(study, index)[:, LINEAR]
        assert np.array_equal(found[:, :-1], np.tile(np.round(np.array(RATIOS[:-1]) * 40) / 40, (4, 1)))
        assert (found[:, -1] >= 39 / 40).all()


def test_layers_are_torchs():
    """Batch normalisation as F.batch_norm, and ranks as torch's matrix_rank, of what a 1x1 layer gives."""
    study = RankStudy(bn_mode="train")
    x = torch.randn(6, 61, generator=torch.Generator().manual_seed(1))
    y = _features("conv1x1", study, x, 30, torch.Generator().manual_seed(0))
    weight = _weight(30, 6, 1, study, torch.Generator().manual_seed(0))
    expected = F.relu6(F.batch_norm((weight @ x).T, None, None, training=True))
    torch.testing.assert_close(y[RELU6], expected)
    bound = 1 / math.sqrt(6)
    assert weight.abs().max() <= bound
    assert weight.abs().max() > 0.95 * bound


def test_nonlinearities_are_those_of_their_names():
    modules = {"Linear": "Identity", "HardSwish": "Hardswish", "SoftPlus": "Softplus"}
    x = torch.linspace(-8, 8, 101)
    for name, function in ACTIVATIONS.items():
        torch.testing.assert_close(function(x), getattr(torch.nn, modules.get(name, name))()(x))


def test_inputs_are_one_more_than_half_as_many_again_as_outputs(monkeypatch):
    shapes = []

    def features(panel, study, x, d_out, generator):
        shapes.append((*x.shape, d_out))
        return torch.eye(d_out)[None].expand(len(ACTIVATIONS), -1, -1)

    monkeypatch.setattr("studies.rank._features", features)
    ranks(RankStudy(d_out_range=(21, 21)), 0)
    assert set(shapes) == {(round(ratio * 21), 32, 21) for ratio in RATIOS}  # N = floor(1.5 x 21) + 1


def test_curves_of_the_uniform_preset(curves):
    """Spec 6.3, item 2, of a 1x1 convolution at ratios 0.1 and 0.2, in another prototype."""
    prototype = {"LeakyReLU": (0.89, 0.97), "ELU": (0.95, 1), "SiLU": (0.95, 1), "SoftPlus": (0.73, 1)}
    prototype["HardSwish"] = 0.71, 1
    for name, expected in prototype.items():
        assert np.allclose(curves[CONV1X1, list(ACTIVATIONS).index(name), :2], expected, atol=0.06), name


def test_a_network_is_a_function_of_seed_and_index():
    study = RankStudy(d_out_range=(16, 40))
    assert np.array_equal(ranks(study, 3), ranks(study, 3))
    assert not np.array_equal(ranks(study, 3), ranks(study, 4))
    assert not np.array_equal(ranks(study, 3), ranks(RankStudy(d_out_range=(16, 40), seed=1), 3))


def test_what_the_figure_shows(curves):
    """Acceptance of spec 6.3: order of nonlinearities and of layers, and growth with the ratio."""
    at = {ratio: i for i, ratio in enumerate(RATIOS)}
    for panel in (CONV1X1, CONV3X3):
        assert (curves[panel, SILU, 1:-1] >= curves[panel, RELU6, 1:-1] - 0.02).all()
    assert (curves[IB_DW, SILU, :4] >= curves[IB_DW, RELU6, :4] - 0.02).all()
    nonlinear = np.delete(curves, LINEAR, 1)
    assert (np.diff(nonlinear, axis=2) > -0.05).all()
    relu6 = curves[:, RELU6, at[0.2]]
    assert relu6[CONV1X1] > relu6[IB_CONV] > relu6[IB_DW]
    assert 0.88 <= curves[CONV1X1, RELU6, at[1.0]] <= 0.98


def test_bottlenecks_of_expansion_two_are_close_to_the_paper(curves):
    """Measured earlier in another prototype: 0.04 of the printed curve in depthwise bottlenecks up to ratio 0.4."""
    assert np.allclose(curves[IB_DW, RELU6, [0, 1, 3]], [0.19, 0.37, 0.70], atol=0.05)
    assert np.allclose(curves[IB_DW, SILU, [0, 1, 3]], [0.29, 0.54, 0.83], atol=0.05)


def test_gaussian_inputs_with_training_statistics_do_not_reproduce_it():
    found = measure(RankStudy(networks=10, x_dist="gaussian", bn_mode="train", d_out_range=(16, 128)))
    flat = [found["conv1x1"][name][3:] for name in ACTIVATIONS if name != "Linear"]
    assert np.min(flat) >= 0.99


def test_with_space_a_linear_layer_is_not_on_the_identity():
    """Why the spatial size is 1x1: pooled 3x3 maps of a linear 3x3 convolution have full rank at ratio 0.2."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(40, 8, 3, 3, generator=generator)
    x = torch.randn(61, 8, 3, 3, generator=generator)
    pooled = F.conv2d(x, weight, padding=1).mean((2, 3))
    assert torch.linalg.matrix_rank(pooled) == 40


def test_a_study_needs_a_config(capsys):
    with pytest.raises(SystemExit):
        frugal.main(["rank"])
    assert "give a config with -c" in capsys.readouterr().err


def test_help_needs_none(capsys):
    for command in ("rank", "search"):
        with pytest.raises(SystemExit) as stop:
            frugal.main([command, "--help"])
        assert stop.value.code == 0
        assert f"usage: frugal {command} -c CONFIG" in capsys.readouterr().out


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/small.yaml").write_text("study: {networks: 2, d_out_range: [16, 20]}\n")
    frugal.main(["rank", "-c", "configs/small.yaml", "--study.t", "3"])
    result = json.loads((tmp_path / "results/small.json").read_text())
    assert result["study"]["networks"] == 2
    assert result["study"]["t"] == 3
    assert {name: len(values) for name, values in result["curves"]["ib_dw"].items()} == dict.fromkeys(ACTIVATIONS, 10)
    assert (tmp_path / "runs/small/rank.png").stat().st_size > 10_000
    assert "bottleneck, depthwise 3x3" in capsys.readouterr().out
    before = (tmp_path / "results/small.json").read_bytes()
    frugal.main(["rank", "-c", "configs/small.yaml"])
    assert (tmp_path / "results/small.json.1").read_bytes() == before


@pytest.mark.parametrize(
    "wrong",
    [
        {"networks": 0},
        {"d_out_range": (5, 20)},
        {"d_out_range": (30, 20)},
        {"t": 0},
        {"x_dist": "cauchy"},
        {"n_mult": math.nan},
        {"n_mult": math.inf},
        {"rtol": -1.0},
        {"rtol": math.nan},
        {"rtol": 2.0},
        {"seed": -1},
    ],
)
def test_studies_that_cannot_be(wrong):
    with pytest.raises(InputError, match=f"study.{next(iter(wrong))}|{next(iter(wrong))}"):
        RankStudy(**wrong)
