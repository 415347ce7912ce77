"""A sweep: its jobs one by one, each in a folder that records what it holds and how it ended."""

import functools
import itertools
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from contrast.atomic import FULL, made, rewrite
from contrast.errors import InputError, need
from contrast.run import compose, folder
from contrast.run.compose import Task
from contrast.run.disk import failure
from contrast.run.errors import one_line
from contrast.run.gpus import take_one, visible_gpus
from contrast.run.lock import InUse, locked


def run_sweep(
    task: Task, arguments: list[str], sweep_dir: Path, metrics: Sequence[str], expected: list[list[str]] | None
) -> int:
    """The jobs that are not complete yet, and the table of all of them, however the sweep ends."""
    from contrast.run.sweep_report import COMPLETE, ENDED_EARLY, report

    job = functools.update_wrapper(functools.partial(run_sweep_job, task), task)
    # The folder is fixed here, so that it is the same for the jobs of every launcher. Lightning starts the other ranks
    # of a job in its `hydra.run.dir`.
    fixed = [f"hydra.sweep.dir={folder.quoted(sweep_dir)}", "hydra.run.dir=${hydra.runtime.output_dir}"]
    broke_off = False
    try:
        with made(sweep_dir), TemporaryFile(dir=sweep_dir) as file:
            file.write(bytes(1 << 16))  # Hydra would print a traceback if it had no room for its file
            file.flush()
    except OSError as error:
        if error.errno in FULL:
            raise
        raise InputError(f"{sweep_dir} cannot be the folder of a sweep: {error.strerror}") from error
    try:
        compose.call_hydra(job, [*arguments, *fixed, "hydra.mode=MULTIRUN"])
    except SystemExit as error:
        # Hydra has printed an error of the launcher or the sweeper; a worker process may have died. What the other
        # jobs reached is in their folders.
        reason = error.__context__
        if not isinstance(reason, Exception):
            raise
        broke_off = True
        print(f"error: the sweep broke off: {type(reason).__name__}: {one_line(str(reason))}", file=sys.stderr)
    finally:
        # of two processes with the same sweep, the later one reads what both have reached
        with locked(sweep_dir, waits=True):
            jobs = report(sweep_dir, metrics, expected)
    return 1 if broke_off or any(each.status not in (COMPLETE, ENDED_EARLY) for each in jobs) else 0


def keys_of_sweep(overrides: Sequence[Override], cfg: DictConfig, is_sweep: bool) -> set[str]:
    """The keys with several values, on the command line or in a file. Raises InputError for such a key without -m."""
    swept = [each for each in overrides if each.is_sweep_override()]
    if swept and not is_sweep:
        raise InputError(f"{swept[0].input_line}: --multirun runs several values; a list is written [1,2]")
    return {*(cfg.hydra.sweeper.get("params") or {}), *(each.key_or_group for each in swept)}


