"""The error for input that cannot work."""


class InputError(ValueError):
    """What the user gave cannot work. The message is one line that names the thing and the remedy.

    From Python it is a `ValueError`; the `frugal` command prints the message alone, without a traceback.
    """
