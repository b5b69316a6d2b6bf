"""ReXNet and its search: python benchmarks/rexnet.py step | kept | filter | search FOLDER

A training step of ReXNet x1.0 at batch 32 against timm's own network; a step of the search's network with and without
memory that is kept; lists filtered a second against a budget; and trials an hour of `frugal search` against one
Trainer.fit after another, on CIFAR-10 in FOLDER, 20 steps a trial. Ratios are to the first line of each group; memory
is a fresh process's peak.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

import numpy as np
import timm
import torch
from pytorch_lightning import Trainer, seed_everything
from timing import compare, header, own_peak, peak_memory
from torch.nn import functional as F

from callbacks import ChannelsLast
from commands.memory import keep_freed_memory
from datamodules import CIFAR
from lightning_modules import ReXNet
from networks.rexnet import space
from studies import pool
from studies.search_options import Pool
from studies.trials import Trial

KEPT = {"as C's library does": False, "freed memory kept, as `frugal` does": True}
FORMATS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
NETWORKS = {"timm": "rexnet_100", "ours": "rexnet"}
CONFIG = "configs/rexnet/search/short/budget_a_pair.yaml"
STEPS = 20


def training_step(alternative, layout):
    torch.manual_seed(0)
    net = timm.create_model(NETWORKS[alternative]).to(memory_format=FORMATS[layout])
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)
    x, labels = torch.randn(32, 3, 224, 224).to(memory_format=FORMATS[layout]), torch.arange(32)

    def step():
        optimizer.zero_grad()
        F.cross_entropy(net(x), labels).backward()
        optimizer.step()

    return step


def searched_step():
    torch.manual_seed(0)
    channels = list(space.PUBLISHED["a"]["best"][0])
    net = timm.create_model("channel_search_net", channels=channels, num_classes=10)
    net.to(memory_format=torch.channels_last)
    x, labels = torch.randn(128, 3, 32, 32).to(memory_format=torch.channels_last), torch.arange(128) % 10

    def step():
        F.cross_entropy(net(x), labels).backward()

    return step


def kept():
    """Fresh processes in turn, for what a process asked of its C library stays so."""
    times = {name: [] for name in KEPT}
    memory = {}
    for _ in range(5):
        for name in KEPT:
            child = subprocess.run([sys.executable, __file__, "kept", "--only", name], capture_output=True, check=True)
            seconds, memory[name] = map(float, child.stdout.split())
            times[name].append(seconds)
    print("\nforward and backward of budget (a)'s best list, batch 128, 32 pixels, channels last")
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    for name, seconds in medians.items():
        ratio = seconds / medians[next(iter(KEPT))]
        print(f"  {name:<42} {seconds * 1e3:9.2f} ms {ratio:8.2f} x {memory[name]:9.0f} MiB")


def kept_alone(name):
    if KEPT[name]:
        keep_freed_memory()
    step = searched_step()
    step()
    began = time.perf_counter()
    for _ in range(5):
        step()
    print((time.perf_counter() - began) / 5, own_peak())


def steps():
    for layout in FORMATS:
        title = f"training step of ReXNet x1.0, batch 32, 224 pixels, {layout}"
        compare(title, {name: training_step(name, layout) for name in NETWORKS}, rounds=5)
        print("\npeak memory of that step")
        for name in NETWORKS:
            print(f"  {name:<42} {peak_memory(__file__, name, 'step', '--layout', layout):9.0f} MiB")


def filtering():
    print("\nlists a second on one core")
    torch.set_num_threads(1)
    for name in "abcd":
        budget, times = space.BUDGETS[name], {"drawn": [], "filtered": []}
        for _ in range(7):
            began = time.perf_counter()
            lists = space.draw(budget, space.CHUNK, np.random.default_rng(0))
            times["drawn"].append(time.perf_counter() - began)
            began = time.perf_counter()
            budget.accepts(lists)
            times["filtered"].append(time.perf_counter() - began)
        rates = [f"{space.CHUNK / sorted(seconds)[3]:12,.0f} {what}" for what, seconds in times.items()]
        print(f"  budget ({name}) {' '.join(rates)}")


def search(folder):
    """Six trials each; workers are started and the data read within the measured time, as both pay for it."""
    lists = space.sample(space.BUDGETS["a"], 6).tolist()
    began = time.perf_counter()
    data = CIFAR(folder, check_integrity=False)
    for channels in lists:
        seed_everything(0)
        model = ReXNet("channel_search_net", 10, (3, 32, 32), {"channels": channels})
        options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        options["callbacks"] = [ChannelsLast()]
        trainer = Trainer(max_epochs=1, limit_train_batches=STEPS, limit_val_batches=0, limit_test_batches=1, **options)
        trainer.fit(model, data)
        trainer.test(model, data, verbose=False)
    plain = time.perf_counter() - began
    arguments = ["-c", CONFIG, "--data.root", folder, "--data.check_integrity", "false", "--trainer.max_epochs", "1"]
    arguments += ["--trainer.limit_train_batches", str(STEPS), "--trainer.limit_val_batches", "0"]
    arguments += ["--trainer.limit_test_batches", "1"]
    began = time.perf_counter()
    trials = [Trial(tuple(channels), 0) for channels in lists]
    pool.run(arguments, trials, Pool(), "benchmark", lambda measured: None, done=0)
    ours = time.perf_counter() - began
    print(f"\n{len(lists)} trials of {STEPS} steps, {os.cpu_count()} cores: trials an hour")
    for name, seconds in {"one Trainer.fit after another": plain, "frugal search": ours}.items():
        print(f"  {name:<42} {3600 * len(lists) / seconds:9.0f}    {plain / seconds:8.2f} x")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["step", "kept", "filter", "search"])
    parser.add_argument("folder", nargs="?", help="that has cifar-10-batches-py, for search")
    parser.add_argument("--layout", choices=FORMATS, help="with --only")
    parser.add_argument("--only", choices=[*NETWORKS, *KEPT], help="run one alternative and print its peak memory, MiB")
    options = parser.parse_args()
    if options.only in KEPT:
        kept_alone(options.only)
        return
    if options.only:
        training_step(options.only, options.layout)()
        print(own_peak())
        return
    header()
    if options.what == "step":
        steps()
    elif options.what == "kept":
        kept()
    elif options.what == "filter":
        filtering()
    elif options.folder is None:
        parser.error("search needs FOLDER")
    else:
        search(options.folder)


if __name__ == "__main__":
    main()
