"""Create networks by name."""

import difflib
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import timm
from timm.models import register_model
from torch import nn

from networks.errors import InputError

# What timm's create_model would download, open or cache.
WEIGHTS = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")


def without_weights(args: Mapping[str, Any] | None) -> dict[str, Any]:
    """Arguments of a network without those that fetch its weights: others are put in, and files name none to fetch."""
    return {key: value for key, value in (args or {}).items() if key not in WEIGHTS}


def create(
    name: str, input_size: Sequence[int], num_classes: int | None = None, args: Mapping[str, Any] | None = None
) -> nn.Module:
    """Create a network for inputs of a size.

    Args:
        name: timm name, ours or timm's own, with a pretrained tag if wanted ("resnet18.a1_in1k"); or the import path
            of a class or function that builds one ("my_own.Net").
        input_size: size of one input, (C, H, W) or (C, T). Gives `in_chans`, and `img_size` where the network's layers
            depend on it.
        num_classes: outputs; None for the network's own default.
        args: further arguments, such as {"width": 0.5} or {"pretrained": True}.

    Raises:
        InputError: an unknown name, or arguments that the network does not take.
    """
    from_data = {"num_classes": num_classes, "in_chans": input_size[0], "img_size": tuple(input_size[1:])}
    given = dict(args or {})
    if not timm.is_model(name):
        build = _imported(name)
        wanted = inspect.signature(build).parameters
        known = {key: from_data[key] for key in from_data.keys() & wanted if from_data[key]}
        if twice := sorted(known.keys() & given.keys()):
            raise InputError(f"{', '.join(twice)} of {name} come from the data: leave them out of its arguments")
        return build(**_fitting(build, name, {**known, **given}))
    try:
        cfg = timm.get_pretrained_cfg(name)
        if not (cfg and cfg.fixed_input_size and len(input_size) == 3):
            del from_data["img_size"]
        return timm.create_model(name, **{**from_data, **given})
    except InputError:
        raise
    except Exception as error:  # of many kinds: a tag or an argument that does not exist, weights out of reach
        reason = str(error).split("\n")[0]
        raise InputError(f"network {name} cannot be built with {given}: {reason}") from error


def compressed(
    network: str, method: str, method_args: Mapping[str, Any] | None = None, in_chans: int = 3, **args: Any
) -> nn.Module:
    """Create a network and make it cheap by a method of ours, where a network is asked for by name: of a detector
    `backbone: networks.compressed` with `backbone_args: {network: rexnet, method: epitome, method_args: {rules: 0.5}}`.

    Args:
        network: timm name.
        method: name of a package with surgery, such as "epitome": its `networks.<method>.apply` is called.
        method_args: arguments of that, such as {"keep_fraction": 0.4}.
        in_chans, args: of the network.

    Raises:
        InputError: an unknown network or method, and what the method refuses.
    """
    import networks

    apply = getattr(getattr(networks, method, None), "apply", None)
    if apply is None:
        known = sorted(name for name, package in vars(networks).items() if hasattr(package, "apply"))
        raise InputError(f"no method is called {method!r}: {', '.join(known)} are")
    built = create(network, (in_chans, 224, 224), args=args)
    apply(built, **_fitting(partial(apply, built), f"networks.{method}.apply", dict(method_args or {})))
    return built


def _fitting(build: Callable[..., Any], name: str, args: dict[str, Any]) -> dict[str, Any]:
    """Arguments, if they are a function's (InputError); an error inside of it keeps its traceback."""
    try:
        inspect.signature(build).bind(**args)
    except TypeError as error:
        raise InputError(f"{name}: {error}") from error
    return args


def register(name: str, build: Callable[..., nn.Module], cfg: dict[str, Any], **fixed: Any) -> None:
    """Register an architecture with timm, for the module that calls this.

    Args:
        name: timm name.
        build: gives the network.
        cfg: timm's description of it: `input_size`, `num_classes`, ...
        fixed: arguments of `build` that make this architecture; the others can be given to `timm.create_model`.
    """

    def entry_point(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        if pretrained:
            raise InputError(f"{name} has no pretrained weights")
        kwargs = without_weights(kwargs)  # timm gives some of these to all
        return build(**{"num_classes": cfg["num_classes"], **kwargs}, **fixed)

    module = build.__module__
    entry_point.__name__, entry_point.__module__, entry_point.__doc__ = name, module, build.__doc__
    vars(sys.modules[module]).setdefault("default_cfgs", {})[name] = cfg
    register_model(entry_point)


def _imported(path: str) -> Callable[..., nn.Module]:
    module, _, attribute = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ValueError, ModuleNotFoundError, AttributeError) as error:
        if isinstance(error, ModuleNotFoundError) and not module.startswith(error.name or ""):
            raise  # the user's module is there and misses another one
        close = difflib.get_close_matches(path, timm.list_models(), n=3)
        lists = f"{module} has none of this name" if module in sys.modules else "timm.list_models() lists them"
        hint = f"did you mean {', '.join(close)}?" if close else lists
        raise InputError(f"no network is called {path!r}; {hint}") from error
