"""Memory that is freed serves the next tensor, without asking the system for its pages again."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from commands.memory import keep_freed_memory
if {kept}:
    keep_freed_memory()
for _ in range(10):
    torch.ones(2**24)  # 64 MiB, freed at once
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(kept):
    program = [sys.executable, "-c", PROGRAM.format(kept=kept)]
    return int(subprocess.run(program, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep memory")
def test_a_tensor_of_the_size_of_one_freed_gets_its_pages():
    pages = 2**26 // 4096
    assert faults(kept=True) < 0.01 * pages
    assert faults(kept=False) > 0.9 * pages  # else there is nothing to tell glibc
