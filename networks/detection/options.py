"""Options of torchvision's detectors."""

import difflib
import inspect
from collections.abc import Collection, Mapping
from typing import Any

from networks.errors import InputError


def check_options(options: Mapping[str, Any], kind: type, ours: Collection[str]) -> None:
    """Refuse options that a detector does not have, which torchvision passes by in silence, and no numbers for numbers.

    Args:
        ours: those that we set ourselves, or that mean nothing in our detectors.

    Raises:
        InputError: names the option, and the nearest that there is.
    """
    parameters = inspect.signature(kind).parameters
    known = [name for name in parameters if name not in {"kwargs", *ours}]
    for name, value in options.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(known)}"
            raise InputError(f"torchvision's {kind.__name__} has no option {name}; {hint}")
        if isinstance(parameters[name].default, int | float) and not isinstance(value, int | float | list | tuple):
            raise InputError(f"{name}={value!r} must be a number")
