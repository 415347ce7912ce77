"""A text that tells functions apart, tokenizers of one's own above all, so that what they give can be cached."""

import functools
import inspect
import sysconfig
import types
from collections.abc import Iterable
from uuid import uuid4

_INSTALLED = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))


def described(function: object) -> str:
    """A text that differs between functions: the code, and the values that it was made with or refers to.

    Those are the variables of a closure and the global ones, functions of the same module among them. The global ones
    of an installed package do not count. If a value is not plain, the text is a new one at each call, so that nothing
    in a cache is taken for what this function gives.
    """
    try:
        made = function.func if isinstance(function, functools.partial) else function
        named = made if hasattr(made, "__module__") else type(made)
        return _described(function, named.__module__, {})
    except (OSError, TypeError, ValueError, RecursionError):
        return uuid4().hex


def _described(value: object, home: str, seen: dict[int, int]) -> str:
    """A text of a plain value, of a function or of an object with plain attributes; TypeError or OSError otherwise.

    home  the module for whose functions the global variables count
    seen  functions and classes whose text is there already, by their id: their numbers
    """
    if value is None or type(value) in (str, bytes, bool, int, float):
        return repr(value)
    if inspect.ismodule(value):
        return value.__name__
    if isinstance(value, types.MethodDescriptorType) or (inspect.isclass(value) and value.__module__ == "builtins"):
        return value.__qualname__  # str.split, list
    if inspect.isfunction(value) or inspect.isclass(value):
        if id(value) in seen:
            return f"number {seen[id(value)]}"
        seen[id(value)] = len(seen)
    if type(value) in (set, frozenset):
        parts: Iterable[object] = sorted(_described(each, home, seen) for each in value)  # type: ignore[attr-defined]
    elif type(value) in (list, tuple):
        parts = value  # type: ignore[assignment]
    elif type(value) is dict:
        parts = value.items()
    elif type(value).__module__ in ("re", "_regex") and type(value).__qualname__ == "Pattern":
        parts = value.pattern, value.flags  # type: ignore[attr-defined]
    elif isinstance(value, functools.partial):
        parts = value.func, value.args, value.keywords
    elif inspect.isbuiltin(value):
        parts = value.__qualname__, value.__self__
    elif inspect.ismethod(value):
        parts = value.__func__, value.__self__
    elif inspect.isfunction(value):
        closure = [cell.cell_contents for cell in value.__closure__ or ()]
        is_own = value.__module__ == home and not value.__code__.co_filename.startswith(_INSTALLED)
        names = sorted(_names(value.__code__)) if is_own else ()
        used = {name: value.__globals__[name] for name in names if name in value.__globals__}
        parts = inspect.getsource(value.__code__), closure, value.__defaults__, value.__kwdefaults__, used
    elif inspect.isclass(value):
        kinds = value.__mro__[:-1]
        parts = *map(inspect.getsource, kinds), *(each for kind in kinds for each in _functions(kind))
    else:
        parts = type(value), vars(value)
    return f"{type(value).__name__}({', '.join(_described(each, home, seen) for each in parts)})"


def _names(code: types.CodeType) -> set[str]:
    """The names that code refers to, with those in functions within it."""
    inner = (_names(each) for each in code.co_consts if inspect.iscode(each))
    return set(code.co_names).union(*inner)


def _functions(kind: type) -> list[object]:
    """The functions in a class, those of static methods, class methods and properties too."""
    inner = ("__func__", "fget", "func")
    found = [next((getattr(each, name) for name in inner if hasattr(each, name)), each) for each in vars(kind).values()]
    return list(filter(inspect.isfunction, found))
