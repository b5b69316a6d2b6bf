"""Where a run lives: runs/<path of the config>/seed<k>/, so that a later step, a resume and a table find it.

A run of a W&B sweep lives in runs/<path of the config>/sweep_<id of the sweep>/<id of the run>/seed<k>/.
"""

import argparse
import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import IO, Any

from networks import InputError

EVALUATIONS = ("validate", "test", "predict")  # their results go to folders of these names inside the run's


def typed_configs(arguments: list[str]) -> list[str]:
    """The configs on a command line; the parser tells instead those that they include."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-c", "--config", action="append", default=[])
    return parser.parse_known_args(arguments)[0].config


def config_path(configs: list[str]) -> Path:
    """The path that names a run: of its first config, for others are overlays, without configs/ and the suffix."""
    if not configs:
        return Path("unnamed")
    path = Path(os.path.abspath(configs[0])).with_suffix("")
    base = Path.cwd()
    relative = path.relative_to(base) if path.is_relative_to(base) else path
    parts = relative.parts[1:] if relative.parts[0] == "configs" else relative.parts
    return Path(*(part for part in parts if part != path.anchor))


def needed_config(arguments: list[str]) -> Path:
    """The path that names what a command line's config says.

    Raises:
        InputError: there is no config.
    """
    configs = typed_configs(arguments)
    if not configs:
        raise InputError("give a config with -c: what it says is kept under its name")
    return config_path(configs)


def run_folder(configs: list[str], seed: int | bool, in_sweep: bool = True) -> Path:
    """Folder of the run of a config.

    The config that a run saved belongs to that run, or with another seed to a run beside it. Inside a W&B sweep a run
    has a folder of its own, unless it is asked for one outside.
    """
    if configs and (Path(configs[0]).parent / "run.json").exists():
        saved = Path(os.path.abspath(configs[0])).parent
        home = saved.parent if saved.name in EVALUATIONS else saved
        home = home.relative_to(Path.cwd()) if home.is_relative_to(Path.cwd()) else home
        return home if home.name.split(".")[0] == _seed(seed) else home.with_name(_seed(seed))
    return Path("runs") / config_path(configs) / (_sweep() if in_sweep else Path()) / _seed(seed)


def _sweep() -> Path:
    """What `wandb agent` adds, for its runs have the config in common, differ in options, and may run at once."""
    sweep, run = os.environ.get("WANDB_SWEEP_ID"), os.environ.get("WANDB_RUN_ID")
    return Path(f"sweep_{sweep}", run) if sweep and run else Path()


def _seed(seed: int | bool) -> str:
    return "unseeded" if seed is False else f"seed{seed}"


def lock(folder: Path) -> IO[str]:
    """Claim a run folder for as long as the file that is returned stays open, or until the process dies.

    Raises:
        InputError: another process trains there.
    """
    place = folder.absolute()
    path = place.with_name(f".{place.name}.lock")  # beside it, for the folder may be renamed
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        path = place / ".lock"
    file = open(path, "w")  # noqa: SIM115
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # flock would outlive a killed process in its workers
    except OSError as error:
        file.close()
        raise InputError(
            f"another process is training in {folder}: wait for it, or give this run another seed "
            "(--seed_everything) or folder (--trainer.default_root_dir)"
        ) from error
    return file


def set_aside(path: Path) -> Path | None:
    """Rename what an earlier run left there to <path>.1, .2, ..., so that a new one loses nothing."""
    return path.rename(_free(path)) if path.exists() else None


def put_back(kept: Path) -> None:
    """Undo what set <path>.1 aside: nothing else of that name is needed."""
    path = kept.with_suffix("")
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    kept.rename(path)


def _free(path: Path) -> Path:
    """The first of <path>.1, .2, ... that is not there."""
    number = 1
    while (free := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    return free


def set_another_aside(path: Path, result: dict[str, Any], settings: tuple[str, ...]) -> None:
    """Keep the JSON file that is there, if it has other settings than what will be written, and say so."""
    if not path.is_file():
        return
    try:
        kept = json.loads(path.read_text())
    except ValueError:  # cut off, or of other hands
        kept = {}
    if any(kept.get(name) != json.loads(json.dumps(result[name])) for name in settings):
        print(f"kept the result of other settings: {set_aside(path)}")


def copy_aside(path: Path) -> Path | None:
    """Copy a file to <path>.1, .2, ..., so that it can be written anew, and is there if that never happens."""
    return Path(shutil.copy(path, _free(path))) if path.exists() else None
