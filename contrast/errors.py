"""The one exception for input that a user can mend."""


class InputError(ValueError):
    """Bad input, refused at the door: its message names the numbers and fits on one line.

    The entry points print it as `error: <message>` without a traceback and exit with status 2.
    """
