"""Every command of the README and the docs runs as it stands there, and so does every piece of Python."""

import csv
import re
import shlex
from pathlib import Path

import pytest
import torch
import wandb

import frugal
from commands import seeds
from commands.train import FrugalCLI
from studies.search_options import SearchCLI

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Of each step two batches, instead of minutes.
SHORT = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--model.warmup_epochs", "0"]
MY_OWN = """\
from torch import nn


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
"""


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A working directory with the clone's configs and a user's own module, but without its runs."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "my_own.py").write_text(MY_OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(seeds, "process", in_this_process)
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *args, **options: None)  # from elsewhere


def in_this_process(*arguments):
    """`frugal seeds` runs its commands here: quicker, and the same."""
    try:
        frugal.main(list(arguments))
    except SystemExit as stop:
        return stop.code or 0
    return 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands(clone, page):
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    lines = [shlex.split(line, comments=True) for block in blocks(page, "sh") for line in block.splitlines()]
    assert lines
    for program, *arguments in filter(None, lines):
        if program == "make":  # .ci/run runs these
            assert set(arguments) <= set(targets)
        elif program == "wandb" and arguments[0] == "sweep":  # tests/test_configs.py expands them
            assert Path(arguments[1]).is_file()
        elif program == "wandb":  # needs a server
            assert arguments[0] == "sync"
            assert all(len(list(Path().glob(pattern))) == 1 for pattern in arguments[1:])
        else:
            assert program == "frugal"
            line = " ".join(arguments)
            takes_data = arguments[0] in ("fit", "test", "validate", "predict", "seeds", "steps", "cross-validate")
            if takes_data and "digits" not in line and "-c" in line:
                with torch.device("meta"):  # the data are not here, or it takes hours
                    FrugalCLI(re.sub(r" --seeds \S+", "", line).split()[1:], run=False)
            elif arguments[0] == "search":  # tests/studies runs some, and each takes minutes
                SearchCLI(arguments[1:])
            elif arguments[0] == "rank":
                frugal.main([*arguments, "--study.networks", "1"])
            elif arguments[0] == "latency":
                frugal.main([*arguments, "--runs", "1"])
            elif arguments[0] == "steps":
                frugal.main([*arguments, *SHORT])
            else:
                frugal.main(arguments)
                wandb.finish()  # else the next command would go on in this one's run
    if page.name in ("README.md", "biprop.md"):
        with open("runs/biprop/digits/conv2_mpt1_32/seed0/test/metrics.csv", newline="") as file:
            assert float(next(csv.DictReader(file))["test/top1"]) >= 0.93


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_python(page, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), {})
    printed = capsys.readouterr().out
    if page.name == "README.md":
        assert printed.startswith("2335792 ")
    elif page.name == "biprop.md":
        assert float(re.search(r"top-1 ([\d.]+)", printed)[1]) >= 0.93
