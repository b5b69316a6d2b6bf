"""Options of torchvision's detectors."""

import difflib
import inspect
from collections.abc import Collection

from networks.errors import InputError


def check_options(options: Collection[str], kind: type) -> None:
    """Refuse options that a detector does not have: torchvision passes them by in silence.

    Raises:
        InputError: names the option, and the nearest that there is.
    """
    known = [name for name in inspect.signature(kind).parameters if name != "kwargs"]
    for name in options:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(known)}"
            raise InputError(f"torchvision's {kind.__name__} has no option {name}; {hint}")
