"""Configurations of older runs and checkpoints come back under today's names."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Command, figures
from hydra.utils import get_object
from omegaconf import OmegaConf

from contrast.config.old_names import TARGETS, current

OLD: dict[str, Any] = {
    "views_together": True,
    "data": {"_target_": "contrast.data.digits.digits", "root": None},
    "key": {"_target_": "contrast.keys.Momentum", "asking": 1, "answering": 2},
    "head": {"_target_": "contrast.heads.NCE", "noise": 5, "temperature": {"_target_": "contrast.heads.Cosine"}},
    "model": {"_target_": "contrast.words.WordVectors", "limit": 64, "noise": "another one"},
    "callbacks": {"knn": {"_target_": "contrast.callbacks.online.OnlineKNN", "asking": "another one"}},
    "logger": {"wandb": {"_target_": "contrast.logs.wandb_run.wandb_logger"}},
    "protocol": {"_target_": "contrast.protocols.linear"},
}

NEW: dict[str, Any] = {
    "one_forward_pass": True,
    "data": {"_target_": "contrast.data.images.digits.digits", "root": None},
    "key": {"_target_": "contrast.keys.Momentum", "num_queries": 1, "num_keys": 2},
    "head": {"_target_": "contrast.heads.NCE", "num_noise": 5, "temperature": {"_target_": "contrast.heads.Cosine"}},
    "model": {"_target_": "contrast.words.WordVectors", "max_pairs_per_row": 64, "noise": "another one"},
    "callbacks": {"knn": {"_target_": "contrast.training.callbacks.online.OnlineKNN", "asking": "another one"}},
    "logger": {"wandb": {"_target_": "contrast.run.loggers.wandb_logger"}},
    "protocol": {"_target_": "contrast.evaluation.linear_probe.linear"},
}


def test_keys_and_targets_are_renamed_in_their_place() -> None:
    given = OmegaConf.to_container(OmegaConf.create(OLD))
    assert isinstance(given, dict)
    renamed = current(given)
    assert renamed == NEW
    assert list(renamed) == list(NEW)  # in the same order
    assert given == OLD  # and the given one is left as it was


@pytest.mark.parametrize("target", TARGETS.values())
def test_todays_places_exist(target: str) -> None:
    assert get_object(target)


def test_todays_names_stay() -> None:
    assert current(NEW) == NEW
    assert current({}) == {}
    assert current({"model": None, "head": "text", "key": []}) == {"model": None, "head": "text", "key": []}


def test_a_run_from_before_the_renaming_is_resumed(pretrain: Command, capfd: pytest.CaptureFixture[str]) -> None:
    assert pretrain(*TINY, "trainer.limit_train_batches=2", "hydra.run.dir=run") == 0
    file = Path("run/config.yaml")
    text = file.read_text()
    for new, old in (
        ("one_forward_pass", "views_together"),
        ("num_queries", "asking"),
        ("num_keys", "answering"),
        ("contrast.data.images.digits.", "contrast.data.digits."),
        ("contrast.training.callbacks.", "contrast.callbacks."),
    ):
        text = text.replace(new, old)
    file.write_text(text)
    capfd.readouterr()
    assert pretrain("resume=run", "trainer.max_epochs=2") == 0
    differences = [line for line in capfd.readouterr().out.splitlines() if line.startswith("other than")]
    assert differences == ["other than when the run began: trainer.max_epochs: 1 -> 2"]
    assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 4


def test_a_checkpoint_from_before_the_renaming_is_evaluated(pretrain: Command, evaluate: Command) -> None:
    assert pretrain(*TINY, "trainer.limit_train_batches=2", "hydra.run.dir=run") == 0
    saved = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    saved["config"]["data"]["_target_"] = "contrast.data.digits.digits"
    saved["config"]["views_together"] = saved["config"].pop("one_forward_pass")
    torch.save(saved, "old.ckpt")
    assert evaluate("checkpoint=old.ckpt", "protocol=knn", "trainer.accelerator=cpu", "hydra.run.dir=out") == 0
    assert figures("out")["top1"] > 0.1
