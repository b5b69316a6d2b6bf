"""Time and memory of alternatives, side by side in one process."""

import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch


def compare(title: str, alternatives: Mapping[str, Callable[[], object]], rounds: int = 7) -> None:
    """Print the median time of each alternative and its ratio to the first; they take turns, so that drift cancels."""
    times: dict[str, list[float]] = {name: [] for name in alternatives}
    for round in range(rounds + 1):
        for name, run in alternatives.items():
            start = time.perf_counter()
            run()
            if round:  # the first one warms up
                times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    base = next(iter(medians.values()))
    print(f"\n{title}")
    for name, median in medians.items():
        print(f"  {name:<42} {median * 1e3:9.2f} ms {median / base:8.2f} x")


def peak_memory(script: str, name: str, *arguments: str) -> float:
    """Peak resident memory in MiB of a fresh process: `script *arguments --only name`."""
    child = subprocess.run(
        [sys.executable, script, *arguments, "--only", name], capture_output=True, text=True, check=True
    )
    return float(child.stdout.split()[-1])


def own_peak() -> float:
    """Peak resident memory of this process in MiB."""
    status = Path("/proc/self/status").read_text()  # getrusage would count what the parent had before exec
    return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) / 1024


def header() -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
