"""A reader can follow a training step: it enters few files of the package and seldom changes from one to another."""

import sys
from itertools import groupby
from pathlib import Path
from types import FrameType

import pytest
from conftest import Command

import contrast

PACKAGE = f"{Path(contrast.__file__).parent}/"
SHORT = ("trainer.max_epochs=1", "trainer.limit_train_batches=3", "trainer.log_every_n_steps=3", "callbacks=none")


class Trail:
    """A profile function: the file of the package in control after each call and return, and the function called."""

    def __init__(self) -> None:
        self.stack: list[str] = []
        self.places: list[tuple[str, str]] = []

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        path, function = frame.f_code.co_filename, frame.f_code.co_name
        if not path.startswith(PACKAGE) or function.startswith("<"):
            return
        if event == "call":
            self.stack.append(path.removeprefix(PACKAGE))
            self.places.append((self.stack[-1], function))
        elif event == "return" and self.stack:
            self.stack.pop()
            if self.stack:
                self.places.append((self.stack[-1], ""))

    def step(self) -> list[tuple[str, str]]:
        """The second training step, which is not logged."""
        starts = [i for i, (_, function) in enumerate(self.places) if function == "training_step"]
        return self.places[starts[1] : starts[2]]


def loss_of(step: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """From the first call of a head up to its return."""
    first = next(i for i, place in enumerate(step) if place[0].startswith("heads/") and place[1] == "forward")
    return step[first : next(i for i in range(first, len(step)) if step[i][0] == "module.py")]


def size(part: list[tuple[str, str]]) -> tuple[int, int]:
    """How many files it enters, and how often it changes from one to another."""
    visits = [file for file, _ in groupby(file for file, _ in part)]
    return len(set(visits)), len(visits) - 1


@pytest.mark.parametrize(
    ("words", "most"),
    [
        ((), (22, 90)),
        (("method=moco",), (22, 90)),
        (("method=instdisc",), (22, 90)),
        (("method=clip", "data=digits_words"), (22, 90)),
    ],
)
def test_a_training_step_enters_few_files(pretrain: Command, words: tuple[str, ...], most: tuple[int, int]) -> None:
    trail = Trail()
    sys.setprofile(trail)
    try:
        assert pretrain(*words, *SHORT, "evaluation.enabled=false", "logger=csv", "hydra.run.dir=run") == 0
    finally:
        sys.setprofile(None)
    step = trail.step()
    for part, (files, changes) in ((step, most), (loss_of(step), (5, 20))):
        entered, changed = size(part)
        assert entered <= files
        assert changed <= changes
