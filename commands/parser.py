"""The command line's parser: a mistake gets one line, with the nearest name that exists."""

import difflib
import functools
import inspect
import re
import sys
from typing import Any, NoReturn

from jsonargparse import _typehints
from pytorch_lightning.cli import LightningArgumentParser

import datamodules  # both imported for their classes to be known by name: --model Biprop
import lightning_modules


class Parser(LightningArgumentParser):
    """Lightning's parser, whose messages span many lines of union types."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        parser = getattr(ex, "subcommand_parser", self)
        sys.stderr.write(f"frugal: error: {_one_line(message)}{_suggestion(message, parser)}\n")
        sys.exit(2)


def _one_line(message: str) -> str:
    key = re.search(r'Parser key "([^"]*)":\s*(.*)', message, re.DOTALL)
    subject, text = (f"{key[1]}: ", key[2]) if key else ("", message)
    reasons = re.findall(r"^\s*- ((?!Expected a path|Does not validate|Expected a <class 'NoneType'>).*)$", text, re.M)
    text = reasons[0] if reasons else text
    text = re.sub(r"<class '([\w.]*)'>", r"\1", text).replace("typing.", "")
    return subject + " ".join(text.split())


def _suggestion(message: str, parser: LightningArgumentParser) -> str:
    """`; did you mean ...?` for a word of the message that is nearly a key or a class."""
    wrong = re.search(r"(?:option|key) '([^']+)'|import path string: (\S+)", message, re.IGNORECASE)
    if not wrong:
        return ""
    names = _known_names(parser)
    typed = next((part for part in (wrong[1] or wrong[2]).split(".") if part not in names), "")
    close = difflib.get_close_matches(typed, names, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _known_names(parser: LightningArgumentParser) -> set[str]:
    names = {part for action in parser._actions for part in action.dest.split(".")}
    for package in (datamodules, lightning_modules):
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
