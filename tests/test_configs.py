"""Every recipe parses, builds and can be counted."""

from pathlib import Path

import pytest

from commands.train import FrugalCLI

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.relative_to(ROOT / "configs").as_posix())
def test_builds_and_says_what_it_is(config):
    head = config.read_text().splitlines()[:4]
    assert all(line.startswith("# ") for line in head)
    assert head[1] == f"# frugal fit -c {config.relative_to(ROOT).as_posix()}"
    cli = FrugalCLI(["-c", str(config)], run=False)
    assert cli.model.num_classes == cli.datamodule.num_classes
