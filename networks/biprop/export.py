"""Tickets without our layers: for other frameworks, and for hardware that counts in integers."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from networks.biprop.layers import SubnetConv2d, SubnetLinear
from networks.biprop.surgery import subnet_layers
from networks.errors import InputError


def plain_state_dict(ticket: nn.Module, ordinary: nn.Module) -> dict[str, Tensor]:
    """State dict with which an ordinary network computes what a ticket computes in eval mode, bit for bit.

    Args:
        ticket: a ticket of that network.
        ordinary: the same network without our layers; it only says which tensors it has.

    Raises:
        InputError: it is another network.
    """
    layers = subnet_layers(ticket, remove_duplicate=False)
    state, wanted = ticket.state_dict(), ordinary.state_dict()
    state |= {f"{name}.weight": layer.effective_weight() for name, layer in layers.items()}
    # What a ticket does without: scale and shift of 1 and 0, and biases.
    for name, module in ordinary.named_modules(remove_duplicate=False):
        if isinstance(module, _BatchNorm) and module.affine:
            state.setdefault(f"{name}.weight", torch.ones_like(module.weight))
            state.setdefault(f"{name}.bias", torch.zeros_like(module.bias))
        elif name in layers and getattr(module, "bias", None) is not None:
            state.setdefault(f"{name}.bias", torch.zeros_like(module.bias))
    state = {name: tensor for name, tensor in state.items() if not name.endswith((".scores", ".sign_seed"))}
    wrong = [name for name in state.keys() & wanted.keys() if state[name].shape != wanted[name].shape]
    wrong += sorted(state.keys() ^ wanted.keys())
    if wrong:
        raise InputError(f"the ordinary network is another than the ticket's: {min(wrong)} differs")
    return {name: state[name].detach().cpu().clone() for name in wanted}


def fold(layer: SubnetConv2d | SubnetLinear, norm: _BatchNorm) -> tuple[Tensor, Tensor, Tensor]:
    """A masked layer and the batch normalisation behind it (max pooling may stand between) as integers and two vectors.

    norm(layer(x)) in eval mode is scale * y + shift for each channel, y computed with the ternary weights.

    Returns:
        Weights in {-1, 0, 1} of the layer's shape, int8; scale and shift, (C_out,).

    Raises:
        InputError: batch normalisation without running statistics, or edge-popup's real weights.
    """
    if norm.running_mean is None or norm.running_var is None:
        raise InputError("batch normalisation without running statistics cannot be folded")
    if layer.binarize == "none":
        raise InputError("edge-popup keeps real weights: there are no integers to fold")
    ternary = (layer.weight.sign() * layer.mask()).to(torch.int8)
    scale, shift = torch.rsqrt(norm.running_var + norm.eps), -norm.running_mean
    if layer.bias is not None:
        shift = shift + layer.bias
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = shift * scale
    return ternary, scale * layer.gain(), shift if norm.bias is None else shift + norm.bias
