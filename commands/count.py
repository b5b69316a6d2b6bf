"""`frugal count`: what a network costs."""

import argparse
import json
from typing import Any

import yaml

import networks
from commands.options import Options
from networks import InputError
from networks.complexity import Report

DESCRIPTION = """\
Count what a network costs as deployed, layer by layer: parameters, FLOPs and BOPs (multiply-adds, each counted once,
for one input) and stored bits.

  frugal count --network resnet18 --input 3,224,224
  frugal count -c configs/biprop/digits/conv2_mpt1_32.yaml --model.keep_fraction 0.2
"""


def main(arguments: list[str] | None = None) -> None:
    """Print the cost table of a network given by name, or of a config's."""
    parser = Options("count", DESCRIPTION)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--network", help="timm name, ours or timm's own, or the import path of your own")
    what.add_argument("-c", "--config", action="append", help="config of a run; any option of `frugal fit` may follow")
    parser.add_argument("--input", type=_size, metavar="C,H,W", help="size of one input for --network: 3,224,224")
    parser.add_argument("--num_classes", type=int, help="outputs for --network; default: the network's own")
    parser.add_argument("--network_args", type=_arguments, help="its arguments, such as '{width: 0.5}'")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options, overrides = parser.parse_known_args(arguments)
    if options.network and overrides:
        parser.error(f"unknown: {' '.join(overrides)}")
    if options.config and (options.input or options.num_classes or options.network_args):
        parser.error("--input, --num_classes and --network_args go with --network; a config has them itself")
    if options.num_classes is not None and options.num_classes < 1:
        parser.error("--num_classes must be positive")
    if options.network and not options.input:
        parser.error("--network needs --input, such as --input 3,224,224")
    report = _of_config(options.config, overrides) if options.config else _of_network(options)
    print(json.dumps(report.to_dict(), indent=2) if options.json else report)


def _size(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(side) for side in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no size, such as 3,224,224") from error


def _arguments(text: str) -> dict[str, Any]:
    try:
        args = yaml.safe_load(text)
    except yaml.YAMLError:
        args = None
    if not isinstance(args, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no mapping, such as '{{width: 0.5}}'")
    return args


def _of_network(options: argparse.Namespace) -> Report:
    network = networks.create(options.network, options.input, options.num_classes, options.network_args)
    return networks.complexity.count(network, options.input)


def _of_config(configs: list[str], overrides: list[str]) -> Report:
    from callbacks.complexity import cost_of
    from commands.untrained import Untrained

    arguments = [part for config in configs for part in ("-c", config)]
    model = Untrained([*arguments, *overrides]).model
    report = cost_of(model)
    if report is None:
        raise InputError(f"{type(model).__name__} has no `network` and `input_size`: its cost cannot be counted")
    return report
