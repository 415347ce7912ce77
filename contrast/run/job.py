"""What Hydra calls, perhaps in a worker process: the task, in a folder that knows what it holds."""

import math
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from torch import distributed

from contrast.run import resolvers as resolvers  # registers them, in a worker process too
from contrast.run.folder import discard, is_first_rank, quoted, read_overrides, settled, write_config
from contrast.run.jobs import ERROR, is_complete, prepare, read_metrics
from contrast.run.messages import of_input, one_line, wants_traceback
from contrast.run.resume import run_of

Task = Callable[[DictConfig], float | None]


def run_job(task: Task, cfg: DictConfig) -> float | None:
    """Runs `task` for a single run or for a job of a sweep."""
    OmegaConf.resolve(cfg)  # once: what the task sees is what config.yaml says
    hydra = HydraConfig.get()
    overrides = [str(item) for item in hydra.overrides.task]
    folder = Path(hydra.runtime.output_dir)
    if hydra.mode == RunMode.MULTIRUN:
        return sweep_job(task, cfg, folder, overrides)
    return single_run(task, cfg, folder, overrides)


def single_run(task: Task, cfg: DictConfig, folder: Path, overrides: list[str]) -> float | None:
    if is_first_rank():
        if cfg.get("resume") is not None:
            kept = read_overrides(run_of(cfg.resume))
            overrides = kept + [item for item in overrides if not item.startswith("resume=") and item not in kept]
        write_config(folder, settled(cfg), overrides)
    try:
        return task(cfg)
    except Exception as error:
        line = of_input(error)
        if line is None or wants_traceback():
            raise
        if is_first_rank():
            discard(folder)
        # Not an exception that Hydra would report in its own words first.
        sys.stderr.write(f"error: {line}\n")  # at once: several ranks may have something to say
        raise SystemExit(2) from error


def sweep_job(task: Task, cfg: DictConfig, folder: Path, overrides: list[str]) -> float | None:
    """Runs a job, continues it, or reads its figure where it is complete already.

    A failure stays in its folder, as error.txt, and None goes to Hydra, or the other jobs would be lost with it.
    """
    name = f"job {HydraConfig.get().job.num}"
    try:
        config = settled(cfg)
        if is_complete(folder, config):
            print(f"{name} is complete already: {folder}", flush=True)
            write_config(folder, config, overrides)  # the same values may have been put in other words
            return finite(read_metrics(folder).get(cfg.metric))  # a run without an evaluation has none
        continues = prepare(folder, config) if is_first_rank() else (folder / "checkpoints" / "last.ckpt").is_file()
        if continues and "resume" in cfg:
            print(f"{name} continues: {folder}", flush=True)
            with open_dict(cfg):
                cfg.resume = str(folder)
        if is_first_rank():
            write_config(folder, config, overrides)
        with alone(cfg, folder, overrides):
            return finite(task(cfg))
    except Exception as error:
        reason = of_input(error) or one_line(f"{type(error).__name__}: {error}")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ERROR).write_text(f"{reason}\n\n{traceback.format_exc()}", encoding="utf-8")
        print(f"{name} failed: {reason} ({folder / ERROR})", file=sys.stderr, flush=True)
        return None


def finite(value: float | None) -> float | None:
    """None for NaN: Optuna's sweeper breaks off at a NaN, and counts a None as a failed trial."""
    return None if value is None or math.isnan(value) else value


@contextmanager
def alone(cfg: DictConfig, folder: Path, overrides: list[str]) -> Iterator[None]:
    """A job of a sweep as if it were the only one of this process, before and after it.

    Lightning starts the other ranks of a job by repeating the command line, which has to name this job alone; and it
    leaves behind environment variables and a process group, which the next job would take for its own.
    """
    argv, environment = sys.argv, dict(os.environ)
    kept = [word for word in argv if word not in ("-m", "--multirun") and (word.startswith("--") or "=" not in word)]
    job = [f"resume={quoted(folder)}"] if cfg.get("resume") is not None else overrides
    hydra_cfg: Any = HydraConfig.instance().cfg
    with read_write(hydra_cfg.hydra):
        hydra_cfg.hydra.run.dir = str(folder)
    sys.argv = [*kept, *job]
    try:
        yield
    finally:
        if distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()
        for name in set(os.environ) - set(environment):
            del os.environ[name]
        os.environ.update(environment)
        sys.argv = argv
