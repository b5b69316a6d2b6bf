"""Rank the trials of a search, and show what the best, middle and worst lists look like (paper, Figure 3, Table 1)."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from networks.rexnet import space

GROUPS = ("top", "mid", "bottom")


def tenths(count: int) -> dict[str, range]:
    """Ranks, from 0 for the best: the first tenth, the one just after the median, the last one; each at least one."""
    size = max(1, count // 10)
    starts = {"top": 0, "mid": min(count // 2, count - size), "bottom": count - size}
    return {group: range(start, start + size) for group, start in starts.items()}


def near_the_tenths(scores: Sequence[float]) -> list[int]:
    """Which of the scores rank in one of the tenths or within half a tenth of one; places in `scores`, in their order.

    For the fast mode, which trains the other seeds of these alone.
    """
    order = by_rank(scores)
    half = max(1, len(scores) // 10) / 2
    bands = tenths(len(scores)).values()
    chosen = [r for r in range(len(order)) if any(b.start - half <= r < b.stop + half for b in bands)]
    return sorted(order[rank] for rank in chosen)


def by_rank(scores: Sequence[float]) -> list[int]:
    """Places in `scores` from the highest to the lowest; of equal ones the earlier first."""
    return sorted(range(len(scores)), key=lambda place: -scores[place])


def costs(channels: Sequence[int], classes: int, around: space.Around = space.PAPER) -> dict[str, int]:
    """Of one list: parameters without classifier, with 10 classes (the budget's), as trained; multiply-adds; FLOPs."""
    one = np.array([channels])
    return {
        "params_body": int(space.params(one, None, around)[0]),
        "params": int(space.params(one, 10, around)[0]),
        "params_trained": int(space.params(one, classes, around)[0]),
        "macs": int(space.macs(one, classes, around)[0]),
        "flops": int(space.flops(one, around=around)[0]),
    }


def linearity(channels: Sequence[float]) -> float:
    """R squared of the straight line through c_i over i; 1 where all are equal."""
    c, i = np.asarray(channels, float), np.arange(len(channels))
    spread = ((c - c.mean()) ** 2).sum()
    return 1.0 if spread == 0 else float(1 - ((c - np.polyval(np.polyfit(i, c, 1), i)) ** 2).sum() / spread)


def ranked(lists: list[dict[str, Any]], printed: Mapping[str, Any]) -> dict[str, Any]:
    """Lists from the best on, the groups, and the printed pair.

    Args:
        lists: of each list its channels, costs and runs.
        printed: the best and the worst list that the paper prints for the budget, if it does.
    """
    for row in lists:
        row["top1"] = statistics.fmean(run["top1"] for run in row["runs"])
    best_first = [lists[place] for place in by_rank([row["top1"] for row in lists])]
    groups = {group: _group([best_first[rank] for rank in ranks]) for group, ranks in tenths(len(lists)).items()}
    return {
        "groups": groups,
        "printed": _printed_pair(lists, printed),
        "nuclear_norm": _with_the_nuclear_norm(lists),
        "lists": best_first,
    }


def _group(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and deviation over the lists of a group, and the line through its mean widths."""
    widths = np.array([row["channels"] for row in rows], float)
    mean = widths.mean(0)
    slope, start = np.polyfit(np.arange(len(mean)), mean, 1)
    return {
        "lists": len(rows),
        **{name: _spread([row[name] for row in rows]) for name in ("top1", "params", "flops")},
        "widths": mean.round(2).tolist(),
        "widths_deviation": widths.std(0).round(2).tolist(),
        "line": {"first": round(float(start), 3), "slope": round(float(slope), 3), "r2": round(linearity(mean), 4)},
        "r2_of_lists": round(statistics.fmean(linearity(row["channels"]) for row in rows), 4),
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": statistics.fmean(values), "deviation": statistics.pstdev(values)}


def _with_the_nuclear_norm(lists: list[dict[str, Any]]) -> dict[str, float] | None:
    """Correlation of accuracy with the nuclear norm, over lists of which callbacks.NuclearNorm measured every trial."""
    name = "test/nuclear_norm"
    measured = [row for row in lists if all(name in run.get("metrics", ()) for run in row["runs"])]  # none diverged
    for row in measured:
        row["nuclear_norm"] = statistics.fmean(run["metrics"][name] for run in row["runs"])
    norms, scores = ([row[key] for row in measured] for key in ("nuclear_norm", "top1"))
    if len(measured) < 3 or len(set(norms)) == 1 or len(set(scores)) == 1:
        return None
    return {
        "lists": len(measured),
        "pearson": float(np.corrcoef(norms, scores)[0, 1]),
        "spearman": float(np.corrcoef(_average_ranks(norms), _average_ranks(scores))[0, 1]),
    }


def _average_ranks(values: Sequence[float]) -> NDArray[np.float64]:
    """Ranks from 0, equal values sharing the mean of theirs."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (count.cumsum() - (count + 1) / 2)[place]


def _printed_pair(lists: list[dict[str, Any]], printed: Mapping[str, Any]) -> dict[str, Any] | None:
    """The printed best list against the printed worst, seed by seed."""
    rows = {tuple(row["channels"]): row for row in lists}
    pair = {kind: rows.get(channels) for kind, (channels, _) in printed.items()}
    best, worst = pair.get("best"), pair.get("worst")
    if not best or not worst:
        return None
    scores = [{run["seed"]: run["top1"] for run in row["runs"]} for row in (best, worst)]
    differences = [scores[0][seed] - scores[1][seed] for seed in scores[0] if seed in scores[1]]
    n = len(differences)
    return {
        "best": best["top1"],
        "worst": worst["top1"],
        "paper": {kind: percent / 100 for kind, (_, percent) in printed.items()},
        "differences": differences,
        "mean_difference": statistics.fmean(differences),
        "standard_error": statistics.stdev(differences) / math.sqrt(n) if n > 1 else None,
    }


def tables(result: Mapping[str, Any]) -> list[Table]:
    """The groups; the printed pair where it was trained; the best and worst lists."""
    groups = Table("group", "lists", "top1", "params (M)", "FLOPs (M)", "R2 of the line", "mean widths")
    for name, group in result["groups"].items():
        groups.add_row(
            name,
            str(group["lists"]),
            _shown(group, "top1", 1, 4),
            _shown(group, "params", 1e6, 3),
            _shown(group, "flops", 1e6, 2),
            f"{group['line']['r2']:.3f}",
            " ".join(f"{width:.0f}" for width in group["widths"]),
        )
    lists = Table("rank", "top1", "seeds", "params (M)", "FLOPs (M)", "channels", title="best and worst lists")
    rows = list(enumerate(result["lists"], 1))
    for rank, row in rows if len(rows) <= 10 else rows[:5] + rows[-5:]:
        cost = (f"{row['params'] / 1e6:.3f}", f"{row['flops'] / 1e6:.1f}")
        channels = "-".join(map(str, row["channels"]))
        lists.add_row(str(rank), f"{row['top1']:.4f}", str(len(row["runs"])), *cost, channels)
    if not result["printed"]:
        return [groups, lists]
    pair = result["printed"]
    printed = Table("", "ours", "paper, CIFAR-100", title="the lists that the paper prints")
    for kind in ("best", "worst"):
        printed.add_row(kind, f"{pair[kind]:.4f}", f"{pair['paper'][kind]:.3f}")
    error = "" if pair["standard_error"] is None else f" ± {pair['standard_error']:.4f}"
    difference = pair["paper"]["best"] - pair["paper"]["worst"]
    printed.add_row("difference, over seeds", f"{pair['mean_difference']:.4f}{error}", f"{difference:.3f}")
    return [groups, printed, lists]


def _shown(group: Mapping[str, Any], name: str, unit: float, digits: int) -> str:
    """The mean, with the deviation where there are several lists."""
    mean, deviation = (f"{group[name][key] / unit:.{digits}f}" for key in ("mean", "deviation"))
    return f"{mean} ± {deviation}" if group["lists"] > 1 else mean


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Mean and deviation of the width of each block, for each group, and accuracy by nuclear norm, into a PNG file."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    scatter = bool(result["nuclear_norm"])
    figure = Figure(figsize=(6.4 * (1 + scatter), 4.2), layout="constrained")
    axes, *beside = figure.subplots(1, 1 + scatter, squeeze=False)[0]
    for color, (name, group) in zip(("tab:green", "tab:gray", "tab:red"), result["groups"].items(), strict=True):
        mean, deviation = np.array(group["widths"]), np.array(group["widths_deviation"])
        blocks = np.arange(1, len(mean) + 1)
        label = f"{name} tenth ({group['lists']} lists): top1 {group['top1']['mean']:.3f}, R² {group['line']['r2']:.2f}"
        axes.plot(blocks, mean, marker="o", color=color, label=label)
        axes.fill_between(blocks, mean - deviation, mean + deviation, color=color, alpha=0.15, linewidth=0)
    budget = result["budget"]
    params = f", {budget['params'] / 1e6:g} M parameters" if budget["params"] else ""
    axes.set_title(f"{len(result['lists'])} lists, {budget['flops'] / 1e6:g} M FLOPs{params}", fontsize=10)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="block", ylabel="channels (mean and deviation)")
    axes.legend(fontsize=8)
    for other in beside:
        points = [(row["nuclear_norm"], row["top1"]) for row in result["lists"] if "nuclear_norm" in row]
        other.scatter(*zip(*points, strict=True), s=12)
        title = "Pearson {pearson:.2f}, Spearman {spearman:.2f}".format(**result["nuclear_norm"])
        other.set(xlabel="nuclear norm of the features", ylabel="top1", title=title)
    figure.savefig(path, dpi=110)
