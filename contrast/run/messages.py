"""Errors that a user can mend, each as one line; for all others the traceback is the message."""

import difflib
import inspect
import os
import re
from collections.abc import Callable, Iterable, Iterator
from types import FrameType

import yaml
from hydra.errors import (
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from contrast.errors import InputError

# an option that a plugin of Hydra brings -> the extra of ours that installs it
EXTRAS = {
    "hydra/launcher/joblib": "joblib",
    "hydra/launcher/submitit_slurm": "submitit",
    "hydra/launcher/submitit_local": "submitit",
    "hydra/launcher/ray": "ray",
    "hydra/sweeper/optuna": "optuna",
}


def of_input(error: BaseException) -> str | None:
    """The line for an error that a run raised: an InputError however deep, or a `_target_` that cannot be called."""
    for cause in causes(error):
        if isinstance(cause, InputError):
            return one_line(str(cause))
    for cause in causes(error):
        if isinstance(cause, InstantiationException):
            return _of_instantiation(cause)
        if isinstance(cause, TypeError) and (frame := _calling_frame(cause)) is not None:
            node = getattr(frame.f_locals.get("self"), "_hydra_full_key", "")  # of a partial, called only now
            return _with_node(node, _of_call(cause, frame))
        if isinstance(cause, MissingMandatoryValue):
            return f"{cause.full_key} must be given: {cause.full_key}=..."
    return None


def of_configuration(error: BaseException, groups: Callable[[], Iterable[str]]) -> str | None:
    """The line for an error raised while the configuration was composed from files and command line."""
    if (line := of_input(error)) is not None:
        return line
    if isinstance(error, OverrideParseException):
        reason = error.message.partition("\nSee https://")[0].removeprefix(f"Error parsing override '{error.override}'")
        hint = """; a value with a space or one of ,=:()[]{} wants quotes: 'key="value"'"""
        return f"cannot read {error.override}: {one_line(reason)}{hint}"
    if isinstance(error, MissingConfigException) and error.options is not None and error.missing_cfg_file:
        return _of_option(error, error.missing_cfg_file)
    for cause in causes(error):
        if isinstance(cause, (ConfigAttributeError, ConfigKeyError)) and isinstance(cause.parent_node, DictConfig):
            return _of_key(cause, groups())
        if isinstance(cause, yaml.YAMLError):
            return f"cannot read a configuration file: {one_line(str(cause))}"
        if isinstance(cause, OmegaConfBaseException):
            return _with_node(cause.full_key or "", one_line(str(cause.msg or cause).partition("\n    full_key")[0]))
    if isinstance(error, ValueError) and "Config group override must be a string" in str(error):
        return "a group of the configuration cannot be null on the command line: ~method takes the group method away"
    return one_line(str(error).partition("\nConfig search path:")[0]) if isinstance(error, HydraException) else None


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it says it came from. OmegaConf wraps a resolver's error without saying so."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or (found.__context__ if isinstance(found, OmegaConfBaseException) else None)


def one_line(text: str) -> str:
    return "; ".join(line.strip().rstrip(";") for line in text.splitlines() if line.strip())


def nearest(word: str, options: Iterable[str]) -> str:
    """`; did you mean 'head'?`, or nothing where nothing is near."""
    found = difflib.get_close_matches(word, list(options), n=1)
    return f"; did you mean '{found[0]}'?" if found else ""


def _of_option(error: MissingConfigException, missing: str) -> str:
    group, _, option = missing.rpartition("/")
    if missing in EXTRAS:
        return f"{missing} is not installed: pip install 'contrast[{EXTRAS[missing]}]'"
    options = sorted(error.options or [])
    return f"{group} has no option '{option}'{nearest(option, options)}; options: {', '.join(options) or 'none'}"


def _of_key(error: ConfigAttributeError | ConfigKeyError, groups: Iterable[str]) -> str:
    node = error.parent_node
    where = node._get_full_key(None)
    keys = [str(key) for key in node if key != "hydra" or where]
    if where:
        known = f"; keys: {', '.join(sorted(keys))}; +{where}.{error.key}=... adds one" if keys else ""
        return f"{where} has no key '{error.key}'{nearest(str(error.key), keys)}{known}"
    names = sorted({*keys, *(group for group in groups if not group.startswith("hydra"))})
    return f"there is no key or group '{error.key}'{nearest(str(error.key), names)}; there are {', '.join(names)}"


def _of_instantiation(error: InstantiationException) -> str | None:
    text = str(error)
    node = (re.search(r"full_key: (\S+)", text) or ["", ""])[1]
    cause = error.__cause__
    if isinstance(cause, TypeError) and (frame := _calling_frame(cause)) is not None:
        return _with_node(node, _of_call(cause, frame))
    if isinstance(cause, ImportError) and text.startswith("Error locating target"):
        return _with_node(node, f"{text.splitlines()[0].split(', set env var')[0]}: {one_line(str(cause))}")
    if cause is None:  # Hydra itself refuses the node
        return _with_node(node, one_line(text.partition("\nfull_key:")[0]))
    return None


def _calling_frame(error: TypeError) -> FrameType | None:
    """Hydra's frame, if it is the call itself that does not fit, and not something that went wrong inside."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None or traceback.tb_frame.f_code.co_name not in ("_call_target", "_call_with_target_policy"):
        return None
    return traceback.tb_frame


def _of_call(error: TypeError, frame: FrameType) -> str:
    text = one_line(str(error))
    unexpected = re.search(r"unexpected keyword argument '(\w+)'$", text)
    if not unexpected:
        return text
    target = frame.f_locals.get("_target_") or getattr(frame.f_locals.get("self"), "func", None)  # of a partial
    return text + nearest(unexpected[1], _parameters(target))


def _parameters(target: object) -> list[str]:
    try:
        return list(inspect.signature(target).parameters)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # a builtin that does not tell
        return []


def _with_node(node: str, text: str) -> str:
    return f"{node}: {text}" if node else text


def wants_traceback() -> bool:
    return os.environ.get("HYDRA_FULL_ERROR") == "1"
