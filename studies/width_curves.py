"""Widths by block of several searches: python -m studies.width_curves results/rexnet/search/budget_*.json --png FILE"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Mean widths of the top tenths, read from the paper's figures, +- 2 channels (+- 10 for d).
PAPER = {
    "a": (34.5, 41, 47, 53, 59),
    "b": (28, 35, 40, 46, 55, 66, 77, 86, 98),
    "c": (36, 50, 63, 78, 91, 101, 114, 128, 144),
    "d": (31, 32, 38, 47, 66, 85, 105, 135, 157, 180, 202, 225, 248),
    "5_blocks_30m": (28, 39, 55, 68, 82),
    "5_blocks_50m": (34, 57, 87, 100, 115),
    "5_blocks_70m": (44, 69, 98, 126, 150),
    "9_blocks_100m": (28, 35, 40, 46, 55, 66, 77, 86, 98),
    "9_blocks_150m": (34, 42, 50, 60, 72, 85, 96, 105, 118),
    "9_blocks_200m": (36, 50, 63, 78, 91, 101, 114, 128, 144),
}


def main(arguments: list[str] | None = None) -> None:
    """Draw the mean widths of the top tenth of each search, and print its line as a table in Markdown."""
    parser = argparse.ArgumentParser("python -m studies.width_curves", description=main.__doc__)
    parser.add_argument("results", nargs="+", type=Path, help="files that `frugal search` wrote")
    parser.add_argument("--png", type=Path, required=True, help="picture to draw; dashed: the paper's, as read")
    options = parser.parse_args(arguments)
    results = {}
    for path in options.results:
        try:
            results[path.stem] = json.loads(path.read_text())
            results[path.stem]["groups"]
        except (OSError, ValueError, KeyError) as error:
            parser.error(f"{path} is no result of a search: {error!r}")
    draw(results, options.png)
    print(table(results))


def draw(results: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """One curve for each search, and beside it the paper's of that budget."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for i, (name, result) in enumerate(results.items()):
        widths, printed = result["groups"]["top"]["widths"], PAPER.get(result["budget"]["name"])
        axes.plot(range(1, len(widths) + 1), widths, marker="o", color=f"C{i}", label=name)
        if printed:
            of_paper = f"{name}, read from the paper's figure"
            axes.plot(range(1, len(printed) + 1), printed, "--", color=f"C{i}", alpha=0.6, label=of_paper)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(
        xlabel="block",
        ylabel="mean channels of the top tenth",
    )
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Accuracy of each tenth, and the line through the mean widths of the first."""
    lines = ["| search | top | mid | bottom | R² of the top's line | slope |", "|---|---|---|---|---|---|"]
    for name, result in results.items():
        groups = result["groups"]
        scores = [f"{g['top1']['mean']:.4f} ± {g['top1']['deviation']:.4f}" for g in groups.values()]
        line = groups["top"]["line"]
        lines.append(f"| `{name}` | {' | '.join(scores)} | {line['r2']:.3f} | {line['slope']:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
