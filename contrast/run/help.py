"""The help of a command: what the comments of its primary configuration say."""

import re
import textwrap
from pathlib import Path

LINE = re.compile(r"( *)(- )?([\w/]+):(?: +([^#\s].*?))??(?: +# (.*))?")  # indent, of a group, key, value, comment
FOOTER = """
--cfg job          prints the whole configuration and runs nothing
--cfg job -p KEY   prints a part of it: -p encoder
-m                 runs every combination of values: -m seed=0,1,2 head.temperature=0.1,0.2
--config-dir DIR   adds a folder with configurations of your own
--version          prints the versions
"""


def help_text(conf: Path, name: str) -> str:
    """What `conf/<name>.yaml` begins with, its groups and their options, and its keys with their comments."""
    lines = (conf / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    head = next((row for row, line in enumerate(lines) if not line.startswith("#")), len(lines))
    groups, keys, named, parents = [""], [""], set(), [(-1, "")]
    for line in lines[head:]:
        if (match := LINE.fullmatch(line)) is None:
            continue
        indent, is_group, key, value, comment = match.groups()
        while parents[-1][0] >= len(indent):
            parents.pop()
        if is_group:
            named.add(key)
            options = ", ".join(sorted(path.stem for path in (conf / key).glob("*.yaml")))
            groups += entry(shown(key, value), comment or "", options)
        elif key != "defaults":
            key = f"{parents[-1][1]}{key}"
            keys += entry(shown(key, value), comment or "") if value and key not in named else []
            parents.append((len(indent), f"{key}."))
    top = [line.removeprefix("#").removeprefix(" ") for line in lines[:head]]
    titles = "Groups, with their defaults and their options (group=option):", "Keys, with their defaults (key=value):"
    return "\n".join([*top, "", titles[0], *groups[1:], "", titles[1], *keys[1:], FOOTER.rstrip()])


def shown(key: str, value: str) -> str:
    """A key with its default, which is left out if it is computed from others."""
    return key if "${" in value else f"{key}={value}"


def entry(name: str, *texts: str) -> list[str]:
    """The lines of a group or key: its name, and on the right of it each text that is not empty."""
    lines = [line for text in texts for line in textwrap.wrap(text, 80)] or [""]
    beside = [f"{'':36}{line}" for line in lines]
    if len(name) > 33:
        return [f"  {name}", *beside]
    return [f"  {name:<34}{lines[0]}".rstrip(), *beside[1:]]
