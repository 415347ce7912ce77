"""Stands in for the functions until they move here from `contrast.functional`, which stands above this package."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

Reduction = Literal["mean", "none"]


def _called(name: str, *args: Any, gather: bool = False, **options: Any) -> Any:
    from contrast import functional

    return getattr(functional, name)(*args, **options, **({"gather": True} if gather else {}))


def __getattr__(name: str) -> Callable[..., Any]:
    if name.startswith("_"):
        raise AttributeError(name)
    return partial(_called, name)
