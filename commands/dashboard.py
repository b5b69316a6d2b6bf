"""`frugal dashboard`: a workspace and a report of a W&B project, made from code."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from commands.options import Options
from networks import InputError

DESCRIPTION = """\
Make a saved workspace and a report of a Weights & Biases project, for runs of all methods together: accuracy against
BOPs, FLOPs and stored size, curves of loss and top-1, what tickets keep, how experts are used, where epitomes are read,
layer by layer, learning rates, pictures, and what differs between runs.

  frugal fit -c configs/biprop/digits/conv2_mpt1_32.yaml --trainer.logger WandbLogger --trainer.logger.project digits
  frugal dashboard digits

Each call makes a new view and a new report, and changes none that is there. Where there is no login (`wandb login`) or
no server, runs/dashboard_PROJECT.json says what would have been sent. docs/dashboards.md has the names of all metrics.
"""
SECONDS = 20  # to answer


def main(arguments: list[str] | None = None) -> None:
    """Send workspace and report, or write them."""
    parser = Options("dashboard", DESCRIPTION)
    parser.add_argument("project", metavar="PROJECT", help="the project's name, as in --trainer.logger.project")
    parser.add_argument("--entity", default="", help="user or team that has it; the default is W&B's own")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="send nothing: write what would be sent")
    options = parser.parse_args(arguments)
    if "/" in options.project:
        raise InputError(f"{options.project} is more than a project's name: give its owner as --entity")
    layout = _layout()
    if options.out:
        write(layout, options.project, options.entity, options.out)
        print(f"{options.out}: what would be sent")
        return
    try:
        send(layout, options.project, options.entity)
    except Exception as error:  # W&B's, its transport's or its server's: which ones is not documented
        path = Path("runs") / f"dashboard_{options.project}.json"
        write(layout, options.project, options.entity, path)
        print(f"W&B could not take it: {' '.join(str(error).split())} What would be sent is in {path}")


def send(layout: ModuleType, project: str, entity: str) -> None:
    """Make a workspace and a report; W&B says where they are."""
    import wandb

    with nobody_to_ask():
        entity = entity or wandb.Api(timeout=SECONDS).default_entity or ""
        layout.workspace(project, entity).save()
        layout.report(project, entity).save()


def write(layout: ModuleType, project: str, entity: str, path: Path) -> None:
    """Write both to a JSON file, as the server would get them."""
    content = {
        name: make(project, entity)._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)
        for name, make in (("workspace", layout.workspace), ("report", layout.report))
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def _layout() -> ModuleType:
    try:
        from commands import dashboard_layout
    except ModuleNotFoundError as error:
        raise InputError("a dashboard is made with wandb-workspaces: pip install -e '.[dashboard]'") from error
    return dashboard_layout


@contextmanager
def nobody_to_ask() -> Iterator[None]:
    """Without a terminal W&B fails where it would ask for a key."""
    asked = sys.stdin
    with open(os.devnull) as sys.stdin:
        try:
            yield
        finally:
            sys.stdin = asked
