"""Checks a configuration against the signatures of what it calls, before the run folder is made or data are read.

pydantic checks the types. Whether a value of the right type is in range is checked by the class or function itself.
"""

import inspect
import json
import pydoc
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from pydantic import ConfigDict, PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError
from typing_extensions import Unpack

from contrast.config.trust import Config
from contrast.errors import InputError
from contrast.run.errors import nearest

MAX_FLOAT32 = 3.4e38  # about the largest; torch would refuse a larger one in the first step


def check(config: Mapping[str, object], settings: type) -> None:
    """Raises InputError for unknown arguments, values of a wrong type, and numbers that float32 does not have, as inf.

    settings  a TypedDict with the types of the top-level values that have no `_target_`; an absent value is None
    """
    for key, value in leaves(config):
        if isinstance(value, float) and not abs(value) <= MAX_FLOAT32:  # so NaN is refused, too
            raise InputError(f"{key}={value} is no finite number of float32")
    for name, hint in get_type_hints(settings, include_extras=True).items():
        try:
            check_type(name, config.get(name), hint)
        except InputError as error:
            if name in config:
                raise
            raise InputError(
                f"the configuration has no {name}: contrast-words trains on text, contrast-pretrain on images, a run "
                "is resumed by the command that began it"
            ) from error
    check_targets(config)


def check_keys(cfg: DictConfig, settings: type) -> None:
    """Raises InputError for a top-level key that nothing reads, if `settings` forbids other keys than its own.

    A key of the user's own is read where an interpolation names it: ${width}, ${oc.select:width}. A run that is resumed
    may have keys of an older version.
    """
    if getattr(settings, "__pydantic_config__", {}).get("extra") != "forbid" or cfg.get("resume") is not None:
        return
    groups = map(str, OmegaConf.select(cfg, "hydra.runtime.choices") or ())
    no_keys = {group for group in groups if not re.search("[/@]", group) and group not in cfg}  # such as method
    known, text = sorted({*get_type_hints(settings), *no_keys}), OmegaConf.to_yaml(cfg)
    for key in map(str, cfg):
        if key not in (*known, "hydra") and not re.search(rf"\$\{{([^}}]*[:,]\s*)?\.*{re.escape(key)}\b", text):
            raise InputError(
                f"this command has no key or group '{key}'{nearest(key, known)}; known are {', '.join(known)}"
            )


def check_targets(config: Mapping[str, object]) -> None:
    """Raises InputError for a `_target_` that nobody can call, and for arguments that it does not accept."""
    for key, node in target_nodes(config):
        name = node["_target_"]
        try:
            target: object = pydoc.locate(name)
        except pydoc.ErrorDuringImport as error:
            raise InputError(f"{key}._target_={name} cannot be imported: {error.value}") from error
        if not callable(target):
            raise InputError(f"{key}._target_={name}: there is no such class or function")
        check_call(key, target, {name: value for name, value in node.items() if not name.startswith("_")})


def check_call(key: str, target: Callable[..., object], arguments: Mapping[str, object]) -> None:
    """Raises InputError if `target` does not accept the arguments, or if they do not have its annotated types."""
    types = types_of(target)
    try:
        signature = signature_of(target, types)
    except ValueError:  # the signature of a class that is not written in Python
        return
    defaults = {name: parameter.default for name, parameter in signature.parameters.items()}
    try:
        # an unknown argument that is null is left out: the data of contrast-embed has keys of several data sets
        signature.bind_partial(**{name: value for name, value in arguments.items() if value is not None})
    except TypeError as error:  # "got an unexpected keyword argument 'widhts'"
        hint = "".join(nearest(name, defaults) for name in arguments if name not in defaults)
        raise InputError(f"{key}: {getattr(target, '__name__', target)} {error}{hint}") from error
    for name, value in arguments.items():
        is_default = value is None and defaults.get(name, 0) is None
        if name in types and not is_default and not any(target_nodes(value)):
            check_type(f"{key}.{name}", value, types[name])


def signature_of(target: Callable[..., object], types: Mapping[str, object]) -> inspect.Signature:
    """The signature of a function or class, in which the names of a TypedDict replace `**options: Unpack[TypedDict]`.

    types  those of the parameters. Each of these names may be left out, and null does so.
    """
    signature, parameters = inspect.signature(target), list[inspect.Parameter]()
    for each in signature.parameters.values():
        hint = types.get(each.name)
        if each.kind is each.VAR_KEYWORD and get_origin(hint) is Unpack:
            names = get_type_hints(get_args(hint)[0])
            parameters += [inspect.Parameter(name, each.KEYWORD_ONLY, default=None) for name in names]
        else:
            parameters.append(each)
    return signature.replace(parameters=parameters)


def types_of(target: Callable[..., object]) -> dict[str, object]:
    """The annotated types of the parameters of a function or class."""
    types: dict[str, object] = {}
    bases: Any = reversed(target.__mro__) if inspect.isclass(target) else []
    # a class may pass **options on to its bases, whose annotations then apply
    for each in [base.__init__ for base in bases] or [target]:
        try:
            types |= get_type_hints(each, include_extras=True)
        except (TypeError, NameError, AttributeError):  # not written in Python; names for a type checker alone
            continue
    for hint in list(types.values()):
        if get_origin(hint) is Unpack:
            types |= get_type_hints(get_args(hint)[0])
    return types


def check_type(key: str, value: object, hint: Any) -> None:
    """Raises InputError if a plain value is not of the type `hint`. A class accepts any value: it may convert it."""
    try:
        text = json.dumps(value)
        try:
            adapter = TypeAdapter(hint)
        except PydanticSchemaGenerationError:
            adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
    except (PydanticUserError, TypeError):
        return
    try:
        adapter.validate_json(text, strict=True)  # a JSON list may be a tuple, and 1 may be a float
    except ValidationError as error:
        problems = [each for each in error.errors() if each["type"] != "needs_python_object"]
        if not problems:
            return
        for same in zip(*(each["loc"] for each in error.errors()), strict=False):
            if len(set(same)) > 1:
                break  # the alternatives of a union
            key, value = f"{key}.{same[0]}", dict(children(value)).get(same[0])
        reasons = list(dict.fromkeys(each["msg"] for each in problems))
        if all(reason.startswith("Input should be") for reason in reasons):
            reasons = ["should be " + " or ".join(reason.removeprefix("Input should be ") for reason in reasons)]
        raise InputError(f"{key}={shown(value)}: {'; '.join(reasons)}") from error


def target_nodes(tree: object, key: str = "") -> Iterator[tuple[str, Config]]:
    """Each node of a plain configuration that has a `_target_`, with its key: "head.temperature", ..."""
    if isinstance(tree, dict) and isinstance(tree.get("_target_"), str):
        yield key, tree
    for name, value in children(tree):
        yield from target_nodes(value, f"{key}.{name}".lstrip("."))


def leaves(tree: object, key: str = "") -> Iterator[tuple[str, object]]:
    """Each plain value of a configuration, with its key."""
    if not isinstance(tree, dict | list):
        yield key, tree
    for name, value in children(tree):
        yield from leaves(value, f"{key}.{name}".lstrip("."))


def children(tree: object) -> list[tuple[object, object]]:
    return list(tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ())


def shown(value: object) -> str:
    """A value as it is written on the command line."""
    return value if isinstance(value, str) and value else json.dumps(value, default=str)