def expected_jobs(
    loader: ConfigLoader, cfg: DictConfig, verify: Callable[[DictConfig], None]
) -> list[list[str]] | None:
    """The overrides of each job to come; None for a sweeper that decides as it goes.

    A job is composed and verified only if it has an override that no job before it had. All are composed before the
    first is verified, because `verify` takes the time of importing torch.
    """
    sweeper = cfg.hydra.runtime.choices["hydra/sweeper"]
    if sweeper == "search":
        need("optuna", "optuna", "sweep=optuna")
    if sweeper != "basic":
        return None
    params = [f"{key}={value}" for key, value in (cfg.hydra.sweeper.params or {}).items()]
    choices = {}
    for override in compose.parse_overrides([*params, *cfg.hydra.overrides.task], loader):
        key = override.get_key_element()
        if not override.is_sweep_override():
            choices[key] = [f"{key}={override.get_value_element_as_str()}"]
        elif override.is_discrete_sweep():
            choices[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            raise InputError(f"{override.input_line}: hydra/sweeper=basic takes lists of values, choice() and range()")
    jobs = [list(job) for job in itertools.product(*choices.values())]
    checked: set[str] = set()
    composed = []
    for job in jobs:
        if not checked.issuperset(job):
            overrides = [*cfg.hydra.overrides.hydra, *job]
            composed.append(loader.load_configuration(cfg.hydra.job.config_name, overrides, RunMode.RUN))
            checked.update(job)
    for each in composed:
        compose.check_values(each, Path(cfg.hydra.sweep.dir), verify)
    return jobs


def run_sweep_job(task: Task, cfg: DictConfig) -> float | None:
    """Runs a job of a sweep, continues it, or reads its metric if it is complete already.

    A failure is recorded in the job's folder, as error.txt, and Hydra gets None: an exception would end the sweep.
    """
    overrides = compose.resolve(cfg)
    job_dir = Path(HydraConfig.get().runtime.output_dir)
    name = f"job {HydraConfig.get().job.num}"
    writes = folder.is_first_rank()
    with ExitStack() as lock:
        try:
            if writes:
                lock.enter_context(locked(job_dir))
            config = folder.run_config(cfg)
            if folder.is_complete(job_dir, config):
                print(f"{name} is complete already: {job_dir}", flush=True)
                folder.write_config(job_dir, config, overrides)  # the same values may be written in another way
                return finite(folder.value_of(folder.read_metrics(job_dir), cfg.metric))  # absent without an evaluation
            continues = folder.prepare_folder(job_dir, config) if writes else folder.has_checkpoint(job_dir)
            if continues and "resume" in cfg:
                print(f"{name} continues: {job_dir}", flush=True)
                with open_dict(cfg):
                    cfg.resume = str(job_dir)
            # the configuration in the folder is this job's own, so that the other ranks of the job can trust it
            resumes = cfg.get("resume") is not None
            with isolated([f"resume={folder.quoted(job_dir)}", "trust=true"] if resumes else overrides):
                hydra_cfg, devices = HydraConfig.get(), OmegaConf.select(cfg, "trainer.devices", default=1)
                ray = hydra_cfg.launcher.get("ray")
                given_by_ray = ray is not None and ray.remote.num_gpus > 0
                side_by_side = hydra_cfg.runtime.choices["hydra/launcher"] in ("joblib", "ray")
                if side_by_side and not given_by_ray and devices in (1, "auto"):
                    take_one(visible_gpus())
                if writes:
                    folder.write_config(job_dir, config, overrides)
                return finite(compose.quietly(task, cfg))
        except InUse as error:
            print(f"{name} is left out: {error}", file=sys.stderr, flush=True)
        except Exception as error:
            reason = failure(error, job_dir) or one_line(f"{type(error).__name__}: {error}")
            where = ""
            with suppress(OSError):  # the disk may be full
                rewrite(job_dir / folder.ERROR, f"{reason}\n\n{traceback.format_exc()}")
                where = f" ({job_dir / folder.ERROR})"
            print(f"{name} failed: {reason}{where}", file=sys.stderr, flush=True)
    return None


def finite(value: float | None) -> float | None:
    """None in place of NaN: Optuna's sweeper stops at a NaN and counts a None as a failed trial."""
    return None if value is None or math.isnan(value) else value


@contextmanager
def isolated(overrides: list[str]) -> Iterator[None]:
    """Keeps a job of a sweep from the others of its process, by a separate command line and environment.

    Lightning starts the other ranks of a job by repeating the command line, which has to name this job alone. It
    leaves behind environment variables and a process group, which the next job would take for its own.
    """
    argv, environment = sys.argv, dict(os.environ)
    kept = [word for word in argv if word not in ("-m", "--multirun") and (word.startswith("--") or "=" not in word)]
    sys.argv = [*kept, *overrides]
    try:
        yield
    finally:
        from torch import distributed

        if distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()
        for name in set(os.environ) - set(environment):
            del os.environ[name]
        os.environ.update(environment)
        sys.argv = argv
