"""The one exception for input that a user can correct, the conversion of library errors to it, and missing packages."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path


class InputError(ValueError):
    """Bad input, refused before any work is done. Its message is one line and contains the offending values.

    The entry points print it as `error: <message>` without a traceback and exit with status 2.
    """


@contextmanager
def named_errors(kinds: tuple[type[Exception], ...], what: str) -> Iterator[None]:
    """Turns errors of these kinds into an InputError of one line, which says `what` went wrong, and why.

    An InputError passes unchanged, because its message says so already.
    """
    try:
        yield
    except InputError:
        raise
    except kinds as error:
        raise InputError(f"{what}: {one_line(error)}") from error


def making(key: str) -> AbstractContextManager[None]:
    """Turns any exception of a constructor in this block into an InputError that names the configuration's `key`."""
    return named_errors((Exception,), key)


def need(module: str, extra: str, what: str) -> None:
    """Raises InputError if `module` is not installed, which `what` needs and `contrast-learning[extra]` brings."""
    is_there = sys.modules.get(module) is not None
    with suppress(ModuleNotFoundError):  # of the package that a module is in
        is_there = is_there or find_spec(module) is not None
    if not is_there:
        raise InputError(f"{what} needs {module}: pip install 'contrast-learning[{extra}]'")


def first_few(names: Iterable[str]) -> str:
    """The first four names and the number of the others: "a.png, b.png, c.png, d.png and 5 more"."""
    names = list(names)
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(map(shown, names[:4])) + more


def shown(name: str | Path) -> str:
    """A name of a file for people: bytes that are not UTF-8 appear as escapes, for no terminal takes them."""
    return str(name).encode("utf-8", "backslashreplace").decode()


def one_line(error: BaseException) -> str:
    """What the error says, or its type if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
