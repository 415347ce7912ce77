"""The console commands. Their tasks import torch and everything else, and that only once the command line is read."""

import pkgutil
from collections.abc import Callable
from functools import partial
from typing import Any

from contrast.cli import settings
from contrast.cli.belongs import refuse_other
from contrast.run import Command, run


def later(name: str) -> Callable[..., Any]:
    """The function `name`, "contrast.cli.embed:embed", whose module is imported when it is first called."""

    def call(*arguments: object) -> object:
        return pkgutil.resolve_name(name)(*arguments)

    return call


# The names after the functions are the parts that a checkpoint restores, so that a resumed run cannot change them.
PRETRAIN = Command(
    later("contrast.cli.pretrain:pretrain"),
    "pretrain",
    ("encoder", "projector", "predictor", "key", "negatives", "head", "same_label", "optimizer"),
    settings.Pretrain,
    later("contrast.cli.pretrain:check"),
    later("contrast.report.sweep_page:save_sweep_report"),
)
WORDS = Command(
    later("contrast.cli.words:words"),
    "words",
    ("encoder", "negatives", "head", "optimizer"),
    settings.Words,
    later("contrast.cli.words:check"),
)
EVALUATE = Command(
    later("contrast.cli.evaluate:evaluate"),
    "evaluate",
    settings=settings.Evaluate,
    check=later("contrast.training.trainer:check_unsharded"),
)
EMBED = Command(
    later("contrast.cli.embed:embed"),
    "embed",
    settings=settings.Embed,
    check=later("contrast.training.trainer:check_unsharded"),
)
EXPORT = Command(later("contrast.cli.export:export_encoder"), "export", settings=settings.Export)
REPORT = Command(later("contrast.cli.report:report"), "report", settings=settings.Report)


def pretrain() -> None:
    refuse_other("contrast-pretrain")
    run(PRETRAIN)


def words() -> None:
    refuse_other("contrast-words")
    run(WORDS)


evaluate = partial(run, EVALUATE)
embed = partial(run, EMBED)
export = partial(run, EXPORT)
report = partial(run, REPORT)
