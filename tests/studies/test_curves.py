"""Curves of results."""

import json

from studies import curves


def result(*accuracies):
    curves = [[{"epoch": 0, "val/top1": a}, {"epoch": 1, "val/top1": a + 0.1}] for a in accuracies]
    return {"runs": [{"curve": curve} for curve in curves]}


def test_mean_curve_and_picture(tmp_path):
    two, one = result(0.5, 0.7), result(0.25)
    assert curves.curve(two) == [(1, 0.6), (2, 0.7)]
    del one["runs"][0]["curve"][0]["val/top1"]  # validated every second epoch
    assert curves.curve(one) == [(2, 0.35)]
    for name, content in (("two", two), ("one", one)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    curves.main([str(tmp_path / "two.json"), str(tmp_path / "one.json"), "--png", str(tmp_path / "c.png")])
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
