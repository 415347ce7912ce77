"""The console commands in this process, on a model small enough for every test."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # each worker has a core; torch reads this when it is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from contrast.cli import commands

# 22 steps an epoch on 8 x 8 digits, no figures at the end and no W&B
TINY = (
    "batch_size=64",
    "encoder.widths=[8,16,32]",
    "projector.hidden_features=32",
    "projector.out_features=16",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=1",
    "logger=csv",
    "evaluation.enabled=false",
)
# all figures, of few images
FEW = ("evaluation.enabled=true", "evaluation.max_train=200", "evaluation.max_test=100", "evaluation.per_class=[2]")

Command = Callable[..., int]
Disk = Callable[[str], Path]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to call a command from, with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONTRAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    handlers = list(logging.getLogger().handlers)
    yield tmp_path
    logging.getLogger().handlers[:] = handlers  # Hydra's hold on to this test's stdout


@pytest.fixture
def pretrain(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """`contrast-pretrain` with these words in this process; returns its exit status."""
    return lambda *words: called(commands.pretrain, monkeypatch, *words)


@pytest.fixture
def words(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """`contrast-words` with these words in this process; returns its exit status."""
    return lambda *words: called(commands.words, monkeypatch, *words)


@pytest.fixture
def evaluate(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """`contrast-evaluate` with these words in this process; returns its exit status."""
    return lambda *words: called(commands.evaluate, monkeypatch, *words)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run folder, for tests that only read it."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    handlers = list(logging.getLogger().handlers)
    with pytest.MonkeyPatch.context() as patch:
        assert called(commands.pretrain, patch, *TINY, f"hydra.run.dir={folder}") == 0
    logging.getLogger().handlers[:] = handlers
    return folder


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """Mounts a small file system in memory with these options."""
    mounted = []

    def mount(options: str) -> Path:
        place = tmp_path / "disk"
        place.mkdir()
        try:
            subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"a small file system cannot be mounted here: {error}")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", "-l", place], check=True)


def called(main: Callable[[], None], monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["contrast", *words])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def figures(run: str | Path) -> dict[str, Any]:
    """The numbers that the run left in metrics.json."""
    saved = json.loads((Path(run) / "metrics.json").read_text())
    return {name: value for name, value in saved.items() if not isinstance(value, str)}
