"""`frugal seeds`: train and test one config with several seeds."""

import argparse
import errno
import json
import math
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.table import Table

from commands.options import Options
from commands.run_folder import config_path, run_folder, set_another_aside
from networks import InputError

DESCRIPTION = """\
Train and test a config with several seeds, one after the other, and write mean and standard error of each test metric
to results/<path of the config>.json, with every run's curve, hours, commit, versions and hardware.

  frugal seeds -c configs/biprop/digits/conv2_mpt1_32.yaml --seeds 0,1,2

Any option of `frugal fit` may follow. Given again after an interruption, the same command goes on where it was; seeds
that are done are not trained again. A result of other seeds or options is kept aside.
"""
DESCRIBED = ("config", "overlays", "overrides")  # what `described` tells


def main(arguments: list[str] | None = None) -> None:
    """Train, test and summarise."""
    parser = Options("seeds", DESCRIPTION)
    add_arguments(parser, [0, 1, 2])
    options, overrides = parse(parser, arguments)
    result = run_all(options.config, overrides, options.seeds, options.results)
    Console().print(table(result))


def add_arguments(parser: argparse.ArgumentParser, default_seeds: list[int]) -> None:
    """What is trained, and where the results go."""
    parser.add_argument("-c", "--config", action="append", required=True, help="config of the run, and its overlays")
    shown = ",".join(map(str, default_seeds))
    parser.add_argument("--seeds", type=_seeds, default=default_seeds, metavar="0,1,2", help=f"the default is {shown}")
    parser.add_argument(
        "--results", type=Path, default=Path("results"), metavar="FOLDER", help="the default is results"
    )


