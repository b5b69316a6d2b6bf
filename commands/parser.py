"""The command line's parser: a mistake gets one line, with the nearest name that exists."""

import difflib
import inspect
import re
import sys
from pathlib import Path
from typing import NoReturn

import yaml
from pytorch_lightning.cli import LightningArgumentParser

import datamodules  # both imported for their classes to be known by name: --model Biprop
import lightning_modules
from commands.run_folder import typed_configs


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


def with_default_data(arguments: list[str], at: int) -> list[str]:
    """Put `--data Digits` into a command line that does not say which data.

    A default in the parser would not do: when the class changes, its arguments' defaults would stay, and CIFAR would be
    trained with the batch size of Digits.
    """
    said = any(part == "--data" or part.startswith(("--data=", "--data.class_path")) for part in arguments)
    if said or any(_says_data(Path(config)) for config in typed_configs(arguments)):
        return arguments
    return [*arguments[:at], "--data", "datamodules.Digits", *arguments[at:]]


def _says_data(config: Path) -> bool:
    """Whether a config, or one that it includes, names a DataModule; what cannot be read is left to the parser."""
    try:
        content = yaml.safe_load(config.read_text())
    except (OSError, yaml.YAMLError):
        return False
    if not isinstance(content, dict):
        return False
    data, included = content.get("data"), content.get("config", [])
    named = isinstance(data, str) or (isinstance(data, dict) and "class_path" in data) or "data.class_path" in content
    paths = included if isinstance(included, list) else [included]
    return named or any(_says_data(config.parent / path) for path in paths)
