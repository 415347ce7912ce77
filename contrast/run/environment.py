"""The record of where a run ran: versions, machine, git commit, command line."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch
from pytorch_lightning.utilities import rank_zero_only

import contrast
from contrast.atomic import rewrite
from contrast.errors import named_errors

PACKAGES = {
    "contrast-learning",
    "torchvision",
    "pytorch-lightning",
    "hydra-core",
    "omegaconf",
    "wandb",
    "numpy",
    "scikit-learn",
}


def environment() -> dict[str, object]:
    """What is needed to repeat this run; `git` is null unless the package runs from a git checkout."""
    versions = {each.name: each.version for each in importlib.metadata.distributions() if each.name in PACKAGES}
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "packages": versions | {"torch": torch.__version__},  # with its build
        "platform": platform.platform(),
        "host": platform.node(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "cuda_devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "git": git_state(Path(contrast.__file__).resolve().parent),
    }


@rank_zero_only
def write_environment(run_dir: str | os.PathLike[str]) -> None:
    """Appends `environment()` to `<run_dir>/environment.json`, a list with one entry for each start of the run."""
    path = Path(run_dir) / "environment.json"
    with named_errors((ValueError, TypeError, RecursionError), f"{path} is damaged"):
        starts = [*json.loads(path.read_text(encoding="utf-8"))] if path.exists() else []
    rewrite(path, json.dumps([*starts, environment()], indent=2) + "\n")


def git_state(folder: Path) -> dict[str, object] | None:
    """Commit and state of the checkout that tracks `folder`; None for an installed package or without git.

    The folder itself has to be tracked: a wheel in a virtual environment may be inside somebody else's checkout.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        status = git("status", "--porcelain", "--untracked-files=no")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(status)}
    except (OSError, subprocess.SubprocessError):
        return None
