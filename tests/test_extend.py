"""docs/extend.md is true: its files, written as it says, train."""

import os
import re
import subprocess
import sys
from pathlib import Path

import torch
from conftest import TINY, figures

import contrast

DOC = Path(contrast.__file__).parents[1] / "docs" / "extend.md"


def test_the_worked_examples_train(workplace: Path) -> None:
    text = DOC.read_text()
    files = re.findall(r"`(my/[\w/.]+)`[^`]*?\n```(?:python|yaml)\n(.*?)```", text, flags=re.S)
    assert {name for name, _ in files} == {
        *("my/hinge.py", "my/head/hinge.yaml", "my/hardest.py", "my/negatives/hardest.yaml")
    }
    for name, content in files:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(content)
    (command,) = re.findall(r"^PYTHONPATH=my contrast-pretrain (.*)$", text, flags=re.M)
    script = DOC.parents[1] / "scripts" / "pretrain.py"
    done = subprocess.run(
        [sys.executable, str(script), *command.split(), *TINY, "hydra.run.dir=run"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": "my", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert 0 < figures("run")["loss"] < 1
    saved = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    assert saved["config"]["head"]["_target_"] == "hinge.Hinge"
    assert saved["config"]["negatives"] == {"_target_": "hardest.Hardest", "k": 16}
