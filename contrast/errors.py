"""The one exception for input that a user can mend, and how errors of libraries become it."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager


class InputError(ValueError):
    """Bad input, refused at the door: its message names the numbers and fits on one line.

    The entry points print it as `error: <message>` without a traceback and exit with status 2.
    """


@contextmanager
def named_errors(kinds: tuple[type[Exception], ...], what: str) -> Iterator[None]:
    """Errors of these kinds as an InputError of one line, which says `what` went wrong, and why.

    An InputError stays as it is, for it says so itself.
    """
    try:
        yield
    except InputError:
        raise
    except kinds as error:
        raise InputError(f"{what}: {one_line(error)}") from error


def making(key: str) -> AbstractContextManager[None]:
    """Whatever a constructor raises in this block is an InputError that names the `key` of the configuration."""
    return named_errors((Exception,), key)


def one_line(error: BaseException) -> str:
    """What the error says, or its type if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
