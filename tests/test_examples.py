"""The commands and the Python examples of README.md and docs/methods.md run, and give what the pages say."""

import ast
import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Command, figures

import contrast.functional
from contrast.functional import nt_xent

ROOT = Path(contrast.__file__).parents[1]
METHODS = (ROOT / "docs" / "methods.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.S | re.M)
    return [block for name, block in found if name == language]


def class_tables() -> list[str]:
    """The commands of that section, each on one line."""
    section = METHODS.partition("\n## Class tables\n")[2].partition("\n## ")[0]
    lines = "".join(blocks(section, "bash")).replace("\\\n", " ").splitlines()
    assert all(line.startswith("contrast-pretrain ") for line in lines)
    return lines


def example(text: str, function: str) -> str:
    """The one Python example that calls `function`."""
    (found,) = [block for block in blocks(text, "python") if f"{function}(" in block]
    return found


def test_every_kind_of_class_table_has_a_command() -> None:
    for word in (
        "LogUniform",
        "Poisson",
        "=nce",
        "negative_sampling",
        "LearnedBias",
        "hierarchical",
        "adaptive_softmax",
    ):
        assert any(word in line for line in class_tables()), word


@pytest.mark.parametrize("line", class_tables())
def test_commands_of_class_tables_train(pretrain: Command, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    monkeypatch.setattr(
        "contrast.training.trainer.save_curves", lambda run_dir: None
    )  # half of the time of so short a run
    few = ["callbacks=none", "trainer.limit_train_batches=2", "trainer.log_every_n_steps=1", "hydra.run.dir=run"]
    assert pretrain(*shlex.split(line)[1:], *TINY, *few) == 0
    assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 2
    assert 0 < figures("run")["loss"] < 20


def test_logistic_and_softmax_regression_are_scikit_learns(capsys: pytest.CaptureFixture[str]) -> None:
    told: dict[str, Any] = {}
    exec(example(METHODS, "LogisticRegression"), told)
    printed = capsys.readouterr().out
    pairs = re.findall(r"^(\w+) regression: ([\d.]+), scikit-learn's ([\d.]+)$", printed, flags=re.M)
    assert [name for name, *_ in pairs] == ["softmax", "logistic"]
    for _, ours, theirs in pairs:
        assert float(ours) > 0.9
        assert float(ours) == pytest.approx(float(theirs), abs=1.2e-3)  # one image of 898
    first, second = told["table"].vectors.detach()  # of 3 against 8, the last that was fitted
    torch.testing.assert_close((second - first)[1:], torch.from_numpy(told["theirs"].coef_[0]), rtol=0, atol=2e-3)
    (shown,) = [block for block in blocks(METHODS, "") if "scikit-learn" in block]
    on_the_page, here = ([float(number) for number in re.findall(r"\d\.\d+", text)] for text in (shown, printed))
    assert on_the_page == pytest.approx(here, abs=1.2e-3)


def test_losses_as_functions() -> None:
    told: dict[str, Any] = {}
    exec(example(METHODS, "sup_con"), told)
    assert told["losses"].shape == (64,)
    assert told["loss"].isfinite()
    assert [name for name in contrast.functional.__all__ if f"`{name}`" not in METHODS] == []


def test_the_readmes_loss() -> None:
    z1, z2 = torch.randn(2, 8, 4, requires_grad=True)
    told: dict[str, Any] = {"z1": z1, "z2": z2}
    exec(example((ROOT / "README.md").read_text(), "nt_xent"), told)
    torch.testing.assert_close(told["loss"], nt_xent(z1, z2, temperature=0.2))


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.name)
def test_benchmarks_import_names_that_exist(path: Path) -> None:
    """Most benchmarks need other libraries or a GPU and are not run here, so a renamed function would go unnoticed."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("contrast"):
            module = importlib.import_module(str(node.module))
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []
