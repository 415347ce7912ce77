"""Docstrings as Markdown: their lines `name  meaning` become a list. The rest of a docstring is Markdown as it is."""

import re

import griffe

ENTRY = re.compile(
    r"^(?P<indent> *)(?P<names>\w+(?:, \w+)*)  +(?P<meaning>\S.*(?:\n(?P=indent) {2,}\S.*)*)", flags=re.M
)


def as_list(text: str) -> str:
    """A docstring whose columns are a list of Markdown."""
    text = re.sub(r"<(?=\w)", "&lt;", text)

    def entry(match: re.Match[str]) -> str:
        names = ", ".join(f"`{name}`" for name in match["names"].split(", "))
        return f"\0- {names}: {' '.join(match['meaning'].split())}"

    lines = ENTRY.sub(entry, text).split("\n")
    spaced: list[str] = []
    for line in lines:
        item = line.startswith("\0")
        if spaced and spaced[-1] and item != spaced[-1].startswith("\0") and not line.startswith("    "):
            spaced.append("")
        spaced.append(line)
    return "\n".join(spaced).replace("\0", "")


class Columns(griffe.Extension):
    def on_instance(self, *, obj: griffe.Object, **kwargs: object) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_list(obj.docstring.value)
