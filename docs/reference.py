"""The reference of the configuration as Markdown, made from conf/, from signatures and from docstrings.

A constructor's signature is the schema of the node that names it, so the reference is read off the code: the type and
the default of an argument from the signature, its meaning from the comment in a YAML file or from a docstring, whose
lines are `name  meaning`.
"""

import dataclasses
import html
import inspect
import pydoc
import re
from collections.abc import Callable, Iterator
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import interface
import yaml
from meanings import ALSO, comments, description, documented, documented_facts
from typing_extensions import Unpack

from contrast.cli import commands, settings
from contrast.run import Command
from contrast.run.folder import conf_folder
from contrast.run.schema import target_nodes, types_of

CONF = conf_folder()
COMMANDS = {each.name: each.settings for each in vars(commands).values() if isinstance(each, Command)}
CHAPTERS = {
    "Methods": ["method", "key", "negatives", "head", "output"],
    "Networks": ["encoder", "projector", "predictor"],
    "Data and views": ["data", "views"],
    "Training": ["optimizer", "scheduler", "trainer", "callbacks", "model"],
    "Evaluation": ["evaluation", "protocol"],
    "Experiments, sweeps, logs": ["experiment", "debug", "sweep", "launcher", "logger"],
}
GLOBAL = ("method", "experiment")  # groups whose files set keys of the whole configuration
COMMON = {  # keys that mean the same wherever they stand
    "name": "part of the name of the run folder",
    "seed": "of all random numbers; the same seed gives the same run",
    "batch_size": "images at a time",
    "workers": "processes that decode images which are not in memory",
    "metric": "the entry of metrics.json that sweeps optimise",
    "direction": "whether sweeps maximise or minimise the metric",
    "data": "null: the data set of the checkpoint",
    "encoder": "null: the architecture in the checkpoint",
    "feature_cache": "the folder in which features are kept",
    "cache": "the folder in which decoded images are kept",
    "channels": "of the images; null: as in training",
    "config": "uploaded as it is",
    "enabled": "whether anything is evaluated at the end of the training",
    "file": "the table of paths and captions",
    "image_size": "pixels a side; null: as in training",
    "k": "training images that vote on a test image",
    "lr_end": "the learning rate at the end",
    "max_words": "the size of the vocabulary; null: all words",
    "min_count": "rarer words are not in the vocabulary",
    "temperature": "of the weights of the votes",
    "train_split": "the split to train on",
    "warmup_fraction": "the warm-up as a share of all steps",
    "max_test": "use at most so many test images",
    "weight_decay": "the penalty on the squared length of the weights",
    "held_out": "the share of the training images that is kept apart to measure on",
    "every_n_epochs": "a measurement after so many epochs",
    "root": "the folder of the images",
    "download": "download the data set if it is not there",
}
FROM_THE_RUN = ("params", "optimizer", "total_steps", "data", "images", "run_dir", "in_channels", "image_size")


class Argument(NamedTuple):
    key: str
    type: str
    default: str
    meaning: str


def pages() -> dict[str, str]:
    """The text of each page by its name."""
    intro = (
        "# Configuration\n\n"
        "This page is made from the files in `conf/` and from the signatures and docstrings of what they name, so it "
        "cannot be out of date. `GROUP=OPTION` chooses a file of a group, and `KEY=VALUE` sets a value. "
        "`+KEY=VALUE` sets an argument that no file mentions. `--cfg job` prints the configuration of a command, and a "
        "mistyped key is an error that names the nearest real one.\n"
    )
    text = [intro, "## Commands\n"]
    for name, types in COMMANDS.items():
        text.append(command(name, types))
    for chapter, groups in CHAPTERS.items():
        text.append(f"## {chapter}\n")
        text += [group(name) for name in groups]
    return {"configuration.md": "\n".join(text), "api.md": interface.page()}


