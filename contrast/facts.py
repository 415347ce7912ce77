"""Parts of a configuration that are completed with facts of the data and of the model."""

import functools
import inspect
from typing import Any

from contrast.errors import InputError

CAPTIONS = ("vocabulary", "length")  # facts that only a data set with captions has


def complete(part: Any, facts: dict[str, Any]) -> Any:
    """Calls a partial with those facts that its signature names and it does not have yet; those inside it first.

    InputError where it cannot be called without the facts of captions, and there are none.
    """
    if not isinstance(part, functools.partial):
        return part
    given = {name: complete(value, facts) for name, value in part.keywords.items()}
    signature, called = inspect.signature(part.func), getattr(part.func, "__name__", part.func)
    wanted = {name: each for name, each in signature.parameters.items() if name not in given}
    lacking = [name for name in CAPTIONS if name in wanted and wanted[name].default is inspect.Parameter.empty]
    if lacking and not all(name in facts for name in lacking):
        raise InputError(f"{called} needs captions, which this data set has not: data=captions, data=digits_words")
    given |= {name: facts[name] for name in wanted if name in facts}
    try:
        signature.bind(*part.args, **given)
    except TypeError as error:
        raise InputError(f"{called}: {error}; it takes {', '.join(signature.parameters)}") from error
    return part.func(*part.args, **given)
