"""`frugal latency`: what it builds, counts and prints."""

import json

import pytest

import frugal
from commands.latency import PAPER, build, draw, paper_top1, table
from networks import InputError
from networks.complexity import count
from studies import tables


def test_accuracies_are_the_scaling_tables():
    (scaling,) = [table for table in tables.paper("rexnet")["tables"] if table["table"] == "Scaling"]
    assert list(PAPER.values()) == [pytest.approx(row["paper"][0] / 100) for row in scaling["rows"]]


def test_names_with_arguments_and_sides():
    assert build("rexnet_plain").side == 224
    timed = build("rexnet{width: 0.9}@64")
    assert (timed.side, timed.network.num_features, timed.network.training) == (64, 1152, False)


@pytest.mark.parametrize(
    "text", ["rexnet{width", "rexnet{: :}", "rexnet@0", "@3", "rexnet{width: [}", "rexnet{width: }"]
)
def test_names_that_are_none(text):
    with pytest.raises(InputError, match="is no NAME"):
        build(text)


def test_paper_rows_cost_what_the_paper_says():
    """Parameters and multiply-adds of its scaling table, in its digits (FLOPs of 1.5 are misprinted there)."""
    printed = {"rexnet_plain": (3.4, 0.56), "rexnet{width: 0.9}": (4.1, 0.35), "rexnet{width: 2.0}": (16.4, 1.53)}
    assert printed.keys() <= PAPER.keys()
    for text, (params, flops) in printed.items():
        report = count(build(text).network, (3, 224, 224))
        assert (round(report.params / 1e6, 1), round(report.flops / 1e9, 2)) == (params, flops)


def test_accuracies_are_those_that_the_paper_prints():
    """Its scaling table (spec 8.4), also under timm's names."""
    printed = {"0.9": 77.2, "1.0": 77.9, "1.1": 78.6, "1.2": 79.0, "1.3": 79.5, "1.4": 79.8, "1.5": 80.3}
    printed |= {"2.0": 81.6, "2.2": 81.7, "3.0": 82.8}
    for width, percent in printed.items():
        assert paper_top1(f"rexnet{{width: {width}}}") == pytest.approx(percent / 100)
    assert paper_top1("rexnet_130") == paper_top1("rexnet{width: 1.3}")
    assert paper_top1("rexnet_plain") == 0.748
    assert paper_top1("conv2@32") is None


def test_json_and_picture(tmp_path, capsys):
    names = ["rexnet{width: 0.9}", "conv2@32"]
    frugal.main(["latency", *names, "--runs", "1", "--threads", "1", "--json", "--png", str(tmp_path / "a.png")])
    printed = capsys.readouterr().out
    result = json.loads(printed[: printed.rindex("}") + 1])
    assert result["threads"] == 1
    assert result["networks"]["conv2@32"]["params"] == 4_300_992
    assert result["networks"]["conv2@32"]["paper_top1"] is None
    assert all(row["cpu_ms"] > 0 for row in result["networks"].values())
    assert (tmp_path / "a.png").stat().st_size > 5_000


def test_a_gpu_has_its_column_and_panel(tmp_path):
    rows = {"rexnet{width: 0.9}": {"side": 224, "params": 4e6, "flops": 3e8, "paper_top1": 0.772, "cpu_ms": 1.0}}
    rows["rexnet{width: 0.9}"]["cuda_ms"] = 2.0
    hardware = {"processor": "CPU", "gpus": ["V100"]}
    result = {"networks": rows, "threads": 1, "batch": 64, "hardware": hardware}
    assert [column.header for column in table(result).columns][-3:] == ["CPU (ms)", "GPU (ms)", "top1, paper"]
    draw(result, tmp_path / "a.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet81"], "no network is called 'resnet81'"),
        (["conv2@32", "--png", "a.png"], "--png draws the paper's accuracies, which it has of rexnet_plain"),
        (["conv2@32", "--runs", "0"], "--runs, --batch and --threads must be positive"),
    ],
)
def test_mistakes(capsys, arguments, message):
    with pytest.raises(SystemExit):
        frugal.main(["latency", *arguments])
    assert message in capsys.readouterr().err
