"""The command `frugal`. It only finds the subcommand; what that needs is imported when it runs."""

import difflib
import errno
import importlib
import os
import select
import sys

COMMANDS = {
    "fit": ("train a network: frugal fit -c CONFIG", "commands.train"),
    "validate": ("score a trained network on the validation data", "commands.train"),
    "test": ("score a trained network on the test data", "commands.train"),
    "predict": ("write what is predicted for the test data: labels, or objects", "commands.train"),
    "seeds": ("train and test a config with several seeds: mean and standard error", "commands.seeds"),
    "steps": ("train and test a config after all the configs that it starts from", "commands.steps"),
    "cross-validate": ("train and test a config on each fold of its data", "commands.cross_validate"),
    "search": ("draw channel lists within a budget, train and rank them", "studies.channel_search"),
    "rank": ("measure ranks of the features of random layers", "studies.rank"),
    "export": ("write a ticket to a file: frugal export CHECKPOINT --ticket FILE", "commands.export"),
    "latency": ("time networks: one image on the CPU, a batch on a GPU", "commands.latency"),
    "tables": ("print the tables of the papers, with our figures beside theirs", "commands.tables"),
    "dashboard": ("make a workspace and a report of a W&B project", "commands.dashboard"),
    "count": ("show what a network costs: parameters, FLOPs, BOPs, stored bits", "commands.count"),
}
# What a disk refuses. Other errors of the system are faults of ours, and keep their traceback.
REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO}
REFUSED |= {errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}


def usage() -> str:
    lines = [f"  {name:<14} {summary}" for name, (summary, _) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: frugal COMMAND [OPTIONS]",
            "",
            "Networks that cost little: few bits, few weights, few multiplications.",
            "",
            *lines,
            "",
            "frugal COMMAND --help tells more. Configs are in configs/, results go to runs/.",
        ]
    )


def main(arguments: list[str] | None = None) -> None:
    """Run a subcommand. Exit status: 0, 1 for input that cannot work, 2 for a command line that cannot be read."""
    given = sys.argv[1:] if arguments is None else arguments
    if not given or given[0] in ("-h", "--help"):
        print(usage())
        return
    name = given[0]
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        fail(f"no command {name!r}; " + (f"did you mean {close[0]}?" if close else "frugal --help lists them"), 2)
    sys.path.append(os.getcwd())  # users' own classes; a console script does not look there
    module = importlib.import_module(COMMANDS[name][1])
    from commands.memory import keep_freed_memory

    keep_freed_memory()

    try:
        module.main(given if COMMANDS[name][1] == "commands.train" else given[1:])
        sys.stdout.flush()
    except Exception as error:
        if isinstance(error, BrokenPipeError) and reader_has_gone():
            return
        if (reason := reason_of(error)) is None:
            raise
        fail(reason, 1)


def reader_has_gone() -> bool:
    """Whether who reads what we print has seen enough, as in `frugal tables | head`; what is left is then dropped."""
    output = select.poll()
    output.register(1, 0)
    gone = any(event & select.POLLERR for _, event in output.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python writes again when it ends
    return gone


def reason_of(error: BaseException) -> str | None:
    """What the user can mend, in one line; None for what is a fault of ours."""
    from networks import InputError

    if isinstance(error, OSError) and error.errno in REFUSED:
        return f"{error.filename or 'a file'} cannot be used ({error.strerror}): see to its path, rights and disk"
    cause: BaseException | None = error
    while cause:  # parsers and trainers wrap what went wrong
        by_hand = isinstance(cause, ModuleNotFoundError) and cause.name is None  # of a library, about what it needs
        if by_hand or isinstance(cause, InputError):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    return None


def fail(message: str, status: int) -> None:
    print(f"frugal: error: {message}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