def command(name: str, types: type) -> str:
    """The keys of a primary configuration, and its groups with their default options."""
    path = CONF / f"{name}.yaml"
    tree, said = yaml.safe_load(path.read_text()), comments(path.read_text())
    hints = get_type_hints(types, include_extras=False)
    rows = []
    for key, value in tree.items():
        inner = hints.get(key)
        if isinstance(value, dict) and key != "defaults":
            kinds = get_type_hints(inner) if inner is not None else {}
            for part, each in value.items():
                name_ = f"{key}.{part}"
                rows.append(
                    Argument(name_, kind(kinds.get(part)), shown(each), said.get(name_) or COMMON.get(part, ""))
                )
        elif key != "defaults":
            rows.append(Argument(key, kind(inner), shown(value), said.get(key) or COMMON.get(key, "")))
    groups = re.findall(r"^  - (\w+): (.+?)(?: +# (.*))?$", path.read_text(), flags=re.M)  # of the list of defaults
    lines = [f"### contrast-{name}\n", table(rows), "", "| group | option by default | |", "|---|---|---|"]
    lines += [f"| {code(key)} | {code(option)} | {cell(meaning)} |" for key, option, meaning in groups]
    return "\n".join([*lines, ""])


def group(name: str) -> str:
    """The options of a group, and the arguments of everything that they construct."""
    paths = {path.relative_to(CONF / name).with_suffix("").as_posix(): path for path in (CONF / name).rglob("*.yaml")}
    lines = [f"### {name}\n", "| option | | sets |", "|---|---|---|"]
    nodes: dict[str, list[str]] = {}  # the keys at which each target stands
    said: dict[str, dict[str, str]] = {}  # the comments on its arguments
    for option, path in sorted(paths.items()):
        text = path.read_text()
        found = [(re.sub(r"\.\d+", "", key), node) for key, node in target_nodes(yaml.safe_load(text) or {})]
        root = "" if "@package _global_" in text or name in GLOBAL else name
        choice = f"{name}={option}"
        if "/" in option:  # a group within a group
            inner, _, leaf = option.rpartition("/")
            choice, root = f"+{name}/{inner}={leaf}", f"{name}.{inner}"
        values = ", ".join(map(code, values_of(yaml.safe_load(text) or {})))
        lines.append(f"| {code(choice)} | {cell(description(text))} | {values} |")
        for key, node in found:
            full = ".".join(part for part in (root, key) if part)
            nodes.setdefault(node["_target_"], [])
            if full not in nodes[node["_target_"]]:
                nodes[node["_target_"]].append(full)
            notes = said.setdefault(node["_target_"], {})
            for each, comment in comments(text).items():
                inside, _, argument = each.rpartition(".")
                if inside == key and argument in node:
                    notes.setdefault(argument, comment)
    lines.append("")
    for target, keys in nodes.items():
        rows = list(arguments(target, keys[0], said[target]))
        if rows:
            others = "" if len(keys) == 1 else f" (also at {', '.join(f'`{key}`' for key in keys[1:])})"
            lines += [f"`{target}`{others}\n", table(rows), ""]
    if name == "evaluation":
        lines += plain_values(paths)
    return "\n".join(lines)


