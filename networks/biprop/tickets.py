"""Tickets as files: what is needed to compute with a ticket, and nothing that was needed to find it.

A safetensors file holds, for each masked layer, its mask (a bit for each weight) and its gain; the signs of the kept
weights as bits, or the seeds from which they are drawn again; batch normalisation and whatever else the network
stores; and how to build the network. Scores and magnitudes |W| are left out: a ticket cannot be trained further.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from networks import bits, complexity, registry
from networks.binarize import Sign
from networks.biprop.layers import SubnetConv2d, SubnetLinear
from networks.biprop.selection import kept_count
from networks.biprop.surgery import GEOMETRY, drop_affine, replace_by_name, subnet_layers
from networks.errors import InputError, check_choice

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
        InputError: there is no masked layer, kept weights that are more than a sign and a gain (edge-popup's), an
            architecture without a name, or a network that uses weights without calling their layers.
    """
    check_choice("signs", signs, Signs)
    if architecture is not None and not {"name", "input_size"} <= architecture.keys():
        raise InputError(f"architecture has the arguments of networks.create, name and input_size; got {architecture}")
    layers = subnet_layers(network, remove_duplicate=False)
    if not layers:
        raise InputError("the network has no masked layer: networks.biprop.apply makes a ticket of it")
    if architecture is not None:
        _refuse_what_is_not_called(network, architecture["input_size"])
    ours = {f"{name}.{part}" for name in layers for part in ("weight", "scores", "sign_seed")}
    tensors = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in network.state_dict().items()
        if name not in ours and not name.endswith("num_batches_tracked")
    }
    table, digest = [], hashlib.sha256()
    for name, layer in layers.items():
        value = layer.effective_weight().detach().cpu()
        gain = value.abs().max()
        mask, positive = value != 0, value > 0  # a weight of exactly 0 has no sign, and need not be kept
        if value.isnan().any():
            raise InputError(f"{name} has weights that are not numbers: take a checkpoint from before it diverged")
        if not torch.equal(value, torch.where(positive, gain, -gain) * mask):
            raise InputError(f"{name} keeps real weights (edge-popup), which no ticket holds: write the plain format")
        seed, kept_signs = int(layer.sign_seed), bits.pack(positive[mask])
        drawn = signs == "seed" and torch.equal(_signs(seed, mask), kept_signs)
        tensors |= {f"{name}.mask": bits.pack(mask), f"{name}.gain": gain}
        if not drawn:
            tensors[f"{name}.signs"] = kept_signs
        digest.update(kept_signs.numpy().tobytes())
        n, kept = mask.numel(), int(mask.sum())
        fraction = layer.keep_fraction if kept_count(layer.keep_fraction, n) == kept else max((kept - 0.5) / n, 1e-20)
        row = {"name": name, "keep_fraction": fraction, "sign_seed": seed if drawn else None}
        table.append({**row, "geometry": _geometry(layer)})
    content: dict[str, Any] = {
        "format": FORMAT,
        "architecture": architecture and dict(architecture),
        "layers": table,
        "activations": _activations(network),
        "signs_sha256": digest.hexdigest(),
    }
    text = json.dumps(content)
    # One entry, for safetensors writes several in any order; the text itself is hashed, so that no bit of it is free.
    write(path, tensors, {"ticket": f"{_sha256(text, tensors)} {text}"})


def _refuse_what_is_not_called(network: nn.Module, input_size: Sequence[int]) -> None:
    rows = complexity.count(network, input_size).layers
    bypassed = [row.name for row in rows if complexity.NOT_CALLED in row.uncounted]
    if bypassed:
        raise InputError(
            f"the network uses the weights of {', '.join(bypassed)} without calling them: they are real numbers and no "
            "part of a ticket"
        )


def write(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all.

    Raises:
        InputError: there is no such folder, no space, or a folder of that name.
    """
    partial = Path(f"{path}.partial")
    try:
        partial.write_bytes(save(dict(tensors), dict(metadata or {})))
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise InputError(f"{path} cannot be written: {error.strerror}") from error


def load_ticket(path: str | Path, network: nn.Module | None = None) -> nn.Module:
    """The ticket in a file, in eval mode and frozen: identical logits, whatever seed or default dtype is set here.

    Its masked layers are those of `networks.biprop.apply`: they count as before and can be written again. |W| is not
    stored; each layer's weights are its signs times its gain, and its scores are its mask.

    Args:
        path: of a file that `save_ticket` wrote; nothing in it is executed.
        network: the ordinary network, changed in place; None builds the one that the file names. Names, shapes and
            activations are compared, but not how its layers are connected.

    Raises:
        InputError: the file is cut short, changed by as much as a bit, or of another network.
    """
    content, tensors = read(path)
    if network is None:
        network = _build(path, content["architecture"])
    table = {row["name"]: row for row in content["layers"]}
    try:
        _become(network, table, tensors, content)
    except (KeyError, RuntimeError) as error:
        why = str(error).splitlines()[-1].strip()
        raise InputError(f"{path} is a ticket of another network: {why}; give the config that it came from") from error
    return network.eval().requires_grad_(False)


def read(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a ticket file says of itself, and its tensors, checked against its SHA-256.

    Raises:
        InputError: there is no such file, or it is no whole and unchanged ticket.
    """
    if not Path(path).is_file():
        raise InputError(f"no ticket at {path}: `frugal export CHECKPOINT --ticket FILE` writes one")
    try:
        with safe_open(path, framework="pt") as file:
            sha256, _, text = (file.metadata() or {}).get("ticket", "").partition(" ")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} is cut short or damaged, copy it again ({error})") from error
    if not text:
        raise InputError(f"{path} is no ticket: `frugal export CHECKPOINT --ticket FILE` writes one")
    if sha256 != _sha256(text, tensors):
        raise InputError(f"{path} was changed since it was written (its SHA-256 differs): copy it again")
    content = json.loads(text)
    if content["format"] != FORMAT:
        raise InputError(f"{path} is a ticket of another version, {content['format']!r}: write it again with this one")
    return content, tensors


