"""Run trials in processes, by Ray: on the cores and GPUs of this machine, or on a cluster."""

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from commands.memory import keep_freed_memory
from networks import InputError
from studies.search_options import Pool
from studies.trials import Trial, train

TRIES = 2  # of a trial whose worker dies
ANSWER = 5  # seconds in which a cluster has to


def run(
    arguments: list[str], trials: list[Trial], pool: Pool, group: str, keep: Callable[[dict[str, Any]], None], done: int
) -> None:
    """Train, and keep what each trial gave as soon as it has.

    Args:
        arguments: of `frugal search`.
        trials: what to train, in this order.
        pool: where.
        group: of the study.
        keep: is called with each result, in this process.
        done: how many trials were done before, for the progress bar.

    Raises:
        InputError: Ray is not installed, no cluster answers, what no trial can do; trials whose workers died twice.
    """
    if not trials:
        return
    ray = _start(pool)
    gpus = (0.25 if ray.cluster_resources().get("GPU") else 0) if pool.gpus is None else pool.gpus
    remote = ray.remote(num_cpus=pool.cpus, num_gpus=gpus, max_retries=0)(_work)
    waiting, tries = list(reversed(trials)), dict.fromkeys(trials, 0)
    running: dict[Any, Trial] = {}
    lost: list[Trial] = []
    try:
        _check_fits(ray, pool, gpus)
        with _stoppable(), _progress() as progress:
            bar = progress.add_task("trials", total=done + len(trials), completed=done)
            while waiting or running:
                while waiting and (pool.workers is None or len(running) < pool.workers):
                    trial = waiting.pop()
                    tries[trial] += 1
                    running[remote.remote(os.getcwd(), arguments, trial, pool.cpus, group)] = trial
                for finished in ray.wait(list(running), timeout=1)[0]:
                    trial = running.pop(finished)
                    try:
                        keep(ray.get(finished))
                    except ray.exceptions.RayTaskError as error:
                        raise (error.cause if isinstance(error.cause, InputError) else error) from None
                    except ray.exceptions.RayError as error:  # its process is dead, or its machine
                        (waiting if tries[trial] < TRIES else lost).append(trial)
                        progress.console.print(f"the worker of {trial.name} died ({str(error).splitlines()[0]})")
                        continue
                    progress.advance(bar)
    finally:
        ray.shutdown()
    if lost:
        raise InputError(
            f"{len(lost)} of {len(trials)} trials were lost with their workers, such as {lost[0].name}; the others are "
            "kept, and the same command tries these again (fewer --ray.workers need less memory)"
        )


def _check_fits(ray: Any, pool: Pool, gpus: float) -> None:
    """Ray waits for ever, silently, for a machine that has what a trial takes; a cluster may yet get one."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(machine.get("CPU", 0) >= pool.cpus and machine.get("GPU", 0) >= gpus for machine in machines):
        return
    wanted = f"a trial takes {pool.cpus} cores and {gpus:g} GPUs (--ray.cpus, --ray.gpus)"
    if pool.address is None:
        raise InputError(f"{wanted}, which this machine does not have")
    print(f"{wanted}: no machine of the cluster has as much now, and trials wait for one", file=sys.stderr)


def _work(folder: str, arguments: list[str], trial: Trial, threads: int, group: str) -> dict[str, Any]:
    """In a worker."""
    if not os.path.isdir(folder):
        raise InputError(f"a worker has no {folder}: the machines of a cluster need this folder at the same path")
    os.chdir(folder)
    if folder not in sys.path:
        sys.path.append(folder)  # users' own classes, as in the command
    keep_freed_memory()
    torch.set_num_threads(threads)
    return train(arguments, trial, group)


def _start(pool: Pool) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # what takes no GPU sees none
    try:
        import ray
    except ImportError as error:
        raise InputError("`frugal search` runs its trials on Ray: pip install -e '.[search]'") from error
    options: dict[str, Any] = {"logging_level": "error", "log_to_driver": False}
    if pool.address is None:
        cores = max(os.cpu_count() or 1, (pool.workers or 1) * pool.cpus)
        # "local": else it would join a cluster that was started here, or that RAY_ADDRESS names.
        try:
            ray.init("local", num_cpus=cores, include_dashboard=False, **options)
        except Exception as error:  # of many kinds; a time-out on a busy machine
            ray.shutdown()
            raise InputError(
                f"Ray did not start on this machine ({_first_line(error)}): the same command tries again, and goes on"
            ) from error
        return ray
    _check_answers(pool.address)
    try:
        ray.init(address=pool.address, **options)
    except Exception as error:
        reason = _first_line(error)
        raise InputError(
            f"ray.address={pool.address}: the cluster cannot be joined ({reason}); one that was started with a token "
            "takes RAY_AUTH_MODE=token in the environment, and its token in ~/.ray/auth_token"
        ) from error
    return ray


@contextmanager
def _stoppable() -> Iterator[None]:
    """Let SIGTERM and Ctrl-C end the search, and say how it goes on; Ray would show where in its code it was."""

    stopped_by: list[int] = []  # an exit status would not come through Ray's calls

    def stop(number: int, frame: FrameType | None) -> None:
        stopped_by.append(number)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except KeyboardInterrupt:
        print("stopped: finished trials are kept, and the same command goes on from there", file=sys.stderr)
        raise SystemExit(128 + stopped_by[0]) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0]


def _check_answers(address: str) -> None:
    """Ray itself waits for minutes."""
    place = urlsplit(address if "://" in address else f"ray://{address}")
    try:
        host, port = place.hostname, place.port
    except ValueError:
        host, port = None, None
    if not host or not port:
        raise InputError(f"ray.address={address} must be HOST:PORT or ray://HOST:PORT")
    try:
        socket.create_connection((host, port), ANSWER).close()
    except OSError as error:
        raise InputError(
            f"ray.address={address}: nothing answers there ({error}); start a cluster with `ray start --head`, or "
            "leave the address out to run on this machine"
        ) from error


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=Console(stderr=True))
