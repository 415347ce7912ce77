"""English that every installation carries: the documentation in the source of Python and of what contrast needs."""

import ast
import gc
import importlib.util
import platform
import re
import sysconfig
import warnings
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import distributions
from itertools import chain
from pathlib import Path

from tqdm import tqdm

from contrast.atomic import replacing
from contrast.data.store import cache_folder, digest
from contrast.data.text.corpus import Corpus, corpus
from contrast.errors import InputError, named_errors

topics: dict[str, str] = {}
with suppress(ImportError):  # some systems leave them out of what they call Python
    import pydoc_data.topics as pydoc

    topics = pydoc.topics

PACKAGES = {  # as imported: as installed; in this order, until there are enough words
    "numpy": "numpy",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "matplotlib": "matplotlib",
    "torch": "torch",
}
_FORMAT = 2
_SKIPPED = {"test", "tests", "testing", "site-packages", "dist-packages", "_vendor", "encodings", "lib2to3", "idlelib"}
_WORD = re.compile(r"[^\W\d_]+")
_DOCTEST = re.compile(r"^\s*(>>>|\.\.\.).*$", re.MULTILINE)
_DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def docstrings(
    most: int = 1_000_000,
    min_count: int = 5,
    max_words: int | None = None,
    unknown: str = "drop",
    held_out: float = 0.0,
    seed: int = 0,
    cache: str | Path | None = None,
) -> Corpus:
    """A corpus of about `most` words: `help()` topics of Python, then docstrings of its library and of PACKAGES.

    Each line is a docstring in small letters, without punctuation, digits and the code of doctests, as in text8. A
    docstring that occurs several times is read once. Files are parsed, never imported. The text depends on the versions
    installed: use it to try things out, not to compare results. The other arguments are those of `corpus`.

    Raises InputError for `most` below 2, because the shortest line has two words, and as `corpus` does.
    """
    if most < 2:
        raise InputError(f"a corpus of at least 2 words is needed, the shortest line, not most={most}")
    versions = [[name, *(package.version for package in distributions(name=name))] for name in PACKAGES.values()]
    file = cache_folder(cache) / "docstrings" / f"{digest(_FORMAT, most, platform.python_version(), versions)}.txt"
    if not file.exists():
        problem = f"cannot write the docstrings to {file.parent}, give another cache (+data.cache=FOLDER)"
        with named_errors((OSError,), problem), replacing(file) as path, open(path, "wb") as opened:
            opened.writelines(f"{line}\n".encode() for line in _lines(most))
    return corpus(file, min_count, max_words, unknown, None, held_out, seed, cache, name="docstrings")


def _lines(most: int) -> Iterator[str]:
    """Distinct lines of at least two words, until they have `most` words, or one less, as no line has one word."""
    seen: set[str] = set()
    total = 0
    with tqdm(total=most, desc="docstrings", unit="word", unit_scale=True, delay=1, leave=False) as bar:
        for text in chain((topics[name] for name in sorted(topics)), _documentation()):
            words = _WORD.findall(_DOCTEST.sub("", text).lower())[: most - total]
            line = " ".join(words)
            if len(words) > 1 and line not in seen:
                seen.add(line)
                total += len(words)
                bar.update(len(words))
                yield line
            if most - total < 2:
                return


def _documentation() -> Iterator[str]:
    for root in _roots():
        for file in sorted(root.rglob("*.py")):
            if _SKIPPED.isdisjoint(file.relative_to(root).parts):
                yield from _of(_tree(file))


def _tree(file: Path) -> ast.AST:
    collects = gc.isenabled()
    gc.disable()  # a tree has no cycles, and looking for cycles in its many new objects takes longer than parsing
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the source that is parsed, such as "\d" in a string
            return ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, OSError, RecursionError):  # written for another version of Python, for example
        return ast.Module([], [])
    finally:
        if collects:
            gc.enable()


def _of(node: ast.AST) -> Iterator[str]:
    """Docstrings of a module, class or function and those within it. Expressions, most of a tree, are not visited."""
    if isinstance(node, _DOCUMENTED) and (text := ast.get_docstring(node, clean=False)):
        yield text
    for field in ("body", "orelse", "handlers", "finalbody"):
        for child in getattr(node, field, ()):
            yield from _of(child)


def _roots() -> Iterator[Path]:
    yield Path(sysconfig.get_path("stdlib"))
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            yield Path(spec.origin).parent
