"""The command line's parser: a mistake gets one line, with the nearest name that exists."""

import argparse
import difflib
import functools
import inspect
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import Namespace, _loaders_dumpers, _typehints
from pytorch_lightning.cli import LightningArgumentParser

import datamodules  # both imported for their classes to be known by name: --model Biprop
import lightning_modules

# Whose options these are, for a config that is given to another command.
COMMAND_OF = {
    **dict.fromkeys(("model", "data", "trainer", "checkpoint"), "fit"),
    **dict.fromkeys(("search", "ray"), "search"),
    "study": "rank",
}


class Parser(LightningArgumentParser):
    """Lightning's parser, whose messages span many lines of union types. It takes no shortened names."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def parse_path(self, path: Any, *arguments: Any, **options: Any) -> Namespace:
        """Refuse a config that is none by its name, which jsonargparse's messages lack; includes come here too."""
        if wrong := _not_a_config(Path(path)):
            self.error(f"{path} is no config: {wrong}")
        return super().parse_path(path, *arguments, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # a parser of one of several types that a value may have: the next one is tried
            raise argparse.ArgumentError(None, message) from ex
        parser = getattr(ex, "subcommand_parser", self)
        line = _one_line(message)
        sys.stderr.write(f"frugal: error: {line}{_suggestion(line, parser)}\n")
        sys.exit(2)


def classes_first(arguments: Sequence[str]) -> list[str]:
    """`--data.batch_size 4 --data CIFAR` in the other order: a class drops what was given for another before it."""
    ordered: list[list[str]] = []
    for option in _options(arguments):
        own = [earlier for earlier in ordered if earlier[0].startswith(f"{option[0].partition('=')[0]}.")]
        ordered = [*(earlier for earlier in ordered if earlier not in own), option, *own]
    return [part for option in ordered for part in option]


def _options(arguments: Sequence[str]) -> list[list[str]]:
    """Options with their values."""
    found: list[list[str]] = []
    for argument in arguments:
        if found and not argument.startswith(("--", "-c")):
            found[-1].append(argument)
        else:
            found.append([argument])
    return found


def try_int_first(parser: LightningArgumentParser) -> None:
    """Read 1 as one batch, and 1.0 as all.

    `typing` keeps one Optional[Union[...]] for both orders of int and float. Where another library made the other one
    first, as Ray does, Lightning's `limit_test_batches: 1` would be read as 1.0.
    """
    for action in parser._actions:
        if getattr(action, "_typehint", None) == int | float | None:
            action._typehint = int | float | None  # type: ignore[attr-defined]


def _not_a_config(path: Path) -> str:
    """What keeps a file from being a config, empty where nothing does."""
    try:
        content = yaml.safe_load(path.read_text())
    except UnicodeDecodeError as error:
        return f"-c takes YAML files, and this is none ({error})"
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        return f"it is no YAML ({getattr(error, 'problem', error)}" + (f", line {place.line + 1})" if place else ")")
    return "" if isinstance(content, dict) else "it has no `key: value`, such as `model: ...`"


NOISE = re.compile(
    r"Does not validate|Expected a path|Expected a <class 'NoneType'>|Problem with given|Subtypes:|Errors:|Given |"
    r"Subclass types expect|a class path \(str\)|a dict with"
)


def _one_line(message: str) -> str:
    """The innermost reason of a nested message, with the keys that lead to it."""
    lines = [(len(line) - len(line.lstrip(" -")), line.strip(" -")) for line in message.splitlines() if line.strip()]
    found: list[tuple[int, str, list[tuple[int, str]]]] = []  # indentation, reason, keys above it
    keys: list[tuple[int, str]] = []
    for indent, line in lines:
        keys = [(depth, key) for depth, key in keys if depth < indent]
        key = re.match(r'Parser key "([^"]*)":\s*(.*)', line)
        if key:
            keys = [*keys, (indent, key[1])]
            line = key[2]
        if line and not NOISE.match(line):
            found.append((indent, line, keys))
    indent, text, keys = max(found, key=lambda reason: reason[0], default=(0, message, []))
    text = re.sub(r"<class '([\w.]*)'>", r"\1", text).replace("typing.", "")
    return "".join(f"{'.'.join(key for _, key in keys)}: " for _ in keys[:1]) + " ".join(text.split())


def _suggestion(message: str, parser: LightningArgumentParser) -> str:
    """`; did you mean ...?` for a word of the message that is nearly a key or a class, or another remedy."""
    if re.search(r"required: \w+\.model$", message):
        return ": give a config, -c CONFIG"
    known_as = r"(?:option|key|attribute|module named) '([^']+)'|path string: (\S+)|unrecognized arguments: --([\w.]+)"
    wrong = re.search(known_as, message, re.IGNORECASE)
    if not wrong:
        return ""
    names = _known_names(parser)
    typed = (wrong[1] or wrong[2] or wrong[3]).split(".")
    if typed[0] not in names and typed[0] in COMMAND_OF:
        return f": it is one of frugal {COMMAND_OF[typed[0]]}"
    close = difflib.get_close_matches(next((part for part in typed if part not in names), ""), names, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _known_names(parser: LightningArgumentParser) -> set[str]:
    names = {part for action in parser._actions for part in action.dest.split(".")}
    for package in (datamodules, lightning_modules):
        names.add(package.__name__)
        for name in package.__all__:
            names |= {name, *inspect.signature(getattr(package, name).__init__).parameters}
    return names


def _unrelated(before: str, now: str) -> bool:
    classes = [_typehints.import_object(path) for path in (before, now)]
    return not any(issubclass(one, other) for one, other in (classes, reversed(classes)))


def _discard_arguments(parser_or_action: Any, before: Any, now: Any, original: Any) -> None:
    """Where the class changes, keep its arguments only if one class derives from the other.

    jsonargparse keeps all that the new class accepts, defaults too: Adam would get the rate and weight decay of SGD,
    CIFAR the batch size of Digits.
    """
    arguments, path = (before.get("init_args"), before.get("class_path")) if before else (None, None)
    if arguments and path and now.get("class_path") and _unrelated(path, now["class_path"]):
        for name in list(vars(arguments)):
            arguments.pop(name)
    original(parser_or_action, before, now)


_typehints.discard_init_args_on_class_path_change = functools.partial(
    _discard_arguments, original=_typehints.discard_init_args_on_class_path_change
)

# jsonargparse hands a nested argument on as Python writes it: `--model.network_args.x null` would become a text.
_loaders_dumpers.get_yaml_default_loader().add_implicit_resolver("tag:yaml.org,2002:null", re.compile("^None$"), ["N"])
