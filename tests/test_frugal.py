"""The dispatcher."""

import os
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


def test_a_reader_that_has_seen_enough_ends_the_command_quietly():
    """As in `frugal count ... | head`, with and without a buffer."""
    code = (
        "import frugal, sys, types; sys.modules['say'] = types.SimpleNamespace(main=lambda given: print(*given)); "
        "frugal.COMMANDS['say'] = ('', 'say'); frugal.main(['say', 'much'])"
    )
    for unbuffered in ("", "1"):
        read, write = os.pipe()
        os.close(read)
        environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
        done = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, env=environment)
        os.close(write)
        assert (done.returncode, done.stderr) == (0, b"")
