"""`frugal steps`: train and test a config after all the configs that it starts from."""

import os
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from commands import seeds
from commands.options import Options
from commands.references import checkpoint_of, references
from commands.run_folder import run_folder
from networks import InputError

DESCRIPTION = """\
Train and test a config and, before it, every config that it starts from or is taught by, in order, and report the
accuracy of each. A config names another by `initial_checkpoint` or a callback's `checkpoint`.

  frugal steps -c configs/expert_binary/digits/binary.yaml

Any option of `frugal fit` may follow, and holds for all of them; further configs are laid over each. Results go to
results/<path of each config>.json, as those of `frugal seeds`. Given again after an interruption, between configs or
inside one, the same command goes on where it was; what is done is not trained again.
"""


def main(arguments: list[str] | None = None) -> None:
    """Train, test and report, one config after the other."""
    parser = Options("steps", DESCRIPTION)
    seeds.add_arguments(parser, [0])
    options, overrides = seeds.parse(parser, arguments)
    last, *overlays = options.config
    last = os.path.relpath(last)  # as configs name each other
    chain = in_order(last, [part for config in overlays for part in ("-c", config)] + overrides)
    results = {}
    for number, (config, before) in enumerate(chain.items(), 1):
        print(f"step {number} of {len(chain)}: {config}", flush=True)
        for seed in options.seeds:
            check_order(config, before, seed)
        results[config] = seeds.run_all([config, *overlays], overrides, options.seeds, options.results)
    Console().print(table(results))


def in_order(config: str, options: list[str]) -> dict[str, list[str]]:
    """A config and all that it names, directly or not, each behind those that it names itself.

    Raises:
        InputError: configs that name each other in a circle, or a file that is not there.
    """
    from commands.train import parse

    chain: dict[str, list[str]] = {}
    open_ones: list[str] = []

    def visit(config: str) -> None:
        if config in chain:
            return
        if config in open_ones:
            raise InputError(f"configs start from each other in a circle: {' -> '.join([*open_ones, config])}")
        if not Path(config).is_file():
            raise InputError(f"no config at {config}" + (f", from which {open_ones[-1]} starts" if open_ones else ""))
        open_ones.append(config)
        before = list(dict.fromkeys(reference.config for reference in references(parse(["-c", config, *options]))))
        for other in before:
            visit(other)
        chain[open_ones.pop()] = before

    visit(config)
    return chain


def check_order(config: str, before: list[str], seed: int) -> None:
    """Refuse a run that was trained from weights that are no longer those of its predecessor."""
    own = checkpoint_of(config, seed)
    for other in before:
        theirs = checkpoint_of(other, seed)
        if own.is_file() and theirs.is_file() and own.stat().st_mtime < theirs.stat().st_mtime:
            raise InputError(
                f"{run_folder([config], seed)} was trained before {run_folder([other], seed)}, from which it starts: "
                "rename it, and the same command trains it anew"
            )


def table(results: dict[str, dict[str, Any]]) -> Table:
    """A line for each config."""
    metrics = list(next(iter(results.values()))["metrics"])
    folder = os.path.commonpath([Path(config).parent for config in results])
    shown = Table("step", *metrics, "hours", title=f"{folder}: mean, and standard error of several seeds")
    for config, result in results.items():
        cells = []
        for name in metrics:
            values = result["metrics"].get(name)
            error = values and values["standard_error"]
            cells.append("-" if not values else f"{values['mean']:.4f}" + (f" ± {error:.4f}" if error else ""))
        shown.add_row(
            str(Path(config).relative_to(folder).with_suffix("")),
            *cells,
            f"{sum(run['hours'] for run in result['runs']):.2f}",
        )
    return shown
