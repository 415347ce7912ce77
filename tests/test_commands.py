"""What the commands answer before they import torch: their help, their version, and what is mistyped."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import contrast
from contrast.run.folder import conf_folder
from contrast.run.help import help_text

COMMANDS = ("pretrain", "words", "evaluate", "embed", "export")

PROGRAM = """
import contextlib, io, json, sys
from contrast.cli import commands

def answer(command, *words):
    sys.argv = [f"contrast-{command}", *words]
    status, text = 0, io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        try:
            getattr(commands, command)()
        except SystemExit as end:
            status = end.code
    return status, text.getvalue(), sorted({"torch", "pytorch_lightning", "matplotlib", "scipy"} & set(sys.modules))

print(json.dumps([answer(*each) for each in json.loads(sys.argv[1])]))
"""


def answers(calls: list[list[str]], folder: Path) -> list[tuple[int, str, list[str]]]:
    """Exit status, output and the slow packages that are imported after each call, all of them in one new process."""
    environment = os.environ | {"PYTHONPATH": str(Path(contrast.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(calls)], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [tuple(each) for each in json.loads(done.stdout)]


def test_answers_without_torch(tmp_path: Path) -> None:
    calls = [[command, flag] for command in COMMANDS for flag in ("--help", "-h", "--version")]
    for status, text, slow in answers(calls, tmp_path):
        assert (status, slow) == (0, [])
        assert "contrast" in text
    mistakes = [
        (["pretrain", "optimzer=sgd"], "did you mean 'optimizer'"),
        (["pretrain", "encoder.widht=[8]"], "did you mean 'widths'"),
        (["pretrain", "method=simcrl"], "did you mean 'simclr'"),
        (["pretrain", "batch_size=many"], "batch_size=many"),
        (["pretrain", "-m", "method=simclr,simcrl"], "did you mean 'simclr'"),
        (["words", "model.windw=5"], "did you mean 'window'"),
        (["evaluate"], "checkpoint must be given"),
        (["embed", "checkpoint=run", "ot=a.csv"], "did you mean 'out'"),
        (["export", "checkpoint=run", "out=a", "format=onx"], "format=onx"),
        (["evaluate", "checkpoint=run", "+logger=none"], "no key or group 'logger'"),
        (["evaluate", "checkpoint=run", "-m", "+batch_sze=1,2"], "did you mean 'batch_size'"),
        (["embed", "checkpoint=run", "out=a.csv", "+splt=train"], "did you mean 'split'"),
        (["export", "checkpoint=run", "out=a", "++formt=onnx"], "did you mean 'format'"),
        (["report", "checkpoint=run", "+imges=3"], "did you mean 'images'"),
    ]
    found = answers([call for call, _ in mistakes], tmp_path)
    for (call, part), (status, text, slow) in zip(mistakes, found, strict=True):
        assert (status, slow) == (2, []), call
        assert part in text
        assert text.startswith("error: ")
        assert len(text.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_version_is_that_of_the_package(tmp_path: Path) -> None:
    (_, text, _) = answers([["pretrain", "--version"]], tmp_path)[0]
    assert text.startswith(f"contrast {contrast.__version__} ")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_explains_every_group_and_key(command: str) -> None:
    text = help_text(conf_folder(), command)
    assert len(re.findall(rf"^  contrast-{command}\b", text, flags=re.M)) == 5  # examples
    config = yaml.safe_load((conf_folder() / f"{command}.yaml").read_text())
    groups = [next(iter(each)) for each in config.pop("defaults") if isinstance(each, dict)]
    nested = {name: value for name, value in config.items() if isinstance(value, dict)}
    keys = [name for name in config if name not in groups and name not in nested]
    keys += [f"{name}.{key}" for name, value in nested.items() for key in value]
    for name in [*groups, *keys]:
        (found,) = re.findall(rf"^  {re.escape(name)}(=\S+)?(?: +|\n {{36}})(\S.*)", text, flags=re.M)
        assert found[1], name
    assert "${" not in text
    for group in groups:
        assert {path.stem for path in (conf_folder() / group).glob("*.yaml")} <= set(re.findall(r"\w+", text))
