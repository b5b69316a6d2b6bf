"""`frugal search`: draw channel lists within a budget, train each, rank them (Han et al., CVPR 2021, Section 4)."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from callbacks.folder import write_whole
from callbacks.record import provenance
from commands.run_folder import lock, needed_config, set_another_aside, typed_configs
from commands.seeds import room_for, warn_of_other_code, write
from networks import InputError
from networks.rexnet.space import PUBLISHED, Around
from studies import pool, ranking
from studies.search_options import Pool, Search, SearchCLI
from studies.trials import Trial


def main(arguments: Sequence[str]) -> None:
    """Search, and show what was found."""
    given = list(arguments)
    cli = SearchCLI(given)
    name = needed_config(given)
    options = cli.config_init
    folder, path = Path("runs") / name, room_for(Path("results") / f"{name}.json")
    with lock(folder):
        study = Study(folder, options["search"], cli.around, cli.recipe, cli.datamodule.num_classes)
        cli.datamodule.prepare_data()
        cli.datamodule.setup("fit")
        study.run(given, options["ray"])
    measured = study.result()
    warn_of_other_code([run for row in measured["lists"] for run in row["runs"]])
    result = {"config": typed_configs(given)[0], "arguments": given, **measured, **provenance()}
    set_another_aside(path, result, ("budget", "seeds", "mode", "recipe"))
    write(result, path)
    ranking.draw(result, folder / "widths.png")
    print(folder / "widths.png")
    for table in ranking.tables(result):
        Console().print(table)


class Study:
    """A folder of trials: study.json says of what, trials/<list>_seed<k>.json what each one gave.

    Raises:
        InputError: the folder has a study of another budget or recipe, and all that the search refuses.
    """

    def __init__(self, folder: Path, search: Search, around: Around, recipe: dict[str, Any], classes: int) -> None:
        self.folder, self.search, self.around = folder, search, around
        self.recipe, self.classes = recipe, classes
        self.lists = search.channel_lists(around)
        own = {"budget": asdict(search.limits), "draw_seed": search.draw_seed, "recipe": recipe}
        (folder / "trials").mkdir(parents=True, exist_ok=True)
        if any((folder / "trials").glob("*.json")):
            _refuse_another(folder / "study.json", json.loads(json.dumps(own)))
        write_whole(folder / "study.json", json.dumps(own, indent=1) + "\n")

    def run(self, arguments: list[str], workers: Pool) -> None:
        """Train what is not trained yet."""
        first, *others = self.search.seeds
        if self.search.mode == "faithful":
            wanted = [Trial(channels, seed) for seed in self.search.seeds for channels in self.lists]
            self._train(arguments, workers, wanted)
            return
        self._train(arguments, workers, [Trial(channels, first) for channels in self.lists])
        while True:  # means over seeds may bring other lists into the tenths
            scores = [statistics.fmean(run["top1"] for run in self._runs(channels)) for channels in self.lists]
            near = ranking.near_the_tenths(scores)
            wanted = [Trial(self.lists[place], seed) for seed in others for place in near]
            if all(self._path(trial).is_file() for trial in wanted):
                return
            self._train(arguments, workers, wanted)

    def _train(self, arguments: list[str], workers: Pool, trials: list[Trial]) -> None:
        missing = [trial for trial in trials if not self._path(trial).is_file()]
        group = self.folder.relative_to("runs").as_posix()

        def keep(measured: dict[str, Any]) -> None:
            path = self._path(Trial(tuple(measured["channels"]), measured["seed"]))
            write_whole(path, json.dumps(measured, indent=1) + "\n")

        pool.run(arguments, missing, workers, group, keep, done=len(trials) - len(missing))

    def _path(self, trial: Trial) -> Path:
        return self.folder / "trials" / f"{trial.name}.json"

    def _runs(self, channels: tuple[int, ...]) -> list[dict[str, Any]]:
        """What the trials of a list gave, so far."""
        paths = [self._path(Trial(channels, seed)) for seed in self.search.seeds]
        return [json.loads(path.read_text()) for path in paths if path.is_file()]

    def result(self) -> dict[str, Any]:
        """All that was measured, from the best list on, and the groups."""
        lists = []
        for channels in self.lists:
            runs = [{name: run[name] for name in run if name != "channels"} for run in self._runs(channels)]
            cost = ranking.costs(channels, self.classes, self.around)
            lists.append({"channels": list(channels), **cost, "runs": runs})
        return {
            "budget": {"name": self.search.name, **asdict(self.search.limits)},
            "seeds": self.search.seeds,
            "mode": self.search.mode,
            "recipe": self.recipe,
            **ranking.ranked(lists, PUBLISHED.get(self.search.name, {})),
        }


def _refuse_another(path: Path, own: dict[str, Any]) -> None:
    if not path.is_file():
        return
    kept = json.loads(path.read_text())
    for name in own:
        if kept.get(name) != own[name]:
            raise InputError(
                f"{path.parent} holds a study of another {name} ({_difference(kept.get(name), own[name])}): rename "
                "that folder, or give this study a config of another name"
            )


def _difference(before: Any, now: Any, key: str = "") -> str:
    """The first thing in which two values differ, with its key."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted(before.keys() | now.keys()):
            if before.get(name) != now.get(name):
                return _difference(before.get(name), now.get(name), f"{key}.{name}" if key else name)
    return f"{key} {before}, now {now}".strip()
