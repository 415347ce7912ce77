"""The entry point of every console command: it checks the whole command line first, then lets Hydra run the task."""

import argparse
import functools
import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

from hydra.types import RunMode
from omegaconf import DictConfig

import contrast
from contrast.errors import InputError
from contrast.run import compose, disk, folder, schema, sweep
from contrast.run.compose import Task
from contrast.run.errors import one_line
from contrast.run.help import help_text
from contrast.run.lock import locked


class Command(NamedTuple):
    """A console command: a task with the configuration `conf/<name>.yaml`.

    restored  parts of the configuration that the task's checkpoint restores; a resumed run cannot change them
    settings  the TypedDict of the values of the configuration that belong to no class (contrast.run.schema); dict: none
    finish    called with the folder of a sweep that has ended, if its configuration has report=true
    check     called with the configuration, Hydra's part included, before anything is written or read: it raises
              InputError for what cannot work. A sweep calls it for its jobs before the first one
    """

    task: Task
    name: str
    restored: Sequence[str] = ()
    settings: type = dict
    check: Callable[[DictConfig], object] | None = None
    finish: Callable[[Path], None] | None = None

    def verify(self, cfg: DictConfig) -> None:
        """Raises InputError for a configuration that cannot work, as far as it shows without the data."""
        compose.check_groups(cfg)
        schema.check_keys(cfg, self.settings)
        schema.check(folder.run_config(cfg), self.settings)
        if self.check is not None:
            self.check(cfg)


def run(command: Command) -> None:
    """Runs `command` with the command line in sys.argv.

    An error that the user can correct ends as one line on stderr and exit status 2. A sweep in which a job failed ends
    with status 1, Ctrl-C with 130. Any other error keeps its traceback, and HYDRA_FULL_ERROR=1 shows all tracebacks.
    """
    try:
        status = start(command, sys.argv[1:])
    except InputError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        rank = "" if folder.is_first_rank() else f"rank {folder.rank()}: "
        print(f"error: {rank}{one_line(str(error))}", file=sys.stderr)
        status = 2
    except (KeyboardInterrupt, SystemExit) as error:
        if not isinstance(error, KeyboardInterrupt) and not isinstance(error.__context__, KeyboardInterrupt):
            raise  # at Ctrl-C Lightning calls exit(1) in place of raising a KeyboardInterrupt
        print("interrupted", file=sys.stderr)
        status = 130
    if status:
        sys.exit(status)


def start(command: Command, words: list[str]) -> int:
    """Does what `run` promises with the command line `words`, with errors as exceptions; returns the exit status."""
    task, verify = command.task, command.verify
    words = [folder.readable(compose.in_home(word)) for word in words]
    args, only_shows = parse_arguments(words)
    conf = Path(args.config_path).absolute() if args.config_path else folder.conf_folder()
    name = args.config_name or command.name
    overrides = [compose.files_of_pattern(compose.quoted_range(word)) for word in args.overrides]
    if args.help or args.version:
        try:
            print(help_text(conf, name) if args.help else versions(), flush=True)
        except BrokenPipeError:  # a reader such as `head` has closed the pipe
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    flags = [word for word in words if word not in args.overrides]
    arguments = [*flags, "--config-path", str(conf), "--config-name"]
    if only_shows and not args.cfg and args.info not in ("all", "config"):  # --hydra-help needs no configuration
        compose.call_hydra(task, [*arguments, name, *overrides])
        return 0
    with compose.config_loader(conf) as loader:
        parsed = compose.parse_overrides(overrides, loader)
        resumed = compose.requested_run(parsed, loader)
        if resumed is not None:
            name = compose.store_config(resumed, parsed, [each for each in (args.config_path, args.config_dir) if each])
            overrides.append(f"hydra.run.dir={folder.quoted(resumed)}")
        cfg = compose.load_config(loader, name, [*overrides, *compose.search_path(args.config_dir)], args.multirun)
        is_sweep = args.multirun or cfg.hydra.mode == RunMode.MULTIRUN  # as a file in conf/sweep/ may set
        run_dir = Path(cfg.hydra.sweep.dir if is_sweep else cfg.hydra.run.dir).absolute()
        if cfg.get("resume") is not None and resumed is None:
            raise InputError("resume belongs on the command line, not in a configuration file")
        if is_sweep and resumed is not None:
            raise InputError("resume= continues a single run; to continue a sweep, repeat its command")
        if not only_shows:
            compose.check_values(cfg, run_dir, verify, sweep.keys_of_sweep(parsed, cfg, is_sweep))
        expected = sweep.expected_jobs(loader, cfg, verify) if is_sweep and not only_shows else None
    arguments += [name, f"hydra.job.name={command.name}", *overrides]  # the name of the log file
    if only_shows:
        compose.call_hydra(task, arguments)
        return 0
    if is_sweep:
        metrics = [each for each in (cfg.get("metric"), *(cfg.get("columns") or ())) if each is not None]
        with disk.named_errors(run_dir):
            status = sweep.run_sweep(task, arguments, run_dir, metrics, expected)
            if command.finish is not None and cfg.get("report"):
                command.finish(run_dir)
        return status
    created: list[Path] | None = None
    if resumed is not None:
        if not compose.check_differences(resumed, cfg, command.restored):
            return 0
    elif folder.is_first_rank():
        run_dir, created = folder.claim(run_dir)
    run_single(task, arguments, run_dir, created)
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
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--version", action="store_true")
    parser.add_argument("overrides", nargs="*")
    args, others = parser.parse_known_intermixed_args(words)
    if any(word.startswith("--experimental-rerun") for word in others):
        raise InputError("--experimental-rerun would run a pickle: resume=RUN continues a run from plain files")
    return args, bool(others or args.cfg or args.info)


def versions() -> str:
    """This package's version and those of the packages that a result depends on most."""
    others = ("torch", "torchvision", "pytorch-lightning", "hydra-core")
    named = [f"{name} {importlib.metadata.version(name)}" for name in others]
    return f"contrast {contrast.__version__} (Python {platform.python_version()}, {', '.join(named)})"


def run_single(task: Task, arguments: list[str], run_dir: Path, created: Sequence[Path] | None) -> None:
    """One run, in `run_dir`. What was made for a new run is removed if it takes no step.

    created  the folders that had to be made for it; None for a resumed run, and if the folder already held files

    The task of a resumed run calls `compose.begin` itself, so that its folder stays as it was until it trains.
    """
    errors: list[Exception] = []

    @functools.wraps(task)
    def job(cfg: DictConfig) -> None:
        compose.resolve(cfg)
        try:
            if folder.is_first_rank() and cfg.get("resume") is None:
                compose.begin(cfg, run_dir)
            compose.quietly(task, cfg)
        except Exception as error:  # Hydra would print a part of the traceback and exit
            errors.append(error)

    try:
        with locked(run_dir) if folder.is_first_rank() else nullcontext():
            compose.call_hydra(job, [*arguments, f"hydra.run.dir={folder.quoted(run_dir)}", "hydra.mode=RUN"])
        for error in errors:
            raise error
    except Exception as error:
        if (line := disk.failure(error, run_dir)) is None:
            raise
        if created is not None:
            folder.discard(run_dir, created)
        raise InputError(line) from error
