"""Errors that a user can correct, each as one line; for all others the traceback is the message."""

import difflib
import errno
import re
from collections.abc import Callable, Iterable, Iterator

import yaml
from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from contrast.errors import InputError
from contrast.errors import one_line as said

NO_MEMORY = re.compile("out of memory|allocate memory|[Uu]nable to allocate")  # torch on a GPU and on a CPU, numpy
# of an OSError that says what is wrong with the path that it names
OF_A_PATH = "EACCES EPERM EROFS EISDIR ENOTDIR EEXIST ENAMETOOLONG ELOOP EBUSY"
PATH_ERRORS = {getattr(errno, name) for name in OF_A_PATH.split() if hasattr(errno, name)}
NO_GROUP = re.compile(r"Could not override '(\S+)'\. No match in the defaults list")
PLUGIN = re.compile(r"hydra/\w+/(joblib|submitit|ray)")  # each is an extra of this package


def task_error(error: BaseException) -> str | None:
    """The line for an error of a task that is no error of the program; None for any other error.

    Such are an InputError at any depth, a part of the configuration that cannot be constructed, whatever its
    constructor raised, paths that cannot be read or written, and too little memory.
    """
    for cause in causes(error):
        if isinstance(cause, InputError):
            return one_line(str(cause))
    for cause in causes(error):
        if isinstance(cause, InstantiationException):
            text, _, key = str(cause).partition("\nfull_key: ")
            origin = cause.__cause__
            return f"{key}: {one_line(text) if origin is None else said(origin)}"
        if isinstance(cause, MissingMandatoryValue):
            return f"{cause.full_key} must be given: {cause.full_key}=..."
        if isinstance(cause, RuntimeError) and str(cause).startswith("Error(s) in loading state_dict"):
            return f"the checkpoint is of other networks than its configuration: {str(cause).splitlines()[-1].strip()}"
        if type(cause).__name__ == "MisconfigurationException":  # of Lightning, which need not be imported here
            return f"trainer: {said(cause)}"
        if isinstance(cause, OSError) and cause.errno in PATH_ERRORS and cause.filename:
            return f"{cause.filename}: {cause.strerror}"
        if isinstance(cause, MemoryError | RuntimeError) and NO_MEMORY.search(said(cause)):
            return f"{said(cause)}; a smaller batch_size or micro_batch takes less memory"
    return None


def configuration_error(error: BaseException, groups: Callable[[], Iterable[str]]) -> str | None:
    """The line for an error raised while the configuration was composed from files and command line."""
    if (line := task_error(error)) is not None:
        return line
    if isinstance(error, OverrideParseException):
        reason = error.message.partition("\nSee https://")[0].removeprefix(f"Error parsing override '{error.override}'")
        hint = """; a value with a space or one of ,=:()[]{} needs quotes: 'key="value"'"""
        return f"cannot read {error.override}: {one_line(reason)}{hint}"
    if isinstance(error, MissingConfigException) and error.options is not None and error.missing_cfg_file:
        return _unknown_option(error.missing_cfg_file, sorted(error.options))
    for cause in causes(error):
        if isinstance(cause, (ConfigAttributeError, ConfigKeyError)) and isinstance(cause.parent_node, DictConfig):
            return _unknown_key(cause, groups())
        if isinstance(cause, yaml.YAMLError):
            return f"cannot read a configuration file: {one_line(str(cause))}"
        if isinstance(cause, OmegaConfBaseException):
            return f"{cause.full_key}: {one_line(str(cause.msg or cause).partition(chr(10) + '    full_key')[0])}"
    if isinstance(error, ValueError) and "Config group override must be a string" in str(error):
        return "a group of the configuration cannot be null on the command line: ~GROUP removes it, such as ~output"
    if isinstance(error, HydraException) and (group := NO_GROUP.search(str(error))):
        return f"this command has no group '{group[1]}' to choose from: leave out {group[1]}=..."
    return one_line(str(error).partition("\nConfig search path:")[0]) if isinstance(error, HydraException) else None


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error and its causes, outermost first. OmegaConf wraps a resolver's error without naming it as the cause."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or (cause.__context__ if isinstance(cause, OmegaConfBaseException) else None)


def one_line(text: str) -> str:
    """The lines as one. Characters that could control a terminal, as a name in a file may hold, become escapes."""
    line = "; ".join(line.strip().rstrip(";") for line in text.splitlines() if line.strip())
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in line)


def nearest(word: str, options: Iterable[str]) -> str:
    """`; did you mean 'head'?`, or an empty text if no option is similar."""
    matches = difflib.get_close_matches(word, list(options), n=1)
    return f"; did you mean '{matches[0]}'?" if matches else ""


def _unknown_option(file: str, options: list[str]) -> str:
    group, _, option = file.rpartition("/")
    if plugin := PLUGIN.match(file):
        return f"{file} is not installed: pip install 'contrast-learning[{plugin[1]}]'"
    return f"{group} has no option '{option}'{nearest(option, options)}; options: {', '.join(options) or 'none'}"


def _unknown_key(error: ConfigAttributeError | ConfigKeyError, groups: Iterable[str]) -> str:
    node, groups = str(error.full_key).rpartition(".")[0], list(groups)
    keys = sorted(str(key) for key in error.parent_node or ())
    if node and keys:
        known = f"; keys: {', '.join(keys)}; +{node}.{error.key}=... adds one"
        return f"{node} has no key '{error.key}'{nearest(str(error.key), keys)}{known}"
    if node:  # a value, which OmegaConf has replaced by an empty mapping by now
        group = node.replace(".", "/")
        option = f", +{group}=... puts an option with keys in its place" if "/" in group and group in groups else ""
        return f"{node} has no keys, and so no '{error.key}': {node}=... sets it as a whole{option}"
    names = sorted(name for name in {*keys, *groups} if not name.startswith("hydra"))
    return f"there is no key or group '{error.key}'{nearest(str(error.key), names)}; known are {', '.join(names)}"