def architecture(path: str | Path) -> dict[str, Any] | None:
    """Arguments of `networks.create` for the network of a ticket file, where it names it."""
    return read(path)[0]["architecture"]


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
            return registry.create(**{**architecture, "args": registry.without_weights(architecture.get("args"))})
    finally:
        torch.set_default_dtype(dtype)


def _become(
    network: nn.Module, table: Mapping[str, Mapping[str, Any]], tensors: Mapping[str, Tensor], content: Mapping
) -> None:
    """Make an ordinary network the ticket that a file holds."""
    device = next(network.parameters()).device
    for theirs, ours in zip_longest(content["activations"], _activations(network)):
        if theirs != ours:
            raise RuntimeError(f"it has {theirs} where here is {ours}")
    with torch.random.fork_rng(devices=[]):  # the weights that layers begin with are overwritten
        replace_by_name(network, table, init="unsigned_constant")
    layers = subnet_layers(network, remove_duplicate=False)
    absent = table.keys() - layers.keys()
    if absent:
        raise RuntimeError(f"there is no layer {min(absent)} here")
    drop_affine([m for name, m in network.named_modules() if f"{name}.weight" not in tensors])
    parts = {f"{name}.{part}" for name in table for part in ("mask", "gain", "signs")}
    state = {name: tensor for name, tensor in tensors.items() if name not in parts}
    digest = hashlib.sha256()
    for name, layer in layers.items():
        row, gain, n = table[name], tensors[f"{name}.gain"], layer.weight.numel()
        for theirs, ours in zip_longest(row["geometry"], _geometry(layer)):
            if theirs != ours:
                raise RuntimeError(f"its {name} has {theirs}, here {ours}")
        layer.keep_fraction = row["keep_fraction"]
        mask = bits.unpack(tensors[f"{name}.mask"], n)
        kept_signs = tensors[f"{name}.signs"] if row["sign_seed"] is None else _signs(row["sign_seed"], mask)
        digest.update(kept_signs.numpy().tobytes())
        weight = gain.repeat(n)
        weight[mask] = torch.where(bits.unpack(kept_signs, int(mask.sum())), gain, -gain)
        state[f"{name}.weight"] = weight.view(layer.weight.shape)
        state[f"{name}.scores"] = mask.to(gain.dtype).view(layer.weight.shape)
        state[f"{name}.sign_seed"] = torch.tensor(row["sign_seed"] or 0)
    if digest.hexdigest() != content["signs_sha256"]:
        raise InputError(
            "this version of NumPy draws other signs from the ticket's seeds than the one that wrote it: write it "
            "again there with --signs bits"
        )
    missing, unexpected = network.load_state_dict(state, strict=False, assign=True)  # in the file's dtypes
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise RuntimeError(f"it has no {missing[0]}" if missing else f"there is no {unexpected[0]} here")
    network.to(device)


def _geometry(layer: SubnetConv2d | SubnetLinear) -> list[str]:
    """Shape of the weights and, of a convolution, how they are applied."""
    shape = f"weights {tuple(layer.weight.shape)}"
    return [shape, *(f"{name} {getattr(layer, name)}" for name in GEOMETRY if hasattr(layer, name))]


def _activations(network: nn.Module) -> list[str]:
    """Activations that are modules, in order: two networks may have the same tensors and differ in these alone."""
    modules = [m for m in network.modules() if type(m).__module__ == "torch.nn.modules.activation" or type(m) is Sign]
    return [repr(m) if isinstance(m, Sign) else type(m).__name__ for m in modules]


def _signs(seed: int, mask: Tensor) -> Tensor:
    """Packed signs of the kept weights, a set bit for +1, as the layer's seed draws them."""
    return bits.pack(bits.random_signs(seed, mask.numel())[mask.flatten()] > 0)


def _sha256(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
