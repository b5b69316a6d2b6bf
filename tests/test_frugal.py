"""The dispatcher."""

import subprocess
import sys

import pytest

import frugal


def test_help_lists_every_command_and_imports_nothing_heavy():
    code = "import frugal, sys; frugal.main(['--help']); print({'torch', 'numpy', 'yaml'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *usage, imported = done.stdout.strip().splitlines()
    assert imported == "set()"
    for name, (summary, _) in frugal.COMMANDS.items():
        assert any(line.split(maxsplit=1) == [name, summary] for line in usage)


def test_unknown_command_offers_the_nearest(capsys):
    with pytest.raises(SystemExit, match="2"):
        frugal.main(["tset"])
    assert capsys.readouterr().err == "frugal: error: no command 'tset'; did you mean test?\n"
