"""docs/own.md is true: its views, encoder and data set train, resume, start from weights and are evaluated."""

import re
import sys
from pathlib import Path

import pytest
from conftest import Command, figures

import contrast

DOC = Path(contrast.__file__).parents[1] / "docs" / "own.md"
NAMES = {
    "my/views/mine.yaml",
    "my/patches.py",
    "my/encoder/patches.yaml",
    "my/waves.py",
    "my/data/waves.yaml",
    "my/dim.py",
    "my/views/dim.yaml",
}


@pytest.fixture
def my(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of the page."""
    files = re.findall(r"`(my/[\w/.]+)`[^`]*?\n```(?:python|yaml)\n(.*?)```", DOC.read_text(), flags=re.S)
    assert {name for name, _ in files} == NAMES
    for name, text in files:
        (workplace / name).parent.mkdir(parents=True, exist_ok=True)
        (workplace / name).write_text(text)
    monkeypatch.syspath_prepend(str(workplace / "my"))
    for name in ("waves", "patches", "dim"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return workplace / "my"


@pytest.mark.slow
def test_own_views_encoder_and_data(my: Path, pretrain: Command, evaluate: Command) -> None:
    words = ("--config-dir", "my", "data=waves", "encoder=patches", "views=mine", "batch_size=40", "logger=csv")
    cpu = "trainer.accelerator=cpu"
    few = ("evaluation.per_class=[2]", "trainer.max_epochs=2", cpu)
    assert pretrain(*words, *few, "hydra.run.dir=run") == 0
    assert Path("run/views.png").is_file()
    assert pretrain(*words[:5], "debug=quick", "evaluation.enabled=false", cpu) == 0  # with the default batch
    first = figures("run")
    assert first["knn_top1"] > 0.5  # of three classes
    assert (
        evaluate("checkpoint=run", "trust=[patches.patches,waves.waves]", "protocol=knn", cpu, "hydra.run.dir=again")
        == 0
    )
    assert figures("again")["top1"] == pytest.approx(first["knn_top1"])
    assert pretrain(*words, *few, "encoder.weights=run", "optimizer.lr=0", "hydra.run.dir=more") == 0
    assert figures("more")["untrained_knn_top1"] == pytest.approx(first["knn_top1"])
    words = (*(word for word in words if word != "views=mine"), "views=dim", "evaluation.enabled=false")
    assert pretrain(*words, *few, "hydra.run.dir=dim") == 0
    assert Path("dim/views.png").is_file()
