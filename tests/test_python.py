"""docs/python.md is true, and the commands are functions that leave the program around them as it is."""

import logging
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FEW, TINY

import contrast
from contrast.deploy.load import ImageEncoder
from contrast.errors import InputError

DOC = Path(contrast.__file__).parents[1] / "docs" / "python.md"
BRIEF = [word for word in TINY if not word.startswith("evaluation")]


@pytest.mark.slow
def test_the_page_runs_from_top_to_bottom(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With small networks and few images in place of those of the page."""
    code = "\n".join(re.findall(r"^```python\n(.*?)^```$", DOC.read_text(), flags=re.S | re.M))
    monkeypatch.setattr("contrast.training.trainer.save_curves", lambda run_dir: None)
    one = ("callbacks=none", "trainer.limit_train_batches=3", "evaluation.untrained=false", "evaluation.pixels=false")
    brief = {
        "trainer.max_epochs=20": (*BRIEF, *FEW, *one),
    }
    for word, others in brief.items():
        assert f'"{word}"' in code
        code = code.replace(f'"{word}"', ", ".join(repr(each) for each in others))
    code = code.replace('"protocol.epochs=2"', '"protocol.epochs=1", "labels_per_class=3", "protocol.batch_size=15"')
    code = code.replace("pl.Trainer(", 'pl.Trainer(accelerator="cpu", ')
    names: dict[str, Any] = {}
    exec(compile(code, DOC.name, "exec"), names)
    assert isinstance(names["run"].encoder, ImageEncoder)
    assert names["run"].folder == workplace / "run"
    assert 0 < names["run"].metrics["knn_top1"] <= 1
    assert 0 < names["score"] <= 1
    assert names["cosines"].shape == (2, 10)
    assert len(names["near"]) == 3
    assert set(names["names"]) <= set("0123456789")
    assert names["answers"]
    torch.testing.assert_close(names["same"], names["encoder"].embed(names["pixels"]))
    assert names["features"].shape == (1437, 256)
    assert Path("features.npy").is_file()
    assert {each for each in Path().iterdir() if each.name == "runs"}  # of the commands without run_dir


def test_a_run_in_a_program(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handler, argv = logging.StreamHandler(), list(sys.argv)
    logging.getLogger().addHandler(handler)
    handlers, level = list(logging.getLogger().handlers), logging.getLogger().level
    words = [*TINY, "callbacks=none", "trainer.limit_train_batches=2"]
    first, second = (contrast.pretrain(*words, run_dir="my run") for _ in range(2))
    assert [each.folder.name for each in (first, second)] == ["my run", "my run_2"]  # nothing is overwritten
    assert first.config["batch_size"] == 64
    assert repr(second) == f"Run({str(workplace / 'my run_2')!r})"
    again = contrast.pretrain(f"resume='{first.folder}'", "trainer.max_epochs=2")
    assert again.folder == first.folder
    assert contrast.pretrain(f"resume='{first.folder}'").folder == first.folder  # which is complete
    assert torch.load(first.folder / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 4
    assert logging.getLogger().handlers == handlers
    assert logging.getLogger().level == level
    assert sys.argv == argv
    logging.getLogger().removeHandler(handler)
    with pytest.raises(InputError, match="has no word vectors"):
        _ = first.words


@pytest.mark.parametrize("word", ["-m", "--help", "sweep=optuna", "moco", "hydra.mode=MULTIRUN"])
def test_flags_and_sweeps_are_for_the_command(word: str) -> None:
    with pytest.raises(InputError, match=re.escape(word)):
        contrast.pretrain(word)


def test_mistakes_are_errors_of_one_line(workplace: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'moco'"):
        contrast.pretrain("method=mocco")
    with pytest.raises(InputError, match="one device, not 2"):
        contrast.pretrain(*TINY, "trainer.devices=2", run_dir="two")
    assert not Path("two").exists()
    with pytest.raises(InputError, match="no checkpoint at"):
        contrast.evaluate("checkpoint=absent")


def test_the_package_has_these_names() -> None:
    """That importing it takes no time is in test_load."""
    assert set(dir(contrast)) == set(contrast.__all__)
    assert contrast.pretrain.__module__ == "contrast.cli.python"
    with pytest.raises(AttributeError, match="no attribute 'pretain'"):
        _ = contrast.pretain  # type: ignore[attr-defined]
