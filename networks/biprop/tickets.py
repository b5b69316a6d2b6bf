"""Tickets as files: what is needed to compute with a ticket, and nothing that was needed to find it.

A safetensors file holds, for each masked layer, its mask (a bit for each weight) and its gain; the signs of the kept
weights as bits, or the seeds from which they are drawn again; batch normalisation and whatever else the network
stores; and how to build the network. Scores and magnitudes |W| are left out: a ticket cannot be trained further.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from networks import bits, registry
from networks.biprop.layers import SubnetConv2d, SubnetLinear, random_signs
from networks.biprop.selection import kept_count
from networks.biprop.surgery import drop_affine, replace_by_name, subnet_layers
from networks.errors import InputError

FORMAT = "frugal biprop ticket 1"
Signs = Literal["seed", "bits"]


def save_ticket(
    network: nn.Module, path: str | Path, architecture: Mapping[str, Any] | None = None, signs: Signs = "seed"
) -> None:
    """Write a ticket to a file, whole or not at all.

    Args:
        network: a ticket, see `networks.biprop.apply`.
        path: of the file; .safetensors by custom.
        architecture: arguments of `networks.create` that build the network (name, input_size, num_classes, args), so
            that `load_ticket` needs nothing but the file.
        signs: "seed" stores the 8 bytes from which each layer's signs were drawn, "bits" a bit for each kept weight.
            Layers whose signs their seed does not give, such as those of a released checkpoint, get bits in any case.

    Raises:
        InputError: there is no masked layer, or kept weights that are more than a sign and a gain (edge-popup's).
    """
    layers = subnet_layers(network)
    if not layers:
        raise InputError("the network has no masked layer: networks.biprop.apply makes a ticket of it")
    ours = {f"{name}.{part}" for name in layers for part in ("weight", "scores", "sign_seed")}
    tensors = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in network.state_dict().items()
        if name not in ours and not name.endswith("num_batches_tracked")
    }
    table, digest = [], hashlib.sha256()
    for name, layer in layers.items():
        value, gain = layer.effective_weight().detach().cpu(), layer.gain().detach().cpu()
        mask, positive = value != 0, value > 0  # a weight of exactly 0 has no sign, and need not be kept
        if not torch.equal(value, torch.where(positive, gain, -gain) * mask):
            raise InputError(f"{name} keeps real weights (edge-popup): they are more than a sign and a gain each")
        seed, kept_signs = int(layer.sign_seed), bits.pack(positive[mask])
        drawn = signs == "seed" and torch.equal(_signs(seed, mask), kept_signs)
        tensors |= {f"{name}.mask": bits.pack(mask), f"{name}.gain": gain}
        if not drawn:
            tensors[f"{name}.signs"] = kept_signs
        digest.update(kept_signs.numpy().tobytes())
        n, kept = mask.numel(), int(mask.sum())
        fraction = layer.keep_fraction if kept_count(layer.keep_fraction, n) == kept else max((kept - 0.5) / n, 1e-20)
        table.append({"name": name, "keep_fraction": fraction, "sign_seed": seed if drawn else None})
    metadata = {
        "format": FORMAT,
        "architecture": json.dumps(architecture),
        "layers": json.dumps(table),
        "signs_sha256": digest.hexdigest(),
    }
    metadata["sha256"] = _sha256(metadata, tensors)
    write(path, tensors, metadata)


def write(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all."""
    partial = Path(f"{path}.partial")
    partial.write_bytes(save(dict(tensors), dict(metadata or {})))
    os.replace(partial, path)


def load_ticket(path: str | Path, network: nn.Module | None = None) -> nn.Module:
    """The ticket in a file, in eval mode and frozen: identical logits, whatever seed or default dtype is set here.

    Its masked layers are those of `networks.biprop.apply`: they count as before and can be written again. |W| is not
    stored; each layer's weights are its signs times its gain, and its scores are its mask.

    Args:
        path: of a file that `save_ticket` wrote; nothing in it is executed.
        network: the ordinary network, changed in place; None builds the one that the file names.

    Raises:
        InputError: the file is cut short, changed by as much as a bit, or of another network.
    """
    metadata, tensors = read(path)
    if network is None:
        network = _build(path, json.loads(metadata["architecture"]))
    table = {row["name"]: row for row in json.loads(metadata["layers"])}
    try:
        _become(network, table, tensors, metadata["signs_sha256"])
    except (AttributeError, RuntimeError, TypeError) as error:
        raise InputError(f"{path} is a ticket of another network: {str(error).splitlines()[-1].strip()}") from error
    return network.eval().requires_grad_(False)


def read(path: str | Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a ticket file, checked against its SHA-256.

    Raises:
        InputError: there is no such file, or it is no whole and unchanged ticket.
    """
    if not Path(path).is_file():
        raise InputError(f"no ticket at {path}: `frugal export CHECKPOINT --ticket FILE` writes one")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} is cut short or damaged, copy it again ({error})") from error
    if metadata.get("format") != FORMAT:
        raise InputError(f"{path} is no ticket of this version: its format is {metadata.get('format')!r}")
    if metadata.pop("sha256", None) != _sha256(metadata, tensors):
        raise InputError(f"{path} was changed since it was written (its SHA-256 differs): copy it again")
    return metadata, tensors


def architecture(path: str | Path) -> dict[str, Any] | None:
    """Arguments of `networks.create` for the network of a ticket file, where it names it."""
    return json.loads(read(path)[0]["architecture"])


def plain_state_dict(ticket: nn.Module, ordinary: nn.Module) -> dict[str, Tensor]:
    """State dict with which an ordinary network computes what a ticket computes in eval mode, bit for bit.

    Args:
        ticket: a ticket of that network.
        ordinary: the same network without our layers; it only says which tensors it has.
    """
    state = ticket.state_dict()
    state |= {f"{name}.weight": layer.effective_weight() for name, layer in subnet_layers(ticket).items()}
    absent = {".weight": torch.ones_like, ".bias": torch.zeros_like}  # batch normalisation's, and biases
    return {
        name: state[name].detach().cpu().clone()
        if name in state
        else absent["." + name.rpartition(".")[2]](tensor, device="cpu")
        for name, tensor in ordinary.state_dict().items()
    }


def fold(layer: SubnetConv2d | SubnetLinear, norm: _BatchNorm) -> tuple[Tensor, Tensor, Tensor]:
    """A masked layer and the batch normalisation behind it (max pooling may stand between) as integers and two vectors.

    norm(layer(x)) in eval mode is scale * y + shift for each channel, y computed with the ternary weights.

    Returns:
        Weights in {-1, 0, 1} of the layer's shape, int8; scale and shift, (C_out,).
    """
    if norm.running_mean is None or norm.running_var is None:
        raise InputError("batch normalisation without running statistics cannot be folded")
    ternary = (layer.weight.sign() * layer.mask()).to(torch.int8)
    spread = torch.rsqrt(norm.running_var + norm.eps)
    scale = spread if norm.weight is None else spread * norm.weight
    shift = -norm.running_mean * scale
    return ternary, scale * layer.gain(), shift if norm.bias is None else shift + norm.bias


def _build(path: str | Path, architecture: dict[str, Any] | None) -> nn.Module:
    """The ordinary network, in float32, with the random generator as it was."""
    # An import path would be code that a file makes us run, so only the registry's names are built.
    if architecture is None or not timm.is_model(architecture["name"]):
        raise InputError(
            f"{path} is a ticket of a network of your own: give it, or the config that it was trained with"
        )
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.random.fork_rng(devices=[]):
            return registry.create(**architecture)
    finally:
        torch.set_default_dtype(dtype)


def _become(
    network: nn.Module, table: Mapping[str, Mapping[str, Any]], tensors: Mapping[str, Tensor], signs_sha256: str
) -> None:
    """Make an ordinary network the ticket that a file holds."""
    with torch.random.fork_rng(devices=[]):  # the weights that layers begin with are overwritten
        replace_by_name(network, table, init="unsigned_constant")
    drop_affine([m for name, m in network.named_modules() if f"{name}.weight" not in tensors])
    parts = {f"{name}.{part}" for name in table for part in ("mask", "gain", "signs")}
    state = {name: tensor for name, tensor in tensors.items() if name not in parts}
    digest = hashlib.sha256()
    for name, layer in subnet_layers(network).items():
        row, gain, n = table[name], tensors[f"{name}.gain"], layer.weight.numel()
        if tensors[f"{name}.mask"].numel() != -(-n // 8):
            raise RuntimeError(f"{name} has {n} weights here")
        layer.keep_fraction = row["keep_fraction"]
        mask = bits.unpack(tensors[f"{name}.mask"], n)
        kept_signs = tensors[f"{name}.signs"] if row["sign_seed"] is None else _signs(row["sign_seed"], mask)
        digest.update(kept_signs.numpy().tobytes())
        weight = gain.repeat(n)
        weight[mask] = torch.where(bits.unpack(kept_signs, int(mask.sum())), gain, -gain)
        layer.to(gain.dtype)
        state[f"{name}.weight"] = weight.view(layer.weight.shape)
        state[f"{name}.scores"] = mask.to(gain.dtype).view(layer.weight.shape)
        state[f"{name}.sign_seed"] = torch.tensor(row["sign_seed"] or 0)
    if digest.hexdigest() != signs_sha256:
        raise InputError(
            "this version of NumPy draws other signs from the ticket's seeds than the one that wrote it: write it "
            "again there with --signs bits"
        )
    missing, unexpected = network.load_state_dict(state, strict=False)
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise RuntimeError(f"it has no {missing[0]}" if missing else f"there is no {unexpected[0]} here")


def _signs(seed: int, mask: Tensor) -> Tensor:
    """Packed signs of the kept weights, a set bit for +1, as the layer's seed draws them."""
    return bits.pack(random_signs(seed, mask.numel())[mask.flatten()] > 0)


def _sha256(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
