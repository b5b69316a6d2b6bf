"""`frugal export`: a ticket as a file."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import nn

import networks
from commands import resume
from commands.options import Options
from lightning_modules import Biprop, initial
from networks import InputError, biprop

DESCRIPTION = """\
Write the ticket in a checkpoint to a safetensors file: masks, signs, gains and batch normalisation, with checksums.

  frugal export runs/biprop/digits/conv2_mpt1_32/seed0/checkpoints/last.ckpt --ticket ticket.safetensors
  frugal test -c configs/biprop/digits/conv2_mpt1_32.yaml --ckpt_path ticket.safetensors

CHECKPOINT is a checkpoint of ours, a ticket file, or with -c CONFIG a checkpoint of the authors' release.
"""


def main(arguments: list[str] | None = None) -> None:
    """Write the file and say what it weighs."""
    parser = Options("export", DESCRIPTION)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path)
    parser.add_argument("--ticket", metavar="FILE", type=Path, required=True, help="file to write")
    parser.add_argument(
        "--format",
        choices=("ticket", "plain"),
        default="ticket",
        help="plain: an ordinary state dict in float32, which the same network takes without our layers",
    )
    parser.add_argument(
        "--signs",
        choices=("seed", "bits"),
        default="seed",
        help="how a ticket stores the signs of its weights: the seeds that they were drawn from, or a bit for each",
    )
    parser.add_argument(
        "-c",
        "--config",
        action="append",
        default=[],
        help="config of the network, needed for your own ones and released checkpoints; options of `frugal fit` follow",
    )
    options, overrides = parser.parse_known_args(arguments)
    if overrides and not options.config:
        parser.error(f"unknown: {' '.join(overrides)}")
    if options.ticket.suffix != ".safetensors":
        parser.error(f"--ticket {options.ticket}: a ticket file ends in .safetensors")
    if not options.checkpoint.is_file():
        raise InputError(f"no checkpoint at {options.checkpoint}")
    if options.ticket.exists() and options.ticket.samefile(options.checkpoint):
        parser.error("--ticket would overwrite the checkpoint")
    if not options.ticket.absolute().parent.is_dir() or options.ticket.is_dir():
        parser.error(f"--ticket {options.ticket}: give a file in a folder that exists")
    ticket, architecture = _read(options.checkpoint, _configured(options.config, overrides))
    if options.format == "ticket":
        biprop.save_ticket(ticket, options.ticket, architecture, options.signs)
    else:
        _save_plain(ticket, architecture, options.ticket)
    Console().print(_table(ticket, options.ticket))


def _configured(configs: list[str], overrides: list[str]) -> Biprop | None:
    if not configs:
        return None
    from commands.untrained import Untrained

    model = Untrained([*(part for config in configs for part in ("-c", config)), *overrides]).model
    if not isinstance(model, Biprop):
        raise InputError(f"{configs[0]} trains {type(model).__name__}: tickets are Biprop's")
    return model


def _read(path: Path, model: Biprop | None) -> tuple[nn.Module, dict[str, Any] | None]:
    """The ticket in a file, and how its network is built."""
    if path.suffix == ".safetensors":
        if model:
            model.load_ticket(path)
            return model.network, model.architecture
        return biprop.load_ticket(path), biprop.tickets.architecture(path)
    checkpoint = resume.read(path, "cpu")
    ours = checkpoint.get("method")
    if ours not in (None, "Biprop"):
        raise InputError(f"{path} was trained by {ours}: tickets are Biprop's")
    if model is None:
        remedy = "give the config that it was trained with, -c CONFIG"
        rebuilt = initial.rebuild(path, "Biprop", checkpoint.get("hyper_parameters", {}), remedy)
        assert isinstance(rebuilt, Biprop)
        model = rebuilt
    if ours:
        model.on_load_checkpoint(checkpoint)
        model.load_state_dict(checkpoint["state_dict"])
    else:
        model.network.load_state_dict(biprop.from_release(checkpoint["state_dict"], model.network))
    return model.network.eval(), model.architecture


def _save_plain(ticket: nn.Module, architecture: dict[str, Any] | None, path: Path) -> None:
    if architecture is None:
        raise InputError("the plain format needs the network by name: give the config with -c")
    biprop.tickets.write(path, biprop.plain_state_dict(ticket, networks.create(**architecture)))


def _table(ticket: nn.Module, path: Path) -> Table:
    layers = biprop.subnet_layers(ticket).values()
    kept, total = sum(layer.kept for layer in layers), sum(layer.weight.numel() for layer in layers)
    size, dense = path.stat().st_size, 4 * sum(tensor.numel() for tensor in ticket.parameters()) - 4 * total
    table = Table("file", "bytes", "weights kept", "dense in float32", "ratio")
    table.add_row(str(path), f"{size:,}", f"{kept:,} of {total:,}", f"{dense:,}", f"{dense / size:.1f}x")
    return table
