"""The record of where a run ran: versions, machine, git commit, command line."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_only

import contrast
from contrast.atomic import replacing

_PACKAGES = (
    "contrast",
    "torchvision",
    "pytorch-lightning",
    "hydra-core",
    "omegaconf",
    "wandb",
    "numpy",
    "scikit-learn",
)


def environment() -> dict[str, Any]:
    """What is needed to run again what ran here; `git` is null unless the package runs from a git checkout."""
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES} | {"torch": torch.__version__},  # with its build
        "platform": platform.platform(),
        "host": platform.node(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "cuda_devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "git": _git(Path(contrast.__file__).resolve().parent),
    }


@rank_zero_only
def write_environment(run_dir: str | os.PathLike[str]) -> None:
    """Appends `environment()` to `<run_dir>/environment.json`, a list with one entry for each start of the run."""
    path = Path(run_dir) / "environment.json"
    starts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    with replacing(path) as temporary:
        temporary.write_text(json.dumps([*starts, environment()], indent=2) + "\n", encoding="utf-8")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(folder: Path) -> dict[str, Any] | None:
    """Commit and state of the checkout that tracks `folder`; None for an installed package or without git.

    A wheel in a virtual environment may lie inside the checkout of somebody else's project: the folder itself has
    to be tracked.
    """

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *arguments],
                capture_output=True,
                text=True,
                timeout=10,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    status = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}
