"""Width curves of several searches."""

import json

import pytest

from networks.rexnet.space import BUDGETS
from studies import ranking, width_curves


def test_every_budget_of_the_paper_has_its_curve():
    assert {name: len(curve) for name, curve in width_curves.PAPER.items()} == {
        name: budget.blocks for name, budget in BUDGETS.items()
    }


def test_picture_and_table(tmp_path, capsys):
    channels = [[28, 39, 55, 68, 82], [30, 40, 50, 60, 70]]
    lists = [{"channels": c, "params": 1, "flops": 1, "runs": [{"seed": 0, "top1": 0.5}]} for c in channels]
    result = {"budget": {"name": "5_blocks_30m"}, **ranking.ranked(lists, {})}
    (tmp_path / "mine.json").write_text(json.dumps(result))
    width_curves.main([str(tmp_path / "mine.json"), "--png", str(tmp_path / "a.png")])
    assert (tmp_path / "a.png").stat().st_size > 5_000
    line = result["groups"]["top"]["line"]
    row = f"| `mine` | 0.5000 ± 0.0000 | 0.5000 ± 0.0000 | 0.5000 ± 0.0000 | {line['r2']:.3f} | {line['slope']:.2f} |"
    assert row in capsys.readouterr().out


def test_other_files_are_refused(tmp_path, capsys):
    (tmp_path / "mine.json").write_text("{}")
    with pytest.raises(SystemExit):
        width_curves.main([str(tmp_path / "mine.json"), "--png", "a.png"])
    assert "mine.json is no result of a search" in capsys.readouterr().err
