"""Two processes against one: the same gradients, metrics over each sample once, the same tickets."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from methods import METHODS

ROOT = Path(__file__).parent.parent.parent
PATHS = os.pathsep.join([str(ROOT), str(ROOT / "tests/shared")])


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What one process and two processes give."""
    found = {}
    for devices in (1, 2):
        folder = tmp_path_factory.mktemp(f"devices{devices}")
        command = [sys.executable, Path(__file__).parent / "training.py", str(devices), folder]
        env = {**os.environ, "PYTHONPATH": PATHS}
        subprocess.run(command, check=True, capture_output=True, env=env, cwd=folder, timeout=1200)
        found[devices] = torch.load(folder / "result.pt", weights_only=True)
    return found[1], found[2]


def test_gradients_and_weights_equal_one_process_on_the_joined_batch(results):
    one, two = results
    assert one["steps"] == two["steps"] == 2 * (19 // 4)
    assert one["gradients"].keys() == two["gradients"].keys() != set()
    for name, gradient in one["gradients"].items():
        assert gradient.abs().max() > 1e-4
        assert torch.allclose(two["gradients"][name], gradient, atol=1e-6, rtol=0)
    assert one["state"].keys() == two["state"].keys()
    for name, value in one["state"].items():
        assert torch.allclose(two["state"][name].float(), value.float(), atol=1e-5)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "mixup"])
def test_gradients_of_every_method_equal_one_process_on_the_joined_batch(results, name):
    """With batch normalisation in eval mode and without dropout; positions of a routing map come from equal images."""
    one, two = (result["methods"][name] for result in results)
    assert one.keys() == two.keys() != set()
    assert sum(float(gradient.abs().max()) > 1e-5 for gradient in one.values()) > len(one) / 2
    for parameter, gradient in one.items():
        assert torch.allclose(two[parameter], gradient, atol=1e-6, rtol=1e-5), parameter


def test_one_wandb_run_for_all_processes(results):
    for result in results:
        assert [name for name, holds in result["wandb"].items() if not holds] == []


def test_metrics_are_over_each_sample_once(results):
    one, two = results
    for stage in ("train", "val", "test"):
        assert one[stage].keys() == two[stage].keys() != set()
        assert two[stage] == pytest.approx(one[stage], abs=1e-5)
    assert two["test"]["test/top1"] * 11 == pytest.approx(round(two["test"]["test/top1"] * 11), abs=1e-4)


def test_every_sample_is_predicted_once(results):
    assert [result["predicted"] for result in results] == [list(range(11))] * 2


@pytest.mark.parametrize("selection", ["layer", "global"])
def test_tickets_are_the_same_in_every_process(results, selection):
    one, two = (result["tickets"][selection] for result in results)
    assert [name for name, holds in two.items() if not holds] == []
    assert [name for name, holds in one.items() if not holds] == ["apart at first"]


def test_a_resumed_run_equals_a_straight_one_in_every_process(results):
    assert [result["resumed equals straight"] for result in results] == [True, True]


def test_experts_and_their_teacher_are_the_same_in_every_process(results):
    for result in results:
        assert [name for name, holds in result["experts"].items() if not holds] == []


def test_routing_maps_are_the_same_in_every_process(results):
    for result in results:
        assert [name for name, holds in result["positions"].items() if not holds] == []
