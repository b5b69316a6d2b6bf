"""Create networks by their timm names."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import timm
from torch import nn

from networks.errors import InputError


def create(
    name: str, input_size: Sequence[int], num_classes: int | None = None, args: Mapping[str, Any] | None = None
) -> nn.Module:
    """Create a network of the timm registry (timm's own or ours) for inputs of a size.

    Args:
        name: timm name, with a pretrained tag if wanted ("resnet18.a1_in1k").
        input_size: size of one input, (C, H, W) or (C, T); gives `in_chans`, and `img_size` where the network's
            layers depend on it.
        num_classes: outputs; None for the network's own default.
        args: further arguments of the network's entry point, such as {"width": 0.5} or {"pretrained": True}.

    Raises:
        InputError: an unknown name, or arguments that the network does not have.
    """
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() lists them"
        raise InputError(f"no network is called {name!r}; {hint}")
    given: dict[str, Any] = {"in_chans": input_size[0], "num_classes": num_classes}
    cfg = timm.get_pretrained_cfg(name)
    if cfg is not None and cfg.fixed_input_size and len(input_size) == 3:
        given["img_size"] = tuple(input_size[1:])
    try:
        return timm.create_model(name, **{**given, **(args or {})})
    except TypeError as error:
        raise InputError(f"network {name} cannot be built with {dict(args or {})}: {error}") from error