def parse(parser: argparse.ArgumentParser, arguments: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Our options, and those of `frugal fit`."""
    options, overrides = parser.parse_known_args(arguments)
    for name in ("--ckpt_path", "--seed_everything", "--trainer.default_root_dir", "--checkpoint.dirpath"):
        if any(option.split("=")[0] == name for option in overrides):
            parser.error(f"{name} is chosen for each seed: leave it out")
    return options, overrides


def run_all(configs: list[str], overrides: list[str], seeds: list[int], results: Path) -> dict[str, Any]:
    """Train and test with every seed, and write the summary to results/<path of the config>.json."""
    given = [part for config in configs for part in ("-c", config)] + overrides
    folders = {seed: run_folder(configs, seed) for seed in seeds}
    path = room_for(results / f"{config_path(configs)}.json")
    for seed, folder in folders.items():
        train_and_test(f"seed {seed}", folder, [*given, "--seed_everything", str(seed)])
    result = summary(configs, overrides, folders)
    set_another_aside(path, result, (*DESCRIBED, "seeds"))
    write(result, path)
    return result


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(seed) for seed in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} are no seeds, such as 0,1,2") from error
    if len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f"{text} names a seed twice")
    return seeds


def train_and_test(run: str, folder: Path, given: list[str]) -> None:
    """Bring a run to its end, from wherever it is.

    Args:
        run: what it is called in messages.
        folder: of the run.
        given: options of `fit` and `test`.
    """
    command(run, "fit", *given, "--ckpt_path", "last")
    lengths = {yaml.safe_load(path.read_text())["trainer"]["max_epochs"] for path in folder.glob("config.yaml*")}
    if len(lengths) > 1:
        raise InputError(
            f"{folder} was trained with different trainer.max_epochs, {sorted(lengths)}: no single recipe gives its "
            "result; rename the folder, and the same command trains anew"
        )
    command(run, "test", *given)


def command(run: str, *arguments: str) -> None:
    """Run a subcommand, and end with it where it fails or is stopped."""
    print(f"{run}: {arguments[0]}", flush=True)
    status = process(*arguments)
    if status < 0 or status > 2:  # by a signal; what cannot work has said so
        print(f"{run} has stopped; the same command goes on from there", file=sys.stderr)
    if status:
        sys.exit(status if status > 0 else 128 - status)


def process(*arguments: str) -> int:
    """Exit status of `frugal` in a process of its own, which is given the time to save when this one shall stop."""
    child: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, frame: FrameType | None) -> None:
        if child and number == signal.SIGTERM:  # Ctrl-C reaches the child by itself
            child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        child = subprocess.Popen([sys.executable, "-m", "frugal", *arguments])
        return child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def summary(configs: list[str], overrides: list[str], folders: dict[int, Path]) -> dict[str, Any]:
    """What the runs measured, with where and how."""
    runs = [{"seed": seed, **run(folder)} for seed, folder in folders.items()]
    warn_of_other_code(runs)
    return {**described(configs, overrides), "seeds": list(folders), "metrics": spreads(runs), "runs": runs}


def warn_of_other_code(runs: list[dict[str, Any]]) -> None:
    """Runs that were kept from before may be of other code, which the summary of all does not show."""
    commits = {str(run["commit"])[:7] + ("+" if run["uncommitted_changes"] else "") for run in runs}
    if len(commits) > 1 or any(commit.endswith("+") for commit in commits):
        print(f"mind: these runs are of {', '.join(sorted(commits))} (+: with uncommitted changes)", file=sys.stderr)


def described(configs: list[str], overrides: list[str]) -> dict[str, Any]:
    """What was run."""
    return {
        "config": Path(configs[0]).as_posix(),
        "overlays": [Path(config).as_posix() for config in configs[1:]],
        "overrides": overrides,
    }


def spreads(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard error of each metric over runs."""
    return {name: spread([run["metrics"][name] for run in runs]) for name in runs[0]["metrics"]}


def room_for(path: Path) -> Path:
    """A result's path, where it can be written: asked before hours are spent on it.

    Raises:
        InputError: a folder has its name.
        OSError: its folder cannot be made, or written to.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder, and results go there: rename it")
    above = next(folder for folder in path.parents if folder.exists())
    if not above.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(above))
    if not os.access(above, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(above))
    return path


def write(result: dict[str, Any], path: Path) -> None:
    """Write a result to a JSON file, and say where."""
    from callbacks.folder import write_whole

    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(result, indent=1) + "\n")
    print(path)


def run(folder: Path) -> dict[str, Any]:
    """One run's test metrics, its best epoch by the validation data, hours, curve and record."""
    checkpoint = torch.load(folder / "checkpoints/last.ckpt", map_location="cpu", weights_only=True)
    curves = checkpoint["callbacks"]["TrainingCurves"]
    metrics = json.loads((folder / "test/metrics.json").read_text())
    names = {name for row in curves["history"] for name in row if name.startswith("val/") and name != "val/loss"}
    best = {f"best {name}": max(row[name] for row in curves["history"] if name in row) for name in sorted(names)}
    record = json.loads((folder / "run.json").read_text())
    layers = checkpoint["callbacks"].get("LayerMonitor", {}).get("history", [])
    return {
        "metrics": {**metrics, **best},
        "epochs": len(curves["history"]),
        "hours": round(curves["hours"], 4),
        **{name: record[name] for name in ("commit", "uncommitted_changes", "versions", "hardware")},
        "layers": {m: {k: round(v, 6) for k, v in values.items()} for m, values in layers[-1].items()}
        if layers
        else {},
        "curve": [{name: round(value, 6) for name, value in row.items()} for row in curves["history"]],
    }


def spread(values: list[float]) -> dict[str, Any]:
    """Mean and standard error, the latter None of a single value."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "standard_error": error, "values": values}


def table(result: dict[str, Any], runs: Sequence[str] | None = None) -> Table:
    """A line for each metric; `runs` are the names of the runs, by default their seeds."""
    columns = [f"seed {seed}" for seed in result["seeds"]] if runs is None else runs
    shown = Table("metric", "mean", "standard error", *columns)
    for name, values in result["metrics"].items():
        error = values["standard_error"]
        shown.add_row(
            name,
            f"{values['mean']:.4f}",
            "-" if error is None else f"{error:.4f}",
            *(f"{value:.4f}" for value in values["values"]),
        )
    return shown
