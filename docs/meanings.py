"""What the reference of the configuration says of an argument: from comments and from docstrings."""

import functools
import inspect
import pydoc
import re
import textwrap
from itertools import takewhile
from typing import Any, get_origin

import griffe
from typing_extensions import Unpack

from contrast.config import facts
from contrast.encoders import finish, mlp
from contrast.run.schema import types_of
from contrast.views.simclr import Recipe, SimCLRViews

# what a function passes its remaining arguments on to
ALSO: dict[str, list[Any]] = {
    "contrast.views.SimCLRViews": [Recipe],
    "contrast.views.natural": [SimCLRViews, Recipe],
    "contrast.encoders.predictor": [mlp],
}
COLUMNS = re.compile(r"^( *)(\w+(?:, \w+)*)  +(\S.*(?:\n\1 {2,}\S.*)*)", flags=re.M)


def documented(called: Any, target: str) -> dict[str, str]:
    """The meaning of each argument, from docstrings in columns, comments in a signature, or a Google docstring."""
    found: dict[str, str] = {}
    own = target.startswith("contrast")
    sources = [called, *(called.__mro__ if inspect.isclass(called) else []), *ALSO.get(target, [])]
    if own and any(get_origin(hint) is Unpack for hint in types_of(called).values()):
        sources.append(pydoc.locate("contrast.data.images.folder.folder"))
    if own:
        sources.append(finish)
    for each in sources:
        text = inspect.getdoc(each) or ""
        said = {name: squeezed(match[3]) for match in COLUMNS.finditer(text) for name in match[2].split(", ")}
        if not own:
            said = google(text) | google(inspect.getdoc(each.__init__) or "" if inspect.isclass(each) else "")
        elif each is not object:
            said = in_source(each) | said
        found = said | found
    return found


def google(text: str) -> dict[str, str]:
    sections = griffe.Docstring(text).parse("google", warnings=False)
    return {
        item.name: squeezed(item.description).partition(". ")[0].removeprefix("Default: ")
        for section in sections
        if section.kind is griffe.DocstringSectionKind.parameters
        for item in section.value
    }


def in_source(called: Any) -> dict[str, str]:
    """Comments behind the arguments or the fields: `hue: float = 0.2  # turned by up to ...`."""
    try:
        lines = inspect.getsource(called).splitlines()
    except (OSError, TypeError):
        return {}
    head = takewhile(lambda line: "__post_init__" not in line and not re.match(r"\s+\) (->.*)?:$", line), lines)
    return {m[1]: m[2] for line in head if (m := re.match(r"\s+(\w+): .*?  # (.*)", line))}


@functools.cache
def documented_facts() -> dict[str, str]:
    text = facts.__doc__ or ""
    return {name: squeezed(match[3]) for match in COLUMNS.finditer(text) for name in match[2].split(", ")}


def comments(text: str) -> dict[str, str]:
    """The comment behind each value of a YAML file, by key."""
    found: dict[str, str] = {}
    path: list[str] = []
    for line in text.splitlines():
        match = re.match(r"( *)([\w.]+):(.*)", line)
        if not match:
            continue
        depth = len(match[1]) // 2
        path = [*path[:depth], match[2]]
        _, hash_, comment = match[3].partition(" # ")
        if hash_:
            found[".".join(path)] = comment.strip()
    return found


def description(text: str) -> str:
    """The comment at the head of a file, or behind its first line."""
    lines = [line for line in text.splitlines() if not line.startswith("# @package")]
    head = [line.removeprefix("#").strip() for line in takewhile(lambda line: line.startswith("#"), lines)]
    if head:
        return " ".join(head)
    return lines[0].partition(" # ")[2].strip() if lines else ""


def squeezed(text: str) -> str:
    return " ".join(textwrap.dedent(text).split())
