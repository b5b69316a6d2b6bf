"""Curves of results: python -m studies.curves results/biprop/cifar10/short/*.json --png docs/curves.png"""

import argparse
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def main(arguments: list[str] | None = None) -> None:
    """Draw val/top1 by epoch of several results."""
    parser = argparse.ArgumentParser("python -m studies.curves", description=main.__doc__)
    parser.add_argument("results", nargs="+", type=Path, help="files that `frugal seeds` wrote")
    parser.add_argument("--png", type=Path, required=True, help="picture to draw")
    options = parser.parse_args(arguments)
    results = {}
    for path in options.results:
        try:
            result = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            parser.error(f"{path} is no file of results: {error}")
        results[path.stem if path.stem not in results else str(path.with_suffix(""))] = result
    draw(results, options.png)


def curve(result: Mapping[str, Any], metric: str = "val/top1") -> list[tuple[int, float]]:
    """(epochs done, mean over the seeds) wherever every seed has the metric."""
    rows = zip(*(run["curve"] for run in result["runs"]), strict=True)
    return [
        (row[0]["epoch"] + 1, statistics.fmean(seed[metric] for seed in row))
        for row in rows
        if all(metric in seed for seed in row)
    ]


def draw(results: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """One line for each result, the best at the top of the legend."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, result in sorted(results.items(), key=lambda item: -curve(item[1])[-1][1]):
        points = curve(result)
        axes.plot([x for x, _ in points], [y for _, y in points], marker=".", label=name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="epoch", ylabel="val/top1")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
