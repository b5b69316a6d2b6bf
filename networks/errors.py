"""The error for input that cannot work."""

from collections.abc import Mapping
from typing import get_args

from torch import Tensor


class InputError(ValueError):
    """What the user gave cannot work. The message is one line that names the thing and the remedy.

    From Python it is a `ValueError`; the `frugal` command prints the message alone, without a traceback.
    """


def check_choice(name: str, value: object, choices: object) -> None:
    """Refuse a value that is not one of a Literal's (InputError)."""
    if value not in get_args(choices):
        raise InputError(f"{name} is one of {', '.join(get_args(choices))}; got {value!r}")


def mismatch(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """What keeps a network from taking tensors, as a phrase for an error; empty where all names and sizes agree."""
    missing, extra = own.keys() - given.keys(), given.keys() - own.keys()
    other_size = [name for name in own.keys() & given.keys() if own[name].shape != given[name].shape]
    if not (missing or extra or other_size):
        return ""
    return (
        f"{len(missing)} tensors are missing, {len(extra)} unknown, {len(other_size)} of another size, such as "
        f"{min(missing or extra or other_size)}"
    )
