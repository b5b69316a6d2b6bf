"""The papers' tables, row by row: their accuracy and costs beside ours, as plain data.

results/<method>/paper.yaml has what a paper prints, costs.json beside it what our networks cost, as counted (a test
counts them again), and the other JSON files what we measured. `frugal tables` prints it, `studies.documents` writes it
into the documents.
"""

import json
import logging
import math
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
import yaml

from networks import InputError

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
COSTS = ("params", "flops", "bops", "size")

Costs = Mapping[str, Mapping[str, float | None]]  # of a config, by convention


def methods() -> list[str]:
    """The methods whose papers' tables there are."""
    return sorted(path.parent.name for path in RESULTS.glob("*/paper.yaml"))


def paper(method: str) -> dict[str, Any]:
    """What the paper of a method prints."""
    return yaml.safe_load((RESULTS / method / "paper.yaml").read_text())


def needed(method: str) -> dict[str, list[str]]:
    """The conventions by which each config has to be counted, for the tables and for what we ran."""
    wanted: dict[str, set[str]] = {}
    for table in paper(method)["tables"]:
        for row in table["rows"]:
            if "config" in row:
                wanted.setdefault(f"configs/{method}/{row['config']}.yaml", set()).update(table["counts"].values())
    for result in measured(method):
        wanted.setdefault(result["config"], set()).update(COSTS)
    return {config: sorted(conventions) for config, conventions in sorted(wanted.items())}


def count(wanted: Mapping[str, Iterable[str]]) -> dict[str, dict[str, float | None]]:
    """Count the networks of configs, on all cores.

    Args:
        wanted: names of functions of `studies.conventions`, by config.
    """
    from rich.console import Console
    from rich.progress import track

    with ProcessPoolExecutor(initializer=logging.disable) as pool:  # else each says what it replaced
        counted = pool.map(_count, wanted, wanted.values(), chunksize=4)
        shown = track(counted, "counting networks", len(wanted), console=Console(stderr=True), transient=True)
        return dict(zip(wanted, shown, strict=True))


def _count(config: str, conventions: Iterable[str]) -> dict[str, float | None]:
    from callbacks.complexity import cost_of
    from commands.untrained import Untrained
    from studies import conventions as known

    with torch.device("meta"):
        model = Untrained(["-c", str(ROOT / config)]).model
    report = cost_of(model)
    return {name: getattr(known, name)(model.network, report) for name in conventions}


def kept_costs(method: str) -> dict[str, dict[str, float | None]]:
    """The counts in costs.json, and those that it lacks, counted."""
    path = RESULTS / method / "costs.json"
    kept = json.loads(path.read_text()) if path.is_file() else {}
    wanted = needed(method)
    lacking = {config: wanted[config] for config in wanted if not {*wanted[config]} <= kept.get(config, {}).keys()}
    return {**kept, **(count(lacking) if lacking else {})}


def measured(method: str) -> list[dict[str, Any]]:
    """What `frugal seeds`, `steps` and `cross-validate` wrote of a method's configs."""
    results = [json.loads(path.read_text()) for path in sorted((RESULTS / method).rglob("*.json"))]
    return [result for result in results if "metrics" in result]


def tables(method: str, costs: Costs) -> list[dict[str, Any]]:
    """Every table of a paper, a row for each of its rows.

    Args:
        method: one of `methods()`.
        costs: as `count` gives them for `needed(method)`.
    """
    ours = {result["config"]: result for result in measured(method)}
    return [
        {
            "table": table["table"],
            "title": table["title"],
            "plot": table.get("plot"),
            "counts": table["counts"],
            "rows": [_row(method, table, row, costs, ours) for row in table["rows"]],
        }
        for table in paper(method)["tables"]
    ]


def _row(
    method: str, table: Mapping[str, Any], row: Mapping[str, Any], costs: Costs, results: Mapping[str, Any]
) -> dict[str, Any]:
    config = f"configs/{method}/{row['config']}.yaml" if "config" in row else None
    printed = dict(zip(table["metrics"], row.get("paper", ()), strict=False))
    counted, result = (costs[config], results.get(config)) if config else ({}, None)
    return {
        "row": row["row"],
        "config": config,
        "accuracy": {
            name: {"paper": printed.get(name), "ours": accuracy(result, name) if result else None}
            for name in table["metrics"]
        },
        "costs": {
            cost: _cost(row.get(cost), counted.get(convention), in_mb=cost == "size")
            for cost, convention in table["counts"].items()
        },
        "note": row.get("note"),
    }


def accuracy(result: Mapping[str, Any], metric: str) -> dict[str, Any] | None:
    """Mean and standard error in per cent of a metric of the test data over the runs of a result."""
    values = result["metrics"].get(f"test/{metric}")
    if values is None:
        return None
    error = values["standard_error"]
    return {
        "mean": 100 * values["mean"],
        "standard_error": None if error is None else 100 * error,
        "runs": len(values["values"]),
    }


def _cost(printed: str | float | None, ours: float | None, in_mb: bool) -> dict[str, Any]:
    theirs = None if printed is None else float(printed) if in_mb else value(str(printed))
    known = theirs is not None and ours is not None
    return {"paper": printed, "ours": ours, "difference": ours / theirs - 1 if known else None}  # type: ignore[operator]


def value(printed: str) -> float:
    """The number that a paper prints as "1.44 M"."""
    match = re.fullmatch(r"([\d.]+) ?([KMG]?)", printed)
    if match is None:
        raise InputError(f"{printed!r} in a paper.yaml is no number with K, M, G or nothing behind it")
    return float(match[1]) * {"": 1, "K": 1e3, "M": 1e6, "G": 1e9}[match[2]]


def runs(method: str, costs: Costs) -> list[dict[str, Any]]:
    """What we ran: accuracy, length, and costs of each result."""
    return [
        {
            "config": result["config"],
            "metric": metric,
            **(accuracy(result, metric) or {}),
            "of": "folds" if "folds" in result else "seeds",
            "epochs": result["runs"][0]["epochs"],
            "hours": math.fsum(run["hours"] for run in result["runs"]),
            "hardware": result["runs"][0]["hardware"],
            "torch": result["runs"][0]["versions"]["torch"],
            "costs": costs[result["config"]],
        }
        for result in measured(method)
        for metric in ("top1", "box_ap")
        if f"test/{metric}" in result["metrics"]
    ]
