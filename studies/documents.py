"""Write into README.md and docs/ what is made of data: make docs

Every network of the papers' tables is counted anew into results/<method>/costs.json; of these, of results/ and of the
papers' figures come the tables between the markers "<!-- tables METHOD -->" or "<!-- runs METHOD -->" and
"<!-- end -->", and the pictures of accuracy against cost.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from studies import table_text, tables

ROOT = tables.ROOT
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MARKED = re.compile(r"(<!-- (tables|runs)((?: \w+)*) -->\n).*?(<!-- end -->)", re.DOTALL)
CAPTIONS = {
    "params": "stored parameters, ours, as the paper counts",
    "flops": "FLOPs, ours, as the paper counts",
    "bops": "binary multiply-adds, ours",
    "size": "stored MB, ours",
}
Point = tuple[float, float, str]  # cost, accuracy in per cent, name


def main() -> None:
    """Count, write, draw."""
    for method in tables.methods():
        counted = tables.count(tables.needed(method))
        (tables.RESULTS / method / "costs.json").write_text(json.dumps(counted, indent=1) + "\n")
    for page in PAGES:
        page.write_text(written(page))
    for path, methods in pictures().items():
        draw(panels(methods), path)


def written(page: Path) -> str:
    """A page with what stands between its markers made anew."""

    def fill(match: re.Match[str]) -> str:
        begin, kind, methods, end = match.groups()
        parts = _tables if kind == "tables" else _runs
        return "\n".join([begin, "\n\n".join(parts(methods.split())), "", end])

    return MARKED.sub(fill, page.read_text())


def _tables(methods: list[str]) -> Iterator[str]:
    for method in methods:
        for table in tables.tables(method, tables.kept_costs(method)):
            text = table_text.of_paper(table)
            yield f"**{text.heading}**\n\n{text.markdown()}"


def _runs(methods: list[str]) -> Iterator[str]:
    runs = [run for method in methods for run in tables.runs(method, tables.kept_costs(method))]
    yield table_text.of_runs(runs).markdown()


def pictures() -> dict[Path, list[str]]:
    """The methods that each picture shows."""
    each = {ROOT / f"docs/{method}_cost.png": [method] for method in tables.methods()}
    return {**each, ROOT / "docs/overview.png": tables.methods()}


def panels(methods: list[str]) -> dict[str, dict[str, Any]]:
    """What a picture shows: for each data set and cost the points of each table.

    Several methods share a picture with one panel each, their first with the most points.
    """
    found: dict[str, dict[str, Any]] = {}
    for method in methods:
        own: dict[str, dict[str, Any]] = {}
        for table in tables.tables(method, tables.kept_costs(method)):
            if not table["plot"]:
                continue
            data = re.split(r"[,:]", table["title"])[0]
            panel = own.setdefault(f"{data}, {table['plot']}", {"title": data, "cost": table["plot"], "series": {}})
            for name, points in (("others, as printed", _quoted(table)), (table["table"], _points(table))):
                if points:
                    panel["series"].setdefault(name, []).extend(points)
        if len(methods) > 1:
            most = max(own.values(), key=lambda panel: sum(map(len, panel["series"].values())))
            own = {method: {**most, "title": f"{method.replace('_', ' ')}: {most['title']}"}}
        found.update(own)
    return found


def _points(table: dict[str, Any]) -> list[Point]:
    """The rows that have a network here."""
    costs = [(row, row["costs"][table["plot"]]["ours"]) for row in table["rows"]]
    return [(cost, _accuracy(row), row["row"]) for row, cost in costs if cost and _accuracy(row) is not None]


def _quoted(table: dict[str, Any]) -> list[Point]:
    costs = [(row, row["costs"][table["plot"]]["paper"]) for row in table["rows"] if row["config"] is None]
    return [(tables.value(str(cost)), _accuracy(row), row["row"]) for row, cost in costs if cost]


def _accuracy(row: dict[str, Any]) -> Any:
    return next(iter(row["accuracy"].values()))["paper"]


def digest(shown: dict[str, Any]) -> str:
    """What a picture shows in short: kept inside it, so that a test can tell whether it is up to date."""
    return hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()


def draw(shown: dict[str, dict[str, Any]], path: Path) -> None:
    """Accuracy, the paper's, against cost, ours."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    columns = min(2, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(5.8 * columns, 4.2 * rows), layout="constrained")
    for axes, panel in zip(figure.subplots(rows, columns, squeeze=False).flat, shown.values(), strict=False):
        everything = [point for points in panel["series"].values() for point in points]
        named = len(everything) <= 24  # else names would cover each other
        for (name, points), marker in zip(sorted(panel["series"].items()), "os^Dv<>", strict=False):
            color = "0.6" if name.startswith("others") else None
            axes.plot([x for x, _, _ in points], [y for _, y, _ in points], marker, c=color, label=name, markersize=5)
        for number, (x, y, label) in enumerate(sorted(everything) if named else ()):
            below = (5, 1 - 8 * (number % 2))
            axes.annotate(label, (x, y), xytext=below, textcoords="offset points", fontsize=7, color="0.3")
        axes.set_xscale("log")
        axes.margins(x=0.3 if named else 0.1, y=0.1)
        wide = max(everything)[0] > 8 * min(everything)[0]
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if wide else (1, 1.5, 2, 2.5, 3, 4, 6, 8)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}" if x < 1000 else table_text.number(x)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(labelsize=7)
        axes.set_title(panel["title"], fontsize=10)
        axes.set_xlabel(CAPTIONS[panel["cost"]], fontsize=8)
        axes.set_ylabel("accuracy, the paper's, %", fontsize=8)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=4, frameon=False)
    figure.savefig(path, dpi=110, metadata={"Description": digest(shown)})


if __name__ == "__main__":
    main()
