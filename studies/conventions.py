"""What the columns of the papers' tables count, of a network and its cost report.

Each function is named in results/<method>/paper.yaml; the first line of its docstring is what tables print of it.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from networks.complexity import Report
from networks.expert_binary import ExpertBinaryConv2d
from networks.expert_binary.models import Block

Convention = Callable[[nn.Module, Report], float | None]


def params(network: nn.Module, report: Report) -> int | None:
    """stored parameters"""
    return report.params


def kept_weights(network: nn.Module, report: Report) -> int | None:
    """kept weights of convolutions and linear layers, without normalisation and gains (biprop)"""
    kept = [layer.params for layer in report.layers if "Norm" not in layer.type]
    return None if None in kept else sum(filter(None, kept))


def convolution_weights(network: nn.Module, report: Report) -> int:
    """stored weights of convolutions, without biases, offsets, normalisation and classifier (WSNet)"""
    convolutions = [module for module in network.modules() if "Conv" in type(module).__name__]
    return sum(p.numel() for module in convolutions for p in module.parameters(recurse=False) if p.ndim > 1)


def params_10_classes(network: nn.Module, report: Report) -> int:
    """stored parameters, with 10 outputs instead of 100 (inferred from the printed columns)"""
    classifier, classes = report.layers[-1], report.output_size[0]
    return _known(report.params) - _known(classifier.params) * (classes - 10) // classes


def flops(network: nn.Module, report: Report) -> int | None:
    """multiply-adds with a real operand, of convolutions and linear layers, each counted once"""
    return report.flops


def bops(network: nn.Module, report: Report) -> int | None:
    """multiply-adds of one bit by one bit, each counted once"""
    return report.bops


def flops_normalised(network: nn.Module, report: Report) -> int:
    """multiply-adds, and two operations for each normalised element (inferred from the printed columns)"""
    return _known(report.flops) + 2 * sum(
        math.prod(layer.output_size) for layer in report.layers if "Norm" in layer.type
    )


def flops_without_masks(network: nn.Module, report: Report) -> int:
    """multiply-adds with a real operand, without those of the masks' head (as the paper evidently counts)"""
    (masks,) = [part for part in report.parts if part.name == "mask head"]
    return _known(report.flops) - _known(masks.flops)


def size(network: nn.Module, report: Report) -> float | None:
    """stored bits, in MB of 8,000,000 bits"""
    return None if report.size_bits is None else report.size_bits / 8e6


def authors_tool(network: nn.Module, report: Report) -> int:
    """multiply-adds and, as the authors' tool has it, what stands around them (expert binary networks)

    Of each element 2 operations in batch normalisation and in ReLU, 1 each for the scale, the channel rescale, the
    gate's average and the shortcut of a binary unit, k^2 - 1 in max pooling, k^2 in average pooling, 1 in the global
    average; PReLU is unknown to it. A shortcut that does not change the resolution pools windows of 1x1 there.
    """
    spent = 0

    def book(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        nonlocal spent
        entering, leaving = inputs[0].numel(), output.numel()
        if isinstance(module, nn.BatchNorm2d | nn.ReLU) and output.ndim == 4:  # not inside the channel rescale
            spent += 2 * leaving
        elif isinstance(module, nn.MaxPool2d):
            spent += leaving * (_window(module) - 1)
        elif isinstance(module, nn.AvgPool2d):
            spent += leaving * _window(module)
        elif isinstance(module, nn.AdaptiveAvgPool2d):
            spent += entering
        elif isinstance(module, ExpertBinaryConv2d):
            spent += (3 if module.rescale else 2) * leaving + entering
        elif (
            isinstance(module, Block)
            and module.shortcut
            and not isinstance(next(module.shortcut.children()), nn.AvgPool2d)
        ):
            spent += entering

    hooks = [module.register_forward_hook(book) for module in network.modules()]
    network.eval()(torch.empty(1, *report.input_size, device="meta"))
    for hook in hooks:
        hook.remove()
    return _known(report.flops) + _known(report.overhead_flops) + spent


def _window(pool: nn.MaxPool2d | nn.AvgPool2d) -> int:
    return pool.kernel_size**2 if isinstance(pool.kernel_size, int) else math.prod(pool.kernel_size)


def _known(figure: int | None) -> int:
    assert figure is not None, "the networks of the papers' tables can be counted"
    return figure
