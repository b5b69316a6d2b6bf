"""Make a network's convolutions expert-binary, and take them through the steps of training."""

import re
import warnings
from typing import Any

import timm
import torch
from torch import nn

from networks import surgery
from networks.errors import InputError
from networks.expert_binary.layers import ExpertBinaryConv2d, FpActivation, Step

REAL = r"downsample|shortcut|(^|\.)se\."  # shortcuts, and attention where its class does not say it
POOLING = (nn.AdaptiveAvgPool2d, timm.layers.SelectAdaptivePool2d)


def apply(
    network: nn.Module, num_experts: int = 4, *, real: str = REAL, normalize: bool = True, **options: Any
) -> list[str]:
    """Make the convolutions of any network expert-binary, in place.

    The first and the last layer with weights stay real, and so do shortcuts and what works on averages: squeeze and
    excitation, and layers behind the last pooling. Each other nn.Conv2d becomes batch normalisation and an
    ExpertBinaryConv2d without bias: the normalisation centres what is binarised, which behind ReLU would be +1
    everywhere. New layers are drawn anew and are at step "binary", see `set_step`. A warning names special
    convolutions, which stay real.

    Args:
        network: any network; layers of exactly nn.Conv2d with zero padding are replaced.
        num_experts: N of each layer.
        real: regular expression, searched in dotted names, of convolutions that stay real.
        normalize: put batch normalisation before each, for networks that have none there.
        options: of ExpertBinaryConv2d: temperature, gate_grad, gate_bias, routing, rescale.

    Returns:
        Dotted names of the replaced layers.

    Raises:
        InputError: options that ExpertBinaryConv2d refuses; a network without a layer to replace. The network is as it
            was.
    """
    weighted = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    kept = {*weighted[:1], *weighted[-1:], *surgery.inside_attention(network), *_behind_pooling(network)}

    def make(layer: nn.Module) -> nn.Module:
        assert isinstance(layer, nn.Conv2d)
        conv = ExpertBinaryConv2d(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,  # type: ignore[arg-type]
            layer.stride,  # type: ignore[arg-type]
            layer.padding,  # type: ignore[arg-type]
            layer.dilation,  # type: ignore[arg-type]
            layer.groups,
            num_experts=num_experts,
            **options,
        )
        return nn.Sequential(nn.BatchNorm2d(layer.in_channels), conv) if normalize else conv

    chosen = {
        name: layer
        for name, layer in network.named_modules(remove_duplicate=False)
        if type(layer) is nn.Conv2d
        and layer not in kept
        and layer.padding_mode == "zeros"
        and not re.search(real, name)
    }
    special = surgery.special(network, (nn.Conv2d,), (nn.Conv2d,), kept)
    if not chosen:
        passed_over = f" but special ones, {special}" if special else ""
        raise InputError(f"the network has no inner nn.Conv2d to replace{passed_over}: Classifier trains it as it is")
    smallest = min(layer.out_channels for layer in chosen.values())
    ExpertBinaryConv2d(1, smallest, 1, num_experts=num_experts, **options)  # refuses before anything is touched
    if special:
        warnings.warn(f"expert_binary left special layers real: {special}", stacklevel=2)
    return surgery.replace(network, make, (nn.Conv2d,), f"^({'|'.join(map(re.escape, chosen))})$")


def _behind_pooling(network: nn.Module) -> set[nn.Module]:
    """Modules behind the network's last pooling to averages, where the order of its modules is that of its forward."""
    modules, attention = list(network.modules()), surgery.inside_attention(network)
    pools = [i for i, module in enumerate(modules) if isinstance(module, POOLING) and module not in attention]
    behind = modules[pools[-1] :] if pools else []
    on_maps = any(isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1) for module in behind)
    return set() if on_maps else set(behind)


def expert_layers(network: nn.Module) -> dict[str, ExpertBinaryConv2d]:
    """The expert binary convolutions of a network by their dotted names."""
    return {name: layer for name, layer in network.named_modules() if isinstance(layer, ExpertBinaryConv2d)}


def set_step(network: nn.Module, step: Step, fp_activation: FpActivation = "identity") -> None:
    """Take every expert binary convolution to a step of training, see `ExpertBinaryConv2d.set_step`.

    The modules and their state are the same in all steps: what is learned is carried from one to the next.
    """
    for layer in expert_layers(network).values():
        layer.set_step(step, fp_activation)


@torch.no_grad()
def replicate(network: nn.Module) -> None:
    """Make every expert a copy of the first, Theta_i <- Theta_0: step 2 of EBN's training.

    With a gate that picks, any choice gives what the one expert gave. (A mixture adds them up.)
    """
    for layer in expert_layers(network).values():
        layer.weight.copy_(layer.weight[:1].expand_as(layer.weight).clone())
