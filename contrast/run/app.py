"""The entry point of every console command: it checks the whole command line first, then lets Hydra run the task."""

import argparse
import functools
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.types import RunMode
from omegaconf import DictConfig

from contrast.errors import InputError
from contrast.run import compose, folder, sweep
from contrast.run.compose import Task
from contrast.run.errors import one_line, task_error


def run(task: Task, config_name: str, restored: Sequence[str] = ()) -> None:
    """Runs `task` with the configuration `conf/<config_name>.yaml` and the command line in sys.argv.

    restored  parts of the configuration that the task's checkpoint restores; a resumed run cannot change them

    An error that the user can correct ends as one line on stderr and exit status 2. A sweep in which a job failed ends
    with status 1, Ctrl-C with 130. Any other error keeps its traceback, and HYDRA_FULL_ERROR=1 shows all tracebacks.
    """
    try:
        status = start(task, config_name, restored)
    except InputError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
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


def start(task: Task, config_name: str, restored: Sequence[str]) -> int:
    """Does what `run` promises, with errors as exceptions; returns the exit status."""
    args, only_shows = parse_arguments(sys.argv[1:])
    conf = Path(args.config_path).absolute() if args.config_path else folder.conf_folder()
    name, overrides = args.config_name or config_name, list(args.overrides)
    flags = [word for word in sys.argv[1:] if word not in overrides]
    arguments = [*flags, "--config-path", str(conf), "--config-name"]
    if only_shows and not args.cfg:
        compose.call_hydra(task, [*arguments, name, *overrides])
        return 0
    with compose.config_loader(conf) as loader:
        parsed = compose.parse_overrides(overrides, loader)
        resumed = compose.requested_run(parsed, loader)
        if resumed is not None:
            name = compose.store_config(resumed)
            overrides.append(f"hydra.run.dir={folder.quoted(resumed)}")
        cfg = compose.load_config(loader, name, [*overrides, *compose.search_path(args.config_dir)], args.multirun)
        is_sweep = args.multirun or cfg.hydra.mode == RunMode.MULTIRUN  # as a file in conf/sweep/ may set
        run_dir = Path(cfg.hydra.sweep.dir if is_sweep else cfg.hydra.run.dir).absolute()
        if cfg.get("resume") is not None and resumed is None:
            raise InputError("resume belongs on the command line, not in a configuration file")
        if is_sweep and resumed is not None:
            raise InputError("resume= continues a single run; to continue a sweep, repeat its command")
        if not only_shows:
            compose.check_values(cfg, run_dir, sweep.keys_of_sweep(parsed, cfg, is_sweep))
        expected = sweep.expected_jobs(loader, cfg) if is_sweep and not only_shows else None
    arguments += [name, *overrides]
    if only_shows:
        compose.call_hydra(task, arguments)
        return 0
    if is_sweep:
        return sweep.run_sweep(task, arguments, run_dir, cfg.get("metric"), expected)
    if resumed is not None:
        compose.check_differences(resumed, cfg, restored)
    elif folder.is_first_rank():
        run_dir = folder.claim(run_dir)
    run_single(task, arguments, run_dir)
    return 0


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


def run_single(task: Task, arguments: list[str], run_dir: Path) -> None:
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
