"""Start from other weights. (Resuming a run is something else: it restores all of its state.)"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from networks import InputError


def start_from(module: nn.Module, path: str | Path) -> str:
    """Copy into a module what matches in a file, by name and size, and say what matched and what did not.

    Args:
        path: a checkpoint of ours, a state_dict, or safetensors; of a whole module, or of its `network` alone.

    Raises:
        InputError: the file cannot be read, or nothing in it matches.
    """
    given, own = read(path), module.state_dict()
    if not any(name in own for name in given):
        given = {f"network.{name}": tensor for name, tensor in given.items()}
    taken = {name: tensor for name, tensor in given.items() if name in own and tensor.shape == own[name].shape}
    if not taken:
        raise InputError(
            f"{path}: none of its {len(given)} tensors has a name and size of this network's, such as {next(iter(own))}"
        )
    module.load_state_dict(taken, strict=False)
    rest = {
        "not in it, as built": own.keys() - given.keys(),
        "of another size, as built": (own.keys() & given.keys()) - taken.keys(),
        "in it, but not here": given.keys() - own.keys(),
    }
    lines = [f"{len(taken)} of {len(own)} tensors start from {path}"]
    lines += [
        f"  {what}: {len(names)}, such as {', '.join(sorted(names)[:3])}" for what, names in rest.items() if names
    ]
    return "\n".join(lines)


def read(path: str | Path) -> dict[str, Tensor]:
    """The tensors in a file by name, on the CPU; nothing in it is executed.

    Raises:
        InputError: there is no such file, or it has no state_dict.
    """
    if not Path(path).is_file():
        raise InputError(f"initial_checkpoint: no file at {path}")
    try:
        if Path(path).suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
        content = content.get("state_dict", content)
    except Exception as error:
        reason = str(error).split("\n")[0]
        raise InputError(f"initial_checkpoint: {path} is cut short or has no weights ({reason})") from error
    return {name: tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}