def values_of(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """What a file sets, as it is written on the command line."""
    for key, value in tree.items():
        if isinstance(value, dict) and value and key != "params":
            yield from values_of(value, f"{prefix}{key}.")
        elif key == "defaults":
            choices = [next(iter(each.items())) if isinstance(each, dict) else (each, "") for each in value]
            for group_, option in choices:
                if group_ != "_self_":
                    yield f"{group_.removeprefix('override ').lstrip('/')}{f'={shown(option)}' if option != '' else ''}"
        elif not key.startswith("_") and value != "???":
            yield f"{prefix}{key}={shown(value)}"


def plain_values(paths: dict[str, Any]) -> list[str]:
    """The values of files that construct nothing."""
    lines = []
    for option, path in sorted(paths.items()):
        text = path.read_text()
        hints = get_type_hints(settings.WordEvaluation if option == "words" else settings.FrozenEvaluation)
        said = COMMON | comments(text)
        rows = [
            Argument(f"evaluation.{key}", kind(hints.get(key)), shown(value), said.get(key, ""))
            for key, value in yaml.safe_load(text).items()
        ]
        lines += [f"`evaluation={option}`\n", table(rows), ""]
    return lines


def arguments(target: str, key: str, said: dict[str, str]) -> Iterator[Argument]:
    """What the constructor takes that a configuration can set."""
    called: Any = pydoc.locate(target)
    try:
        parameters = [
            parameter
            for each in [called, *ALSO.get(target, [])]
            for parameter in signature(each)
            if parameter.name not in FROM_THE_RUN and not parameter.name.startswith("_")
        ]
    except ValueError:  # the signature of a class that is not written in Python
        return
    types: dict[str, Any] = {}
    for each in [called, *ALSO.get(target, [])]:
        types = types_of(each) | types
    meanings = documented(called, target) | said
    known = documented_facts()
    for parameter in {each.name: each for each in reversed(parameters)}.values().__reversed__():
        name, default = parameter.name, parameter.default
        required = default is parameter.empty
        meaning = meanings.get(name) or COMMON.get(name, "")
        if required and name in known:
            meaning = f"{meaning or known[name]} (found by the run)"
        yield Argument(f"{key}.{name}", kind(types.get(name)), "" if required else shown(default), meaning)


def signature(called: Callable[..., object]) -> Iterator[inspect.Parameter]:
    """The parameters, with those of base classes and of typed options in place of **options."""
    for parameter in inspect.signature(called).parameters.values():
        hint = types_of(called).get(parameter.name)
        if parameter.kind is not parameter.VAR_KEYWORD:
            if parameter.kind is not parameter.VAR_POSITIONAL:
                yield parameter
        elif get_origin(hint) is Unpack:
            defaults = defaults_of(get_args(hint)[0])
            for name in get_type_hints(get_args(hint)[0]):
                yield inspect.Parameter(
                    name, inspect.Parameter.KEYWORD_ONLY, default=defaults.get(name, inspect.Parameter.empty)
                )
        elif inspect.isclass(called) and called.__base__ is not None and called.__base__ is not object:
            yield from signature(called.__base__)


def defaults_of(options: type) -> dict[str, object]:
    """The defaults of typed options: those of the dataclass with the same fields in the same module."""
    for each in vars(inspect.getmodule(options)).values():
        if dataclasses.is_dataclass(each):
            found = {field.name: field.default for field in dataclasses.fields(each)}
            if set(get_type_hints(options)) <= set(found):
                return found
    return {}


def table(rows: list[Argument]) -> str:
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for row in rows:
        lines.append(f"| {code(row.key)} | {code(row.type)} | {code(row.default)} | {cell(row.meaning)} |")
    return "\n".join(lines)


def code(text: str) -> str:
    """Code inside a table, where a bar would end the cell and a dollar sign begin a formula."""
    return f"<code>{html.escape(text).replace('|', '&#124;').replace('$', '&#36;')}</code>" if text else ""


def cell(text: str) -> str:
    """Text inside a table: the bar and what Markdown would read as markup are escaped."""
    return re.sub(r"([|*_<\[\]])", r"\\\1", text)


def kind(hint: object) -> str:
    """An annotation as it is written."""
    arguments_, origin = get_args(hint), get_origin(hint)
    if hint is None or hint is Any or isinstance(hint, TypeVar):
        return ""
    if origin is Annotated:
        return kind(arguments_[0])
    if origin is Literal:
        return " | ".join(shown(each) for each in arguments_)
    if origin in (Union, UnionType):
        return " | ".join(dict.fromkeys(kind(each) for each in arguments_))
    name = getattr(origin or hint, "__name__", str(hint))
    inner = ", ".join("..." if each is ... else kind(each) for each in arguments_ if not isinstance(each, list))
    return {"NoneType": "null"}.get(name, name) + (f"[{inner}]" if inner else "")


def shown(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, dict):
        return yaml.safe_dump(value, default_flow_style=True, width=1000).strip()
    return getattr(value, "__name__", str(value))


if __name__ == "__main__":
    for text in pages().values():
        print(text)
