"""Command lines of the subcommands that are not Lightning's."""

import argparse
from typing import NoReturn


class Options(argparse.ArgumentParser):
    """argparse's parser, in which a mistake gets one line, as in `frugal fit`.

    It takes no shortened names, for options of `frugal fit` may follow, and one of those may begin as one of ours.

    Args:
        command: name of the subcommand.
        description: shown by --help as it stands.
    """

    def __init__(self, command: str, description: str) -> None:
        super().__init__(
            f"frugal {command}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"frugal: error: {message}; {self.prog} --help lists what it takes\n")
