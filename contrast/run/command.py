"""The door of every console command: looks at the whole command line first, then lets Hydra run it."""

import functools
import re
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import hydra.version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.utils import _run_hydra, get_args_parser
from hydra.types import RunMode
from omegaconf import DictConfig

from contrast.errors import InputError
from contrast.run import resume
from contrast.run.compose import at_the_door, check_values, composed, opened, parsed
from contrast.run.folder import claim, conf_folder, is_first_rank, quoted, settled
from contrast.run.job import Task, run_job
from contrast.run.messages import one_line, wants_traceback
from contrast.run.sweeping import sweep


def run(task: Task, config_name: str, restored: Sequence[str] = ()) -> None:
    """Runs `task` with the configuration `conf/<config_name>.yaml` and the command line in sys.argv.

    restored  parts of the configuration that the task's checkpoint brings back: a run that continues cannot change them

    What a user can mend ends as one line on stderr and exit status 2; a sweep in which a job failed ends with 1,
    Ctrl-C with 130; any other error keeps its traceback. HYDRA_FULL_ERROR=1 shows the traceback of them all.
    """
    try:
        status = command(task, config_name, restored)
    except InputError as error:
        if wants_traceback():
            raise
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        print("interrupted", file=sys.stderr)  # Lightning makes an exit(1) of Ctrl-C
        status = 130
    if status:
        sys.exit(status)


def command(task: Task, config_name: str, restored: Sequence[str] = ()) -> int:
    """What `run` does, with errors as exceptions; returns the exit status."""
    hydra.version.setbase("1.3")
    parser = get_args_parser()
    args = parser.parse_intermixed_args()  # flags and overrides in any order
    if args.experimental_rerun is not None:
        parser.error("--experimental-rerun is not supported: resume=RUN continues a run")
    conf = Path(args.config_path).absolute() if args.config_path else conf_folder()
    name = args.config_name or config_name
    job = functools.update_wrapper(functools.partial(run_job, task), task)
    with opened(conf, args.config_dir, config_name) as app:
        with at_the_door(app):
            run_dir = resumed_run(app, args.overrides)
            if run_dir is not None:
                name = resume.store_config(resume.config_of(run_dir))
                args.overrides.append(f"hydra.run.dir={quoted(run_dir)}")
            cfg = composed(app, name, args.overrides) if args.cfg or not informs(args) else None
            if cfg is not None and cfg.get("resume") is not None and run_dir is None:
                raise InputError("resume belongs on the command line, not in a configuration file")
        if cfg is not None and not informs(args):
            if args.multirun or cfg.hydra.mode == RunMode.MULTIRUN:  # as a file in conf/sweep/ says
                return sweep(app, job, name, args.overrides, cfg)
            return single(app, job, name, args.overrides, cfg, restored)
    with at_the_door(app):
        _run_hydra(args, parser, job, str(conf), name)
    return 0


def informs(args: Namespace) -> bool:
    """Whether the command is asked to tell something, and not to run."""
    return bool(args.help or args.hydra_help or args.cfg or args.info or args.shell_completion or args.resolve)


def resumed_run(app: Hydra, overrides: list[str]) -> Path | None:
    """The folder of the run that `resume=` names on the command line."""
    read = parsed(overrides)
    target = next((item for item in reversed(read) if item.key_or_group == "resume"), None)
    if target is None or target.value() is None:
        return None
    if target.is_sweep_override():
        raise InputError(f"{target.input_line}: one run at a time")
    resume.refuse_groups(read, app.list_all_config_groups())
    return resume.run_of(str(target.value()))


def single(
    app: Hydra, job: Task, name: str, overrides: list[str], cfg: DictConfig, restored: Sequence[str] = ()
) -> int:
    """A run in a folder of its own, or in that of the run that it continues."""
    with at_the_door(app):
        ConfigLoaderImpl.validate_sweep_overrides_legal(parsed(overrides), RunMode.RUN, from_shell=True)
        folder = Path(cfg.hydra.run.dir).absolute()
        check_values(cfg, folder)
        if is_first_rank():
            if cfg.get("resume") is None:
                folder = claim(folder)
            else:
                before = resume.config_of(resume.run_of(cfg.resume))
                lines = resume.differences(settled(before), settled(cfg))
                for line in lines:
                    if re.split(r"[.:]", line)[0] in restored:
                        raise InputError(f"{line}: a run keeps the value that it began with; start a new one")
                for line in lines:
                    print(f"other than when the run began: {line}")
    app.run(name, job, [*overrides, f"hydra.run.dir={quoted(folder)}", "hydra.mode=RUN"])
    return 0
