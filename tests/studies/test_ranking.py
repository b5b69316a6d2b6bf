"""Ranks, tenths and figures of a search, on planted scores."""

import math

import pytest
from scipy import stats

from networks.rexnet.space import PUBLISHED
from studies import ranking


def rows(scores, channels=(10, 20, 30)):
    """Lists with one run each."""
    return [
        {"channels": list(channels), "params": 1000 + i, "flops": 10, "runs": [{"seed": 0, "top1": score}]}
        for i, score in enumerate(scores)
    ]


def test_tenths_of_two_hundred():
    assert ranking.tenths(200) == {"top": range(20), "mid": range(100, 120), "bottom": range(180, 200)}
    assert {name: len(ranks) for name, ranks in ranking.tenths(207).items()} == {"top": 20, "mid": 20, "bottom": 20}


@pytest.mark.parametrize("count", range(1, 40))
def test_tenths_of_few_lie_among_them(count):
    for ranks in ranking.tenths(count).values():
        assert len(ranks) >= 1
        assert ranks.start >= 0
        assert ranks.stop <= count


def test_planted_scores_give_their_groups():
    """Score i of list i, in a shuffled order, so that groups are known."""
    scores = [(i * 77) % 200 / 200 for i in range(200)]
    result = ranking.ranked(rows(scores), {})
    assert [row["top1"] for row in result["lists"]] == [i / 200 for i in range(199, -1, -1)]
    means = {name: group["top1"]["mean"] for name, group in result["groups"].items()}
    assert means == pytest.approx({"top": 189.5 / 200, "mid": 89.5 / 200, "bottom": 9.5 / 200})
    assert result["groups"]["top"]["top1"]["deviation"] == pytest.approx(math.sqrt((20**2 - 1) / 12) / 200)


def test_lists_are_ranked_by_the_mean_over_seeds():
    lists = rows([0.5, 0.6])
    lists[0]["runs"].append({"seed": 1, "top1": 0.9})
    lists[1]["runs"].append({"seed": 1, "top1": 0.6})
    assert [row["top1"] for row in ranking.ranked(lists, {})["lists"]] == pytest.approx([0.7, 0.6])


def test_equal_scores_keep_their_order():
    assert ranking.by_rank([0.5, 0.7, 0.5, 0.7]) == [1, 3, 0, 2]


def test_the_fast_mode_takes_tenths_and_half_a_tenth_around_them():
    scores = [1 - i / 200 for i in range(200)]
    assert ranking.near_the_tenths(scores) == [*range(30), *range(90, 130), *range(170, 200)]
    assert ranking.near_the_tenths(scores[::-1]) == [*range(30), *range(70, 110), *range(170, 200)]


def test_linearity():
    assert ranking.linearity([24, 33, 42, 51]) == pytest.approx(1)
    assert ranking.linearity([7, 7, 7]) == 1
    assert ranking.linearity([0, 0, 0, 4]) == pytest.approx(0.6)  # r = 6 / sqrt(5 * 12)


def test_line_and_band_of_a_group():
    lists = rows([0.9, 0.8] + [0.1] * 18)
    lists[0]["channels"], lists[1]["channels"] = [10, 20, 30], [20, 40, 60]
    group = ranking.ranked(lists, {})["groups"]["top"]
    assert group["widths"] == [15, 30, 45]
    assert group["widths_deviation"] == [5, 10, 15]
    assert group["line"] == {"first": 15, "slope": 15, "r2": 1}


def test_the_printed_pair_is_compared_seed_by_seed():
    printed = PUBLISHED["a"]
    best, worst = (list(printed[kind][0]) for kind in ("best", "worst"))
    lists = [
        {"channels": best, "params": 1, "flops": 1, "runs": [{"seed": s, "top1": 0.5 + 0.1 * s} for s in range(3)]},
        {"channels": worst, "params": 1, "flops": 1, "runs": [{"seed": s, "top1": 0.4 + 0.15 * s} for s in range(3)]},
    ]
    pair = ranking.ranked(lists, printed)["printed"]
    assert pair["differences"] == pytest.approx([0.1, 0.05, 0.0])
    assert pair["mean_difference"] == pytest.approx(0.05)
    assert pair["standard_error"] == pytest.approx(0.05 / math.sqrt(3))
    assert pair["paper"] == pytest.approx({"best": 0.634, "worst": 0.611})
    assert ranking.ranked(lists[:1], printed)["printed"] is None


def test_costs_of_a_list():
    """Of budget (a)'s best list (spec 5.3): body, with 10 classes, multiply-adds of 100 classes, FLOPs."""
    cost = ranking.costs(PUBLISHED["a"]["best"][0], 100)
    assert ranking.costs(PUBLISHED["a"]["best"][0], 10)["flops"] == cost["flops"]  # budgets count 100 classes
    assert cost == {
        "params_body": 187_994,
        "params": 198_244,
        "params_trained": 187_994 + 102_500,
        "macs": 28_389_504,
        "flops": 29_992_320,
    }


def test_correlation_with_the_nuclear_norm():
    """Against SciPy, ties included."""
    scores, norms = [0.1, 0.4, 0.4, 0.9, 0.2], [3.0, 5.0, 9.0, 9.0, 1.0]
    lists = rows(scores)
    for row, norm in zip(lists, norms, strict=True):
        row["runs"][0]["metrics"] = {"test/nuclear_norm": norm}
    found = ranking.ranked(lists, {})["nuclear_norm"]
    assert found["pearson"] == pytest.approx(stats.pearsonr(norms, scores)[0])
    assert found["spearman"] == pytest.approx(stats.spearmanr(norms, scores)[0])
    assert found["lists"] == 5
    without = rows([*scores, 0.1])  # its trial diverged
    for row, norm in zip(without, norms, strict=False):
        row["runs"][0]["metrics"] = {"test/nuclear_norm": norm}
    assert ranking.ranked(without, {})["nuclear_norm"] == found
    assert "nuclear_norm" not in without[5]
    same = rows([0.1, 0.2, 0.3])
    for row in same:
        row["runs"][0]["metrics"] = {"test/nuclear_norm": 2.0}
    assert ranking.ranked(same, {})["nuclear_norm"] is None
