"""The entry point of every console command: it checks the whole command line first, then lets Hydra run the task."""

import argparse
import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.types import RunMode
from omegaconf import DictConfig

from contrast.errors import InputError
from contrast.run import compose, folder, sweep
from contrast.run.compose import Task
from contrast.run.errors import one_line, task_error, wants_traceback


def run(task: Task, config_name: str, restored: Sequence[str] = ()) -> None:
    """Runs `task` with the configuration `conf/<config_name>.yaml` and the command line in sys.argv.

    restored  parts of the configuration that the task's checkpoint restores; a resumed run cannot change them

    An error that the user can correct ends as one line on stderr and exit status 2. A sweep in which a job failed ends
    with status 1, Ctrl-C with 130. Any other error keeps its traceback, and HYDRA_FULL_ERROR=1 shows all tracebacks.
    """
    try:
        status = start(task, config_name, restored)
    except InputError as error:
        if wants_traceback():
            raise
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        status = 2
    except (KeyboardInterrupt, SystemExit) as error:
        if not isinstance(error, KeyboardInterrupt) and not isinstance(error.__context__, KeyboardInterrupt):
            raise  # at Ctrl-C Lightning calls exit(1) in place of raising a KeyboardInterrupt
        print("interrupted", file=sys.stderr)
        status = 130
    if status:
        sys.exit(status)


@dataclass
class Plan:
    """A checked command: what to run and where."""

    name: str  # of the configuration
    overrides: list[str]
    cfg: DictConfig  # of a run, or of all jobs of a sweep before they differ
    run_dir: Path
    is_sweep: bool
    resumed: Path | None = None
    expected: list[list[str]] | None = None  # overrides of each job of a sweep, if they are known


def start(task: Task, config_name: str, restored: Sequence[str]) -> int:
    """Does what `run` promises, with errors as exceptions; returns the exit status."""
    args, shows = parse_arguments(sys.argv[1:])
    flags = [word for word in sys.argv[1:] if word not in args.overrides]
    conf = Path(args.config_path).absolute() if args.config_path else folder.conf_folder()
    name, overrides, plan = args.config_name or config_name, args.overrides, None
    if args.cfg or not shows:
        plan = make_plan(args, conf, name)
        name, overrides = plan.name, plan.overrides
    arguments = [*flags, "--config-path", str(conf), "--config-name", name, *overrides]
    if plan is None or shows:
        compose.call_hydra(task, arguments)
        return 0
    if plan.is_sweep:
        return sweep.run_sweep(task, arguments, plan.run_dir, plan.cfg.get("metric"), plan.expected)
    if plan.resumed is not None:
        compose.check_differences(plan.resumed, plan.cfg, restored)
    elif folder.is_first_rank():
        plan.run_dir = folder.claim(plan.run_dir)
    return run_single(task, arguments, plan.run_dir)


def make_plan(args: argparse.Namespace, conf: Path, name: str) -> Plan:
    """Composes and checks the configuration, of a new run, a resumed run or a sweep."""
    overrides = list(args.overrides)
    with compose.config_loader(conf) as loader:
        parsed = compose.parse_overrides(overrides, loader)
        resumed = compose.requested_run(parsed, loader)
        if resumed is not None:
            name = compose.store_config(resumed)
            overrides.append(f"hydra.run.dir={folder.quoted(resumed)}")
        cfg = compose.load_config(loader, name, [*overrides, *compose.search_path(args.config_dir)], args.multirun)
        if cfg.get("resume") is not None and resumed is None:
            raise InputError("resume belongs on the command line, not in a configuration file")
        is_sweep = args.multirun or cfg.hydra.mode == RunMode.MULTIRUN  # as a file in conf/sweep/ may set
        if is_sweep and resumed is not None:
            raise InputError("resume= continues a single run; to continue a sweep, repeat its command")
        run_dir = Path(cfg.hydra.sweep.dir if is_sweep else cfg.hydra.run.dir).absolute()
        plan = Plan(name, overrides, cfg, run_dir, is_sweep, resumed)
        if not args.cfg:
            swept = [each for each in parsed if each.is_sweep_override()]
            if swept and not is_sweep:
                raise InputError(f"{swept[0].input_line}: --multirun runs several values; a list is written [1,2]")
            params = cfg.hydra.sweeper.get("params") or {}
            compose.check_values(cfg, run_dir, {*params, *(each.key_or_group for each in swept)})
            plan.expected = sweep.expected_jobs(loader, cfg) if is_sweep else None
    return plan


def parse_arguments(words: list[str]) -> tuple[argparse.Namespace, bool]:
    """Hydra's flags and overrides, in any order, and whether the command only shows something and runs nothing."""
    parser = argparse.ArgumentParser(add_help=False)
    for long, short in (("path", "p"), ("name", "n"), ("dir", "d")):
        parser.add_argument(f"--config-{long}", f"-c{short}")
    parser.add_argument("--cfg", "-c")
    parser.add_argument("--package", "-p")
    parser.add_argument("--info", "-i", nargs="?", const="all")
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--run", "-r", action="store_true")
    parser.add_argument("overrides", nargs="*")
    args, others = parser.parse_known_intermixed_args(words)
    return args, bool(others or args.cfg or args.info)


def run_single(task: Task, arguments: list[str], run_dir: Path) -> int:
    """One run, in `run_dir`."""
    errors: list[Exception] = []

    @functools.wraps(task)
    def job(cfg: DictConfig) -> None:
        overrides = compose.resolve(cfg)
        if folder.is_first_rank():
            if cfg.get("resume") is not None:
                kept = folder.read_overrides(run_dir)
                overrides = kept + [item for item in overrides if not item.startswith("resume=") and item not in kept]
            folder.write_config(run_dir, folder.run_config(cfg), overrides)
        try:
            task(cfg)
        except Exception as error:  # Hydra would print a part of the traceback and exit
            errors.append(error)
            if (line := task_error(error, cfg)) is not None:
                errors.append(InputError(line))
                errors[-1].__cause__ = error
                if folder.is_first_rank():
                    folder.discard(run_dir)

    compose.call_hydra(job, [*arguments, f"hydra.run.dir={folder.quoted(run_dir)}", "hydra.mode=RUN"])
    if errors:
        raise errors[-1]
    return 0
