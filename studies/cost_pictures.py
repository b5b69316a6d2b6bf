"""Pictures of accuracy, as the papers print it, against cost, as counted here."""

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studies import table_text, tables

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CAPTIONS = {
    "params": "stored parameters, ours, as the paper counts",
    "flops": "FLOPs, ours, as the paper counts",
    "bops": "binary multiply-adds, ours",
    "size": "stored MB, ours",
}
OTHERS = "others, as printed"
# Places of a name around its point, the best first: offset in points, alignment.
PLACES = (
    ((6, 0), "left", "center"),
    ((-6, 0), "right", "center"),
    ((0, 6), "center", "bottom"),
    ((0, -6), "center", "top"),
    ((5, 4), "left", "bottom"),
    ((5, -4), "left", "top"),
    ((-5, 4), "right", "bottom"),
    ((-5, -4), "right", "top"),
)
Point = tuple[float, float, str]  # cost, accuracy in per cent, name


def pictures() -> dict[Path, list[str]]:
    """The methods that each picture shows."""
    each = {tables.ROOT / f"docs/{method}_cost.png": [method] for method in tables.methods()}
    return {**each, tables.ROOT / "docs/overview.png": tables.methods()}


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
            for name, points in ((OTHERS, _quoted(table)), (table["table"], _points(table))):
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

    columns = min(2, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(5.8 * columns, 4.2 * rows), layout="constrained")
    drawn = list(zip(figure.subplots(rows, columns, squeeze=False).flat, shown.values(), strict=False))
    for axes, panel in drawn:
        _plot(axes, panel)
    figure.draw_without_rendering()  # now the layout is known
    figure.set_layout_engine("none")
    for axes, panel in drawn:
        _name(axes, panel)
    figure.savefig(path, dpi=110, metadata={"Description": digest(shown)})


def _plot(axes: "Axes", panel: dict[str, Any]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for (name, points), marker in zip(sorted(panel["series"].items()), "os^Dv<>", strict=False):
        color = "0.6" if name == OTHERS else None
        axes.plot([x for x, _, _ in points], [y for _, y, _ in points], marker, c=color, label=name, markersize=5)
    costs = [x for points in panel["series"].values() for x, _, _ in points]
    axes.set_xscale("log")
    axes.margins(x=0.15, y=0.1)
    wide = max(costs) > 8 * min(costs)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if wide else (1, 1.5, 2, 2.5, 3, 4, 6, 8)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}" if x < 1000 else table_text.number(x)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(labelsize=7)
    axes.set_title(panel["title"], fontsize=10)
    axes.set_xlabel(CAPTIONS[panel["cost"]], fontsize=8)
    axes.set_ylabel("accuracy, the paper's, %", fontsize=8)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=4, frameon=False)


def _name(axes: "Axes", panel: dict[str, Any]) -> None:
    """Name points, the method's before others', where nothing is covered; elsewhere the table names them."""
    from matplotlib.transforms import Bbox

    points = [point for name, some in sorted(panel["series"].items(), key=lambda s: s[0] == OTHERS) for point in some]
    centres = axes.transData.transform([point[:2] for point in points])
    taken = [Bbox.from_extents(x - 5, y - 5, x + 5, y + 5) for x, y in centres]
    for x, y, name in points:
        for offset, horizontal, vertical in PLACES:
            text = axes.annotate(
                name, (x, y), offset, textcoords="offset points", fontsize=6.5, color="0.3", ha=horizontal, va=vertical
            )
            box = text.get_window_extent()
            if axes.bbox.containsx(box.x0) and axes.bbox.containsx(box.x1) and not box.count_overlaps(taken):
                taken.append(box)
                break
            text.remove()
