"""One HTML file from sections of plain values. The template beside this file has the layout, the colours and the code.

A section has a `kind`, which names the function of the *.js that draws it, a `title`, and the values that this function
reads. Images are numbered as in the `sprite` and the columns of `items`.
"""

import base64
import json
import math
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TypedDict

from typing_extensions import NotRequired

from contrast.atomic import rewrite

SCRIPTS = ("base", "charts", "map", "page")  # the files of the code, in the order in which they run
Section = dict[str, object]


class Page(TypedDict):
    """What the page shows, as it is written into it as JSON."""

    title: str
    subtitle: str
    sections: Sequence[Section | None]
    sprite: NotRequired[Mapping[str, object]]  # contrast.report.pictures
    items: NotRequired[Mapping[str, object]]  # of each image: name, label, predicted, caption


def write_page(path: Path, page: Page) -> None:
    """Writes the page, whole or not at all. Sections that are None are left out."""
    sections = [section for section in page["sections"] if section is not None]
    text = json.dumps(finite({**page, "sections": sections}), separators=(",", ":"), allow_nan=False)
    # names of files and classes are data: no `<` in them can end the element
    script = "".join(part(f"{name}.js") for name in SCRIPTS)
    parts = {"data": text.replace("<", "\\u003c"), "style": part("page.css"), "script": script}
    rewrite(path, re.sub(r"\{\{(\w+)\}\}", lambda name: parts[name[1]], part("page.html")))


def part(name: str) -> str:
    return files("contrast.report").joinpath(name).read_text(encoding="utf-8")


def data_uri(content: bytes, kind: str) -> str:
    """A file as an address that contains it; kind is its media type, "image/png"."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def picture(path: Path, title: str, note: str = "") -> Section | None:
    """A section that shows a PNG file; None if there is none."""
    if not path.is_file():
        return None
    return {"kind": "picture", "title": title, "note": note, "uri": data_uri(path.read_bytes(), "image/png")}


def table(title: str, heads: Sequence[str], rows: Sequence[Sequence[object]], note: str = "") -> Section:
    """A section with a table whose rows can be sorted by each column."""
    return {"kind": "table", "title": title, "note": note, "heads": list(heads), "rows": [list(row) for row in rows]}


def finite(value: object) -> object:
    """The same with None for numbers that are not finite, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
