"""Start from other weights. (Resuming a run is something else: it restores all of its state.)"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
from torch import Tensor, nn

from networks import InputError, registry

if TYPE_CHECKING:
    from lightning_modules.classifier import Classifier


@dataclass
class Weights:
    """What a file holds: tensors by name, and in a checkpoint of ours which module was trained, and how."""

    path: str
    tensors: dict[str, Tensor]
    method: str | None = None
    hyper_parameters: dict[str, Any] = field(default_factory=dict)


def read(path: str | Path, what: str = "initial_checkpoint") -> Weights:
    """The tensors in a file by name, on the CPU; nothing in it is executed.

    Args:
        path: a checkpoint of ours, a state_dict, or safetensors.
        what: the argument that gave it, for the errors.

    Raises:
        InputError: there is no such file, or it has no state_dict.
    """
    if not Path(path).is_file():
        raise InputError(f"{what}: no file at {path}; it takes a checkpoint, a state_dict or safetensors")
    try:
        if Path(path).suffix == ".safetensors":
            from safetensors.torch import load_file

            return Weights(str(path), load_file(path))
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
        state = content.get("state_dict", content)
        tensors = {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    except Exception as error:
        raise InputError(f"{what}: {path} is cut short or has no weights ({reason(error)}): take another") from error
    return Weights(str(path), tensors, content.get("method"), content.get("hyper_parameters", {}))


def reason(error: Exception) -> str:
    """Why a file cannot be loaded, in one line. PyTorch's own first lines advise to execute what is in it."""
    text = str(error).rpartition("WeightsUnpickler error: ")[2].split(" Please use ")[0]
    return text.split("\n")[0] or type(error).__name__


def copy_into(module: nn.Module, weights: Weights) -> str:
    """Copy into a module what matches by name and size, and say what matched and what did not.

    The weights may be of a whole module, or of its `network` alone.

    Raises:
        InputError: nothing matches.
    """
    given, own = weights.tensors, module.state_dict()
    if not any(name in own for name in given):
        given = {f"network.{name}": tensor for name, tensor in given.items()}
    taken = {name: tensor for name, tensor in given.items() if name in own and tensor.shape == own[name].shape}
    if not taken:
        raise InputError(
            f"{weights.path}: none of its {len(given)} tensors has a name and size of this network's, such as "
            f"{next(iter(own))}"
        )
    module.load_state_dict(taken, strict=False)
    rest = {
        "not in it, as built": own.keys() - given.keys(),
        "of another size, as built": (own.keys() & given.keys()) - taken.keys(),
        "in it, but not here": given.keys() - own.keys(),
    }
    lines = [f"{len(taken)} of {len(own)} tensors start from {weights.path}"]
    lines += [
        f"  {what}: {len(names)}, such as {', '.join(sorted(names)[:3])}" for what, names in rest.items() if names
    ]
    return "\n".join(lines)


def rebuild(
    path: str | Path, method: str | None, hyper_parameters: dict[str, Any], remedy: str, typed: str | None = None
) -> "Classifier":
    """The module that a checkpoint of ours describes, as built: without its weights.

    Only timm's registry is trusted with the network's name: an import path in a file is code, unless it was typed.

    Args:
        typed: the network's name, where the user gave it too.
        remedy: what the user should give instead, for the errors.

    Raises:
        InputError: the checkpoint does not say enough, is of a network outside the registry, or of another version.
    """
    import lightning_modules

    if not method or not hyper_parameters:
        raise InputError(f"{path} does not say which network it has: {remedy}")
    if method not in lightning_modules.__all__:
        raise InputError(f"{path} was trained by {method}, a method of your own: {remedy}")
    name = hyper_parameters.get("network")
    if not isinstance(name, str) or not (timm.is_model(name) or name == typed):
        raise InputError(f"{path} is of a network of your own: {remedy}")
    # In place, for the checkpoint will be compared with the module.
    hyper_parameters["network_args"] = registry.without_weights(hyper_parameters.get("network_args"))
    known = {key: value for key, value in hyper_parameters.items() if not key.startswith("_")}
    try:
        return getattr(lightning_modules, method)(**{**known, "initial_checkpoint": None})
    except TypeError as error:
        raise InputError(f"{path} was written by another version of frugal ({error}): {remedy}") from error
