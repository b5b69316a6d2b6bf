"""Curves and table of results."""

import json

from studies import curves


def result(*accuracies, seeds):
    runs = [
        {"epochs": 2, "hours": 0.25, "curve": [{"epoch": 0, "val/top1": a}, {"epoch": 1, "val/top1": a + 0.1}]}
        for a in accuracies
    ]
    error = None if len(seeds) == 1 else 0.05
    mean = sum(accuracies) / len(accuracies)
    return {"seeds": seeds, "metrics": {"test/top1": {"mean": mean, "standard_error": error}}, "runs": runs}


def test_mean_curve_table_and_picture(tmp_path, capsys):
    two, one = result(0.5, 0.7, seeds=[0, 1]), result(0.25, seeds=[3])
    assert curves.curve(two) == [(1, 0.6), (2, 0.7)]
    del one["runs"][0]["curve"][0]["val/top1"]  # validated every second epoch
    assert curves.curve(one) == [(2, 0.35)]
    for name, content in (("two", two), ("one", one)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    curves.main([str(tmp_path / "two.json"), str(tmp_path / "one.json"), "--png", str(tmp_path / "c.png")])
    assert capsys.readouterr().out.splitlines() == [
        "| result | test/top1 | seeds | epochs | hours |",
        "|---|---|---|---|---|",
        "| `two` | 0.6000 ± 0.0500 | 0, 1 | 2 | 0.50 |",
        "| `one` | 0.2500 | 3 | 2 | 0.25 |",
    ]
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
