"""Where a run lives: runs/<path of the config>/seed<k>/, so that a later step, a resume and a table find it."""

import os
from pathlib import Path

from networks import InputError

EVALUATIONS = ("validate", "test", "predict")  # their results go to folders of these names inside the run's


def run_folder(configs: list[str], seed: int | bool) -> Path:
    """Folder of the run of a config; the first of several names it, for the others are overlays.

    The config that a run saved belongs to that run, or with another seed to a run beside it.
    """
    if not configs:
        return Path("runs/unnamed") / _seed(seed)
    path = Path(os.path.abspath(configs[0])).with_suffix("")
    base = Path.cwd()
    relative = path.relative_to(base) if path.is_relative_to(base) else path
    if (path.parent / "run.json").exists():
        home = relative.parent.parent if relative.parent.name in EVALUATIONS else relative.parent
        return home if home.name.split(".")[0] == _seed(seed) else home.with_name(_seed(seed))
    parts = relative.parts[1:] if relative.parts[0] == "configs" else relative.parts
    return Path("runs", *(part for part in parts if part != path.anchor)) / _seed(seed)


def _seed(seed: int | bool) -> str:
    return "unseeded" if seed is False else f"seed{seed}"


def set_aside(path: Path) -> Path | None:
    """Rename what an earlier run left there to <path>.1, .2, ..., so that a new one loses nothing."""
    if not path.exists():
        return None
    number = 1
    while (kept := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    path.rename(kept)
    return kept


def checkpoint(folder: Path, given: str | None) -> Path | None:
    """The checkpoint file meant by --ckpt_path: `last` and `best` are those of the run folder.

    Raises:
        InputError: there is no such file.
    """
    if given is None:
        return None
    if given not in ("last", "best"):
        if not Path(given).is_file():
            raise InputError(f"no checkpoint at {given}; --ckpt_path takes a file, last or best")
        return Path(given)
    path = folder / "checkpoints" / f"{given}.ckpt"
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}: run `frugal fit` with this config first, or give --ckpt_path FILE")
    return path
