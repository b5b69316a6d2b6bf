"""Tables of the papers as text: a heading, columns and rows of cells, for terminals and for Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from studies import conventions
from studies.tables import methods

NAMES = {"params": "parameters", "flops": "FLOPs", "bops": "BOPs", "size": "MB"}
SCORES = {
    "top1": "top-1 %",
    "top5": "top-5 %",
    "box_ap": "box AP",
    "box_ap50": "AP50",
    "box_ap75": "AP75",
    "mask_ap": "mask AP",
    "mask_ap50": "AP50",
    "mask_ap75": "AP75",
}
NOT_RUN = "-"


class Text(NamedTuple):
    """A table: `notes` stand below it, and `about` says what its columns count."""

    heading: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    notes: tuple[str, ...]
    about: str

    def markdown(self) -> str:
        """The table in Markdown, without its heading."""
        notes = [f"{note}\n" for note in self.notes]
        return "\n".join([markdown(self.columns, self.rows), "", *notes, self.about])


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def of_paper(table: Mapping[str, Any]) -> Text:
    """A paper's table; ours in a cell of costs, and in brackets the paper's and the difference of ours from it."""
    metrics = list(table["rows"][0]["accuracy"])
    notes: list[str] = []
    rows = []
    for row in table["rows"]:
        name = row["row"]
        if row["note"]:
            notes.append(f"[{len(notes) + 1}] {row['note']}")
            name += f" [{len(notes)}]"
        accuracies = [row["accuracy"][metric] for metric in metrics]
        costs = [cost_cell(row["costs"][cost], in_mb=cost == "size") for cost in table["counts"]]
        rows.append((name, printed(accuracies), reached(accuracies), *costs, short(row["config"])))
    what = " / ".join(SCORES.get(metric, metric) for metric in metrics)
    columns = ("row", f"paper: {what}", "ours", *(f"{NAMES[cost]}: ours (paper)" for cost in table["counts"]), "config")
    said = [f"{NAMES[cost]}: {first_line(convention)}" for cost, convention in table["counts"].items()]
    return Text(f"{table['table']}: {table['title']}", columns, rows, tuple(notes), "; ".join(said) + ".")


def of_runs(runs: Sequence[Mapping[str, Any]]) -> Text:
    """What we ran."""
    rows = [
        (
            run["config"].removeprefix("configs/").removesuffix(".yaml"),
            SCORES[run["metric"]],
            f"{with_error(run)} ({run['runs']} {run['of'] if run['runs'] > 1 else run['of'][:-1]})",
            str(run["epochs"]),
            f"{60 * run['hours']:.1f}",
            *(number(run["costs"][cost], in_mb=cost == "size") for cost in NAMES),
        )
        for run in runs
    ]
    hardware = sorted({f"{run['hardware']['cores']} cores of an {run['hardware']['processor']}" for run in runs})
    torch = sorted({run["torch"] for run in runs})
    columns = ("config", "score", "ours ± standard error", "epochs", "minutes in all", *NAMES.values())
    about = f"Last epoch, test data; on {', '.join(hardware)}, torch {', '.join(torch)}."
    return Text("What we ran", columns, rows, (), about)


def short(config: str | None) -> str:
    """A config's path without what all have in common."""
    if config is None:
        return ""
    path = config.removeprefix("configs/").removesuffix(".yaml")
    method, _, rest = path.partition("/")
    return rest if method in methods() else path


def printed(accuracies: Sequence[Mapping[str, Any]]) -> str:
    known = [f"{accuracy['paper']}" for accuracy in accuracies if accuracy["paper"] is not None]
    return " / ".join(known) or NOT_RUN


def reached(accuracies: Sequence[Mapping[str, Any]]) -> str:
    ours = [with_error(accuracy["ours"]) for accuracy in accuracies if accuracy["ours"]]
    return " / ".join(ours) or NOT_RUN


def with_error(ours: Mapping[str, Any]) -> str:
    error = ours["standard_error"]
    return f"{ours['mean']:.2f}" + ("" if error is None else f" ± {error:.2f}")


def cost_cell(cost: Mapping[str, Any], in_mb: bool) -> str:
    theirs = "" if cost["paper"] is None else str(cost["paper"])
    if cost["difference"] is not None:
        theirs += f", {100 * cost['difference']:+.1f} %"
    ours = "" if cost["ours"] is None else number(cost["ours"], in_mb)
    return f"{ours} ({theirs})".strip() if theirs else ours


def number(value: float | None, in_mb: bool = False) -> str:
    """Four digits of a count with K, M or G behind them; of megabytes three."""
    if value is None:
        return "unknown"
    if in_mb:
        return f"{value:.3g}" if value < 1000 else f"{value:.0f}"
    for unit, letter in ((1e9, " G"), (1e6, " M"), (1e3, " K")):
        if value >= unit:
            return f"{value / unit:.4g}{letter}"
    return f"{value:g}"


def first_line(convention: str) -> str:
    return str(getattr(conventions, convention).__doc__).split("\n")[0]
