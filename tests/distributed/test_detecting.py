"""Detectors on two processes against one: figures over each image once, the same results, the same training."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """What one process and two processes write."""
    found = []
    for devices in (1, 2):
        found.append(tmp_path_factory.mktemp(f"devices{devices}"))
        command = [sys.executable, Path(__file__).parent / "detecting.py", str(devices), found[-1]]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run(command, check=True, capture_output=True, env=env, cwd=found[-1], timeout=1200)
    return found


@pytest.fixture(scope="module")
def results(folders):
    return [torch.load(folder / "result.pt", weights_only=True) for folder in folders]


@pytest.mark.parametrize("stage", ["val", "test"])
def test_figures_are_those_of_one_process(results, stage):
    one, two = (result["known"][stage] for result in results)
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    assert one[0].keys() == {f"{stage}/{kind}_{name}" for kind in ("box", "mask") for name in names}
    assert two == [one[0], one[0]]
    for kind in ("box", "mask"):
        assert 0.1 < one[0][f"{stage}/{kind}_ap"] < 0.9
        assert one[0][f"{stage}/{kind}_ap_large"] == -1  # there are none


def test_each_image_is_scored_once(results):
    """Images 100, 99, ... in turn; the last has no partner."""
    one, two = (result["known"]["images"] for result in results)
    counts = {"val": 5, "test": 9}
    assert one == [[[100 - i for i in range(count)] for count in counts.values()]]
    assert two == [[[100 - i for i in range(rank, count, 2)] for count in counts.values()] for rank in (0, 1)]
    one, two = (result["real"]["images"] for result in results)  # after each of two epochs
    assert one == [[[100, 99, 98, 97, 96]] * 2]
    assert two == [[[100, 98, 96]] * 2, [[99, 97]] * 2]


@pytest.mark.parametrize(("which", "kind"), [("known", "bbox"), ("known", "segm"), ("real", "bbox")])
def test_the_same_detections_are_written(folders, which, kind):
    one, two = ((folder / which / f"detections_{kind}.json").read_bytes() for folder in folders)
    assert one == two
    images = [row["image_id"] for row in json.loads(one)]
    assert images == sorted(images)
    assert set(images) == {100 - i for i in range(9)}
    assert ("segmentation" in json.loads(one)[0]) == (kind == "segm")


def test_the_first_process_draws(folders):
    for folder in folders:
        names = sorted(path.name for path in (folder / "known/detections").iterdir())
        assert names == ["test.png", "validate.png"]


def test_training_is_that_of_one_process(results):
    """With batch normalisation in eval mode, and of one process two steps accumulated."""
    one, two = (result["real"] for result in results)
    assert one["steps"] == two["steps"] == 2 * (7 // 2)
    assert two["same weights"]
    assert one["state"].keys() == two["state"].keys()
    for name, value in one["state"].items():
        assert torch.allclose(two["state"][name].float(), value.float(), atol=1e-5)
    names = ("train/loss", "train/bbox_regression", "train/classification")
    for values in two["figures"]:
        assert [values[name] for name in names] == pytest.approx([one["figures"][0][name] for name in names], rel=1e-5)
        assert values["val/box_ap"] == two["figures"][0]["val/box_ap"]
