"""`frugal cross-validate`: train and test one config on each fold of its data."""

import csv
import os
import secrets
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from commands import seeds
from commands.options import Options
from commands.run_folder import config_path, lock, run_folder, set_another_aside, set_aside
from networks import InputError

DESCRIPTION = """\
Train and test a config once for each fold of its data (ESC50 has five), which is then the test set, and write mean and
standard error of each test metric over the folds to results/<path of the config>_folds_seed<k>.json, with every run's
curve, hours, commit, versions and hardware. A confusion matrix of all folds together is drawn into
runs/<path of the config>/.

  frugal cross-validate -c configs/epitome/esc50/ws25.yaml

Any option of `frugal fit` may follow. Given again after an interruption, the same command goes on where it was; folds
that are done are not trained again. In Weights & Biases the folds and their summary are one group.
"""
CHOSEN = ("--ckpt_path", "--data.test_fold", "--data.init_args.test_fold", "--trainer.default_root_dir")


def main(arguments: list[str] | None = None) -> None:
    """Train, test and summarise."""
    parser = Options("cross-validate", DESCRIPTION)
    parser.add_argument("-c", "--config", action="append", required=True, help="config of the runs, and its overlays")
    parser.add_argument("--seed_everything", type=int, default=0, metavar="SEED", help="of all folds; the default is 0")
    parser.add_argument(
        "--results", type=Path, default=Path("results"), metavar="FOLDER", help="the default is results"
    )
    options, overrides = parser.parse_known_args(arguments)
    for name in (*CHOSEN, "--checkpoint.dirpath"):
        if any(option.split("=")[0] == name for option in overrides):
            parser.error(f"{name} is chosen for each fold: leave it out")
    result = run_all(options.config, overrides, options.seed_everything, options.results)
    Console().print(seeds.table(result, [f"fold {fold}" for fold in result["folds"]]))


def run_all(configs: list[str], overrides: list[str], seed: int, results: Path) -> dict[str, Any]:
    """Train and test on every fold, and write the summary to results/<path of the config>_folds_seed<k>.json."""
    given = [part for config in configs for part in ("-c", config)] + [*overrides, "--seed_everything", str(seed)]
    cli = _build(given)
    home = run_folder(configs, seed)
    folders = {fold: home.parent / f"fold{fold}" / home.name for fold in range(1, cli.datamodule.folds + 1)}
    path = seeds.room_for(results / f"{config_path(configs)}_folds_{home.name}.json")
    group = os.environ.setdefault("WANDB_RUN_GROUP", f"{config_path(configs)}/{home.name}")
    for fold, folder in folders.items():
        if (folder / "run.json").exists() and not (folder / "checkpoints/last.ckpt").exists():
            with lock(folder):  # unless another process is training there
                set_aside(folder)  # it was stopped before there was anything to go on from
        own = [*given, "--data.test_fold", str(fold), "--trainer.default_root_dir", str(folder)]
        seeds.train_and_test(f"fold {fold}", folder, own)
        seeds.command(f"fold {fold}", "predict", *own)
    result = summary(configs, overrides, seed, folders)
    set_another_aside(path, result, seeds.DESCRIBED)
    seeds.write(result, path)
    picture = home.with_name(f"confusion_{home.name}.png")
    draw(result, picture)
    print(picture)
    _log_to_wandb(cli.config.trainer.logger, group, result, picture)
    return result


def _build(given: list[str]) -> Any:
    """Data and configuration of the runs.

    Raises:
        InputError: what cannot work, before anything is trained; data without folds.
    """
    from commands.untrained import Untrained

    cli = Untrained(given)
    if not hasattr(cli.datamodule, "folds"):
        raise InputError(f"{type(cli.datamodule).__name__} has no folds to validate across: datamodules.ESC50 has")
    if cli.datamodule.validates:
        raise InputError("data.val_fold would be the test fold of one run: leave it out")
    return cli


def summary(configs: list[str], overrides: list[str], seed: int, folders: dict[int, Path]) -> dict[str, Any]:
    """What the runs measured, and a confusion matrix over all of them: true classes by predicted ones."""
    runs = [{"fold": fold, "seed": seed, **seeds.run(folder)} for fold, folder in folders.items()]
    seeds.warn_of_other_code(runs)
    classes, counts = confusion([folder / "predict/predictions.csv" for folder in folders.values()])
    return {
        **seeds.described(configs, overrides),
        "seeds": [seed],
        "folds": list(folders),
        "metrics": seeds.spreads(runs),
        "classes": classes,
        "confusion": counts.tolist(),
        "runs": runs,
    }


def confusion(paths: list[Path]) -> tuple[list[str], np.ndarray]:
    """Class names, and how many samples of each (rows) were taken for each (columns), of predictions.csv files."""
    pairs: list[tuple[str, str]] = []
    classes: list[str] = []
    for path in paths:
        with open(path, newline="") as file:
            rows = csv.DictReader(file)
            classes = [name[2:-1] for name in rows.fieldnames or () if name.startswith("p(")]
            pairs += [(row["label"], row["predicted"]) for row in rows]
    counts = np.zeros((len(classes), len(classes)), int)
    for label, predicted in pairs:
        counts[classes.index(label), classes.index(predicted)] += 1
    return classes, counts


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw the confusion matrix into a PNG file."""
    from matplotlib.figure import Figure

    classes, counts = result["classes"], np.array(result["confusion"])
    side = max(4.5, 0.26 * len(classes) + 2.2)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure.colorbar(axes.imshow(shares, vmin=0, vmax=1, cmap="Blues"), ax=axes, label="share of the true class")
    names = [name.replace("_", " ") for name in classes]
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    for row, column in zip(*np.nonzero(counts), strict=True):
        light = shares[row, column] > 0.6
        axes.text(
            column, row, counts[row, column], ha="center", va="center", fontsize=6, color="white" if light else "0.2"
        )
    top1 = result["metrics"]["test/top1"]
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(f"test/top1 {top1['mean']:.4f} ± {top1['standard_error']:.4f}, {len(result['folds'])} folds")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _log_to_wandb(loggers: Any, group: str, result: dict[str, Any], picture: Path) -> None:
    """Add a run with mean, standard error and the picture to the folds' group; a repeated command goes on in it."""
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        if not str(getattr(logger, "class_path", "")).endswith("WandbLogger"):
            continue
        import wandb

        given, kept = logger.init_args, picture.with_suffix(".wandb_id")
        if not kept.is_file():
            kept.write_text(secrets.token_hex(4))
        with wandb.init(
            id=kept.read_text(),
            resume="allow",
            project=given.project,
            entity=given.get("entity"),
            group=group,
            name=f"{group}: all folds",
            job_type="cross-validation",
            dir=str(picture.parent),
            mode="offline" if given.offline else None,
        ) as run:
            for name, values in result["metrics"].items():
                run.summary[f"{name} (mean)"] = values["mean"]
                run.summary[f"{name} (standard error)"] = values["standard_error"]
            run.log({"confusion": wandb.Image(str(picture))})
