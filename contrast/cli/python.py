"""The commands as functions, for a program or a notebook: `contrast.pretrain("method=moco", run_dir="run").encoder`."""

import functools
import logging
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from contrast.cli import commands
from contrast.deploy.load import ImageEncoder, load, load_images
from contrast.deploy.words import WordEmbeddings
from contrast.errors import InputError
from contrast.run.app import Command, start
from contrast.run.compose import resumed_run
from contrast.run.folder import quoted, read_config, read_metrics
from contrast.training.trainer import bare_trainer


class Run:
    """A run that has ended, in its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def metrics(self) -> dict[str, float]:
        """The numbers in metrics.json."""
        return read_metrics(self.folder)

    @property
    def config(self) -> dict[str, object]:
        """The configuration, in plain values."""
        return read_config(self.folder)

    @cached_property
    def encoder(self) -> ImageEncoder:
        """The trained encoder of a run on images."""
        return load_images(self.folder, instead="`words`, or contrast.load, has its result")

    @cached_property
    def words(self) -> WordEmbeddings:
        """The word vectors of a run on text."""
        words = load(self.folder)
        if not isinstance(words, WordEmbeddings):
            raise InputError(f"{self.folder} has no word vectors: contrast.load reads what it holds")
        return words

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"


def pretrain(*overrides: str, run_dir: str | os.PathLike[str] | None = None) -> Run:
    """Trains on images as `contrast-pretrain OVERRIDES` does, in this process and on one device.

    overrides  the words of the command line: "method=moco", "data=folder", "data.root=FOLDER", ...; "resume=RUN" too
    run_dir    the folder of the run; None: runs/METHOD-DATA-ENCODER/DATE. If another run has it already, the
               folder with the next free number, which is `Run.folder`

    Raises InputError for what the command would refuse.
    """
    return Run(call(commands.PRETRAIN, overrides, run_dir))


def pretrain_words(*overrides: str, run_dir: str | os.PathLike[str] | None = None) -> Run:
    """Trains on text as `contrast-words OVERRIDES` does; arguments as `pretrain`."""
    return Run(call(commands.WORDS, overrides, run_dir))


def evaluate(*overrides: str, run_dir: str | os.PathLike[str] | None = None) -> Run:
    """Evaluates as `contrast-evaluate OVERRIDES` does: "checkpoint=RUN", "protocol=knn"; arguments as `pretrain`."""
    return Run(call(commands.EVALUATE, overrides, run_dir))


def embed(*overrides: str, run_dir: str | os.PathLike[str] | None = None) -> Run:
    """Writes vectors as `contrast-embed OVERRIDES` does: "checkpoint=RUN", "data.root=FOLDER", "out=FILE"."""
    return Run(call(commands.EMBED, overrides, run_dir))


def export(*overrides: str, run_dir: str | os.PathLike[str] | None = None) -> Run:
    """Writes an encoder as `contrast-export OVERRIDES` does: "checkpoint=RUN", "format=onnx", "out=FOLDER"."""
    return Run(call(commands.EXPORT, overrides, run_dir))


def report(*overrides: str, run_dir: str | os.PathLike[str] | None = None) -> Run:
    """Writes a page as `contrast-report OVERRIDES` does: "checkpoint=RUN", "out=report.html"."""
    return Run(call(commands.REPORT, overrides, run_dir))


def call(command: Command, overrides: Sequence[str], run_dir: str | os.PathLike[str] | None) -> Path:
    """Runs a command, and returns the folder of the run. The program's logging stays as it is."""
    for word in overrides:
        if word.startswith(("-", "sweep=", "hydra.mode=")) or not ("=" in word or word.startswith("~")):
            raise InputError(f"{word}: a run in Python takes group=option and key=value, and no flags or sweeps")
    folders = []

    @functools.wraps(command.task)
    def recorded(cfg: DictConfig) -> float | None:
        devices = bare_trainer(cfg.trainer).world_size if "trainer" in cfg else 1
        if devices > 1 and "LOCAL_RANK" not in os.environ:
            raise InputError(f"a run in Python has one device, not {devices}: contrast-{command.name} has several")
        folders.append(Path(HydraConfig.get().runtime.output_dir))
        return command.task(cfg)

    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    words = [*overrides, *([] if run_dir is None else [f"hydra.run.dir={quoted(Path(run_dir).absolute())}"])]
    try:
        start(command._replace(task=recorded), words)
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning ends the program at Ctrl-C
            raise KeyboardInterrupt from error
        raise
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    return folders[0] if folders else resumed_run(words)  # which was complete
