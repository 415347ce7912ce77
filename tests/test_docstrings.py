"""A corpus of docstrings: what is read of a source, in which order, and on any installation."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

import contrast.data.text.docstrings
from contrast.data.text.corpus import Corpus
from contrast.data.text.docstrings import docstrings
from contrast.data.text.vocabulary import BORDER
from contrast.errors import InputError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTRAST_CACHE", str(tmp_path / "cache"))


def lines_of(found: Corpus) -> list[str]:
    text = " ".join("|" if i == BORDER else found.words[i] for i in found.ids.tolist())
    return [line.strip() for line in text.split("|")[:-1]]


def test_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "package"
    source = '''"""Module's text.

>>> code.of(doctest)
    ... more_code
"""
"no docstring"
if True:
    class A:
        """A class 2, with `marks`."""
        async def f(self):
            "One line"
            def inner(): r"""Inner \\d text"""
else:
    def g():
        """One line"""
try:
    pass
except Exception:
    def h(): """handled here"""
'''
    (package / "tests").mkdir(parents=True)
    (package / "b.py").write_text(source)
    (package / "a.py").write_text("def broken(:")
    (package / "tests/c.py").write_text('"""Not this one"""')
    monkeypatch.setattr(contrast.data.text.docstrings, "_roots", lambda: [package])
    monkeypatch.setattr(contrast.data.text.docstrings, "topics", {"b": "Topic two", "a": "Topic one"})
    found = docstrings(min_count=1)
    assert lines_of(found) == [
        "topic one",
        "topic two",
        "module s text",
        "a class with marks",
        "one line",
        "inner d text",
        "handled here",
    ]
    assert found.name == "docstrings"
    assert docstrings(most=6, min_count=1).total_words == 6


@pytest.mark.parametrize(("most", "expected"), [(2, ["one two"]), (3, ["one two three"]), (4, ["one two three"])])
def test_nothing_is_parsed_for_less_than_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, expected: list[str]
):
    (tmp_path / "a.py").touch()
    monkeypatch.setattr(contrast.data.text.docstrings, "_roots", lambda: [tmp_path])
    monkeypatch.setattr(contrast.data.text.docstrings, "_tree", lambda file: pytest.fail(f"{file} is parsed"))
    monkeypatch.setattr(contrast.data.text.docstrings, "topics", {"a": "One two three", "b": "Four"})
    assert lines_of(docstrings(most=most, min_count=1)) == expected


def test_this_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = docstrings(most=3000)
    assert 2900 < first.total_words < 3100
    assert {"the", "statement"} <= set(first.words)
    fresh = docstrings(most=3000, cache=tmp_path / "fresh")
    assert torch.equal(first.ids, fresh.ids)
    monkeypatch.setattr(contrast.data.text.docstrings, "_documentation", lambda: pytest.fail("read again"))
    monkeypatch.setattr(contrast.data.text.docstrings, "topics", {})
    assert torch.equal(first.ids, docstrings(most=3000).ids)


def test_the_sources_of_a_root_are_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    names = ["b/a.py", "B.py", "a.py", "b.py", "a/z.py"]
    for name in names:
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text(f'"""file {name}"""')
    monkeypatch.setattr(contrast.data.text.docstrings, "_roots", lambda: [tmp_path / "root", tmp_path / "absent"])
    expected = [f"file {'/'.join(parts)}" for parts in sorted(name.split("/") for name in names)]
    assert list(contrast.data.text.docstrings._documentation()) == expected


def test_python_without_help_topics(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    found = runpy.run_path(contrast.data.text.docstrings.__file__)
    assert found["topics"] == {}
    assert found["docstrings"](most=2000).total_words == pytest.approx(2000, rel=0.05)


def test_errors(tmp_path: Path):
    for most in (0, 1):
        with pytest.raises(InputError, match=f"at least 2 words .*most={most}"):
            docstrings(most=most)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot write the docstrings to .*give another cache"):
        docstrings(most=100, cache=tmp_path / "file" / "cache")


@pytest.mark.slow
def test_a_million_words():
    found = docstrings()
    assert found.total_words == pytest.approx(1_000_000, rel=1e-3)
    assert {"array", "function", "python", "distribution"} <= set(found.words)
