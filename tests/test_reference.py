"""The reference of the configuration: what it says of an argument is what the code says."""

import re
import sys
from pathlib import Path

import pytest

import contrast

pytest.importorskip("griffe", reason="pip install 'contrast-learning[docs]'")
sys.path.insert(0, str(Path(contrast.__file__).parents[1] / "docs"))
reference = pytest.importorskip("reference")
docstrings = pytest.importorskip("docstrings")
hooks = pytest.importorskip("hooks", exc_type=ImportError)


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return reference.pages()


def rows(text: str) -> dict[str, list[str]]:
    """Type, default and meaning of each key; of a key that stands there twice, the first."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        cells = [re.sub(r"</?code>", "", cell).strip() for cell in line.strip("|").split("|")]
        if line.startswith("| <code>") and len(cells) == 4:
            found.setdefault(cells[0], cells[1:])
    return found


def test_type_default_and_meaning(pages: dict[str, str]) -> None:
    found = rows(pages["configuration.md"])
    assert found["batch_size"] == ["int", "256", "images of a step, over all ranks"]
    assert found["same_label"][0] == "negative &#124; positive &#124; ignored"
    assert found["head.temperature"][:2] == ["float &#124; Temperature", "0.1"]  # of a signature
    assert found["head.bias.momentum"][2] == "of the exponential mean"  # of a docstring
    assert found["views.jitter"][2].startswith("probability of colour jitter")  # a comment behind a field
    assert found["trainer.max_epochs"][2].startswith("Stop training once this number of epochs")  # Lightning's own
    assert found["negatives.num_ids"][1] == ""
    assert found["negatives.num_ids"][2].endswith("(found by the run)")  # a fact
    empty = [key for key, cells in found.items() if not cells[2] and not key.startswith(("trainer.", "optimizer."))]
    assert len(empty) < 0.05 * len(found), empty


def test_every_group_and_every_public_name(pages: dict[str, str]) -> None:
    groups = {path.name for path in reference.CONF.iterdir() if path.is_dir()} - {"hydra"}  # a plugin
    assert {name for name in groups if f"\n### {name}\n" not in pages["configuration.md"]} == set()
    for name in ("contrast.load", "contrast.losses.NTXentLoss", "contrast.functional.nt_xent", "contrast.heads.Head"):
        assert f"::: {name}\n" in pages["api.md"]


def test_columns_of_a_docstring_are_a_list() -> None:
    text = "What it does.\n\nwidth  of a layer,\n       in pixels\na, b   two numbers\nMore text.\n\n    x = 1"
    assert docstrings.as_list(text) == (
        "What it does.\n\n- `width`: of a layer, in pixels\n- `a`, `b`: two numbers\n\nMore text.\n\n    x = 1"
    )


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        (r"\log Z", '<mo lspace="0" rspace="0.167em">log</mo>'),
        (r"p \log (Z)", '<mo lspace="0.167em" rspace="0">log</mo>'),
        (r"\exp", '<mo lspace="0" rspace="0">exp</mo>'),
        (r"|q| \psi", '<mi>q</mi><mo stretchy="false" lspace="0" rspace="0">&#x0007C;</mo>'),
        (r"b = -Z", '<mo form="prefix">&#x02212;</mo>'),
        (r"\sigma(-Z)", '<mo form="prefix">&#x02212;</mo>'),
        (r"(a) - Z", "</mo><mo>&#x02212;</mo>"),
        (r"a - Z", "</mi><mo>&#x02212;</mo>"),
    ],
)
def test_spaces_of_formulas(formula: str, expected: str) -> None:
    assert expected in hooks.spaced(hooks.convert(formula))
