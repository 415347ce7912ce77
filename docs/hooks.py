"""What mkdocs does for the site besides rendering the pages of this folder.

- Pages from elsewhere in the repository are added: README.md is the first page.
- The reference of the configuration and the notebooks become pages.
- Links are written for readers of the repository. On the site, a link to a file that is no page becomes plain text.
- Formulas become MathML, which browsers show without a script or a font from a network.
"""

import html
import posixpath
import re
import sys
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path.insert(0, str(DOCS))
import reference  # noqa: E402

PAGES = {  # files of the repository and the pages that they become
    "README.md": "index.md",
    "SECURITY.md": "security.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
}
COMING = ("sweeps.md", "report.md")
SOURCES = {page: source for source, page in PAGES.items()}
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", flags=re.S | re.M)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Leaves out of the navigation what is still to be written."""
    absent = {page for page in COMING if not (DOCS / page).exists()}
    for section in config.nav or []:
        for name, entries in section.items():
            section[name] = [entry for entry in entries if not absent & set(entry.values())]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    for page, text in reference.pages().items():
        files.append(File.generated(config, page, content=text))
    for path in sorted((DOCS / "notebooks").glob("*.ipynb")):
        files.remove(files.src_uris[f"notebooks/{path.name}"])
        text, resources = MarkdownExporter().from_filename(str(path))
        for name, data in resources["outputs"].items():
            text = text.replace(f"({name})", f"({path.stem}_{name})")
            files.append(File.generated(config, f"notebooks/{path.stem}_{name}", content=data))
        text = re.sub(r"\n(?:[ \t]*\n){2,}", "\n\n", text)  # between outputs
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links of the repository become links of the site, outside code."""
    here = page.file.src_uri
    source = SOURCES.get(here, f"docs/{here}")

    def rewritten(match: re.Match[str]) -> str:
        mark, text, target = match.groups()
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        path, hash_, anchor = target.partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        on_site = PAGES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        if on_site is None:
            if not (ROOT / path).exists():
                raise ValueError(f"{source} links to {target}, which does not exist")
            return text
        if on_site.endswith(".md") and text.strip("`") in (target, target.removesuffix(hash_ + anchor), path):
            text = title_of(files, on_site)
        relative = posixpath.relpath(on_site, posixpath.dirname(here) or ".")
        return f"{mark}[{text}]({relative}{hash_}{anchor})"

    parts = CODE.split(markdown)
    inline = re.compile(r"\[`[^`\n]+`\]\([^)\s]+\)")  # a link whose text is code
    markdown = inline.sub(lambda match: LINK.sub(rewritten, match[0]), markdown)
    parts = CODE.split(markdown)
    return "".join(part if index % 2 else LINK.sub(rewritten, part) for index, part in enumerate(parts))


def title_of(files: Files, page: str) -> str:
    """The first heading of a page, which takes the place of a file name as the text of a link."""
    file = files.get_file_from_path(page)
    heading = re.search(r"^# (.+)$", file.content_string, flags=re.M) if file is not None else None
    return heading[1] if heading else page


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    def formula(match: re.Match[str]) -> str:
        display = "block" if match[1] == "div" else "inline"
        return spaced(convert(html.unescape(match[2])[2:-2], display=display))

    content = re.sub(r'<(span|div) class="arithmatex">(.*?)</\1>', formula, content, flags=re.S)
    # a number and its interval stay on one line of a cell
    return re.sub(r"<td.*?</td>", lambda cell: cell[0].replace(" ± ", "\u00a0±\u00a0"), content, flags=re.S)


def spaced(formula: str) -> str:
    """MathML with the spaces of TeX around functions (log x), and none in a norm (|x|) or behind a sign (a = -b)."""

    def function(match: re.Match[str]) -> str:
        before, name, after = match[1] or "", match[2], match[3] or ""
        left, right = ("0" if each else "0.167em" for each in (before, after))
        return f'{before}<mo lspace="{left}" rspace="{right}">{name}</mo>{after}'

    formula = re.sub(r"(<mrow>|</mo>)?<mi>(cos|exp|log)</mi>(</mrow>|<mo[^>]*>&#x00028;)?", function, formula)
    formula = formula.replace('<mo stretchy="false">&#x0007C;', '<mo stretchy="false" lspace="0" rspace="0">&#x0007C;')
    closes = "&#x00029;|&#x0005D;|&#x0007C;"  # ) ] |
    return re.sub(rf"(?<!{closes})(</mo>)<mo>&#x02212;</mo>", r'\1<mo form="prefix">&#x02212;</mo>', formula)
