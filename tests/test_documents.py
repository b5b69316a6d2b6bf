"""Every command of the README and the docs runs as it stands there, and so does every piece of Python."""

import csv
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import wandb

import frugal
from commands import seeds
from commands.train import FrugalCLI
from studies.search_options import SearchCLI

ROOT = Path(__file__).parent.parent
OWN_NETWORK, OWN_METHOD = ROOT / "docs/your_own_network.md", ROOT / "docs/your_own_method.md"
PAGES = [ROOT / "README.md", *sorted(set((ROOT / "docs").glob("*.md")) - {OWN_METHOD})]
# In one process, for imports take the longest: the page's commands, then what finds a method by its name.
METHOD_USER = """\
import shlex, sys
import frugal, pytest
for line in sys.argv[1:]:
    program, *arguments = shlex.split(line)
    assert not {"frugal": frugal.main, "pytest": pytest.main}[program](arguments)
import networks
from lightning_modules import initial
net = networks.compressed("resnet18", "ternary")
print(end="compressed " if type(net.conv1) is networks.ternary.TernaryConv2d else "")
last = initial.read("runs/ternary/digits/conv2/seed0/checkpoints/last.ckpt")
module = initial.rebuild(last.path, last.method, last.hyper_parameters, "")
module.load_state_dict(last.tensors)
print("rebuilt")
"""
NAMED = r"# (\S+\.(?:py|yaml))\n"
# Of each training but the demo's, instead of minutes.
FEW = ["--trainer.limit_train_batches", "2"]
SHORT = ["--trainer.max_epochs", "1", *FEW]
DEMO = "configs/biprop/digits/conv2_mpt1_32.yaml"


def blocks(page, language):
    """Pieces of code, but for files."""
    pieces = re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)
    return [piece for piece in pieces if not re.match(NAMED, piece)]


def write_files(page, folder):
    """Write the files that a page shows: pieces of code whose first line is their name."""
    for piece, name in re.findall(rf"```\w+\n({NAMED}.*?)```", page.read_text(), re.DOTALL):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(piece.partition("\n")[2])


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A working directory with the clone's configs and a user's own modules, but without its runs."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    write_files(OWN_NETWORK, tmp_path)
    for path in tmp_path.glob("*.py"):  # other tests have modules of these names
        monkeypatch.delitem(sys.modules, path.stem, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(seeds, "process", in_this_process)
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *args, **options: None)  # from elsewhere
    yield
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(path.stem, None)


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
            if takes_data and "digits" not in line and "-c" in arguments:
                with torch.device("meta"):  # the data are not here, or it takes hours
                    FrugalCLI(re.sub(r" --seeds \S+", "", line).split()[1:], run=False)
            elif arguments[0] == "search":  # tests/studies runs some, and each takes minutes
                SearchCLI(arguments[1:])
            elif arguments[0] == "rank":
                frugal.main([*arguments, "--study.networks", "1"])
            elif arguments[0] == "latency":
                frugal.main([*arguments, "--runs", "1"])
            elif arguments[0] == "steps" and page.name == "README.md":
                assert " ".join([program, line]) in (ROOT / "docs/expert_binary.md").read_text()  # which runs it
            elif arguments[0] == "steps":
                frugal.main([*arguments, *SHORT, "--model.warmup_epochs", "0", "--trainer.limit_test_batches", "3"])
            elif arguments[0] == "seeds":  # of which the demo's is trained
                frugal.main([re.sub(r"^0(,\d+)+$", "0", argument) for argument in arguments])
            elif takes_data and not (page.name == "README.md" and DEMO in line):
                frugal.main([*arguments, *(FEW if "max_epochs" in line else SHORT)])
            else:
                frugal.main(arguments)
            wandb.finish()  # else the next command would go on in this one's run
    if page.name == "README.md":
        with open("runs/biprop/digits/conv2_mpt1_32/seed0/test/metrics.csv", newline="") as file:
            assert float(next(csv.DictReader(file))["test/top1"]) >= 0.93


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_python(clone, page, capsys):
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), {})
    printed = capsys.readouterr().out
    if page.name == "README.md":
        assert printed.startswith("2335792 ")
    elif page.name == "biprop.md":
        assert float(re.search(r"top-1 ([\d.]+)", printed)[1]) >= 0.93


def test_a_method_of_your_own(tmp_path):
    """The page's files, in a copy of the repository, are all that a method needs."""
    for room in ("callbacks", "commands", "datamodules", "studies", "frugal.py", "pyproject.toml"):
        (tmp_path / room).symlink_to(ROOT / room)
    for room in ("lightning_modules", "networks"):
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    write_files(OWN_METHOD, tmp_path)
    new = sorted({path for path in tmp_path.rglob("*") if path.is_file()} - before)
    sources = [path for path in new if path.suffix == ".py"]
    for check in (["check"], ["format", "--check"]):
        subprocess.run([sys.executable, "-m", "ruff", *check, *sources], check=True, cwd=tmp_path)
    lines = [line for block in blocks(OWN_METHOD, "sh") for line in block.splitlines()]
    done = subprocess.run(
        [sys.executable, "-c", METHOD_USER, *lines], check=True, cwd=tmp_path, capture_output=True, text=True
    )
    run = tmp_path / "runs/ternary/digits/conv2/seed0"
    assert json.loads((run / "test/metrics.json").read_text())["test/top1"] > 0.8
    assert (run / "layers.png").is_file()
    assert re.search(r"convs.2 +TernaryConv2d .* 4,640$", done.stdout, re.MULTILINE)  # 2 * 2304 + 32 bits
    assert "2 passed" in done.stdout
    assert done.stdout.endswith("compressed rebuilt\n")
