"""A sweep from its command line to its table."""

import sys
from collections.abc import Callable
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from contrast.errors import InputError
from contrast.run.compose import at_the_door, check_values, parsed
from contrast.run.folder import quoted
from contrast.run.jobs import COMPLETE
from contrast.run.messages import wants_traceback
from contrast.run.sweep_report import report


def sweep(
    app: Hydra, job: Callable[[DictConfig], float | None], name: str, overrides: list[str], cfg: DictConfig
) -> int:
    """Runs the jobs that are not complete yet; then the table of what there is, however the sweep ended."""
    if cfg.get("resume") is not None:
        raise InputError("resume= continues a single run; to continue a sweep, repeat its command")
    with at_the_door(app):
        sweep_dir = Path(cfg.hydra.sweep.dir).absolute()
        params = cfg.hydra.sweeper.get("params") or {}
        check_values(
            cfg, sweep_dir, {*params, *(each.key_or_group for each in parsed(overrides) if each.is_sweep_override())}
        )
        expected = expected_jobs(app, cfg)
    # Settled here, the folder is the same for the jobs of every launcher.
    settled = [f"hydra.sweep.dir={quoted(sweep_dir)}", "hydra.mode=MULTIRUN", *sweeper_settings(cfg, overrides)]
    broke_off = False
    try:
        with at_the_door(app):
            app.multirun(name, job, [*overrides, *settled])
    except InputError:
        raise
    except Exception as error:
        if wants_traceback() or not sweep_dir.is_dir():
            raise
        broke_off = True  # a worker process died, say; what the other jobs reached is in their folders
        reason = str(error).strip().partition("\n")[0]
        print(f"error: the sweep broke off: {type(error).__name__}: {reason}", file=sys.stderr)
    finally:
        jobs = report(sweep_dir, cfg.get("metric"), expected)
    return 1 if broke_off or any(each.status != COMPLETE for each in jobs) else 0


def expected_jobs(app: Hydra, cfg: DictConfig) -> list[list[str]] | None:
    """The overrides of each job to come; None for a sweeper that decides as it goes."""
    if not cfg.hydra.sweeper._target_.endswith(".BasicSweeper"):
        return None
    params = [f"{key}={value}" for key, value in (cfg.hydra.sweeper.params or {}).items()]
    parser = OverridesParser.create(config_loader=app.config_loader)
    overrides = parser.parse_overrides([*params, *cfg.hydra.overrides.task])
    return BasicSweeper.split_arguments(overrides, None)[0]


def sweeper_settings(cfg: DictConfig, overrides: list[str]) -> list[str]:
    """What Optuna's sweeper has to know and the command line does not say.

    The direction is that of the metric. With a seed of its own, a repeated command draws the same values and finds
    its jobs complete. A failed job is a failed trial and no reason to stop.
    """
    sweeper = cfg.hydra.sweeper
    settings = {}
    if "direction" in sweeper and cfg.get("direction") is not None:
        settings["hydra.sweeper.direction"] = cfg.direction
    if OmegaConf.select(sweeper, "sampler.seed", default="") is None:
        settings["hydra.sweeper.sampler.seed"] = 0
    if "max_failure_rate" in sweeper:
        settings["hydra.sweeper.max_failure_rate"] = 1.0
    given = {item.key_or_group for item in parsed(overrides)}
    return [f"{key}={value}" for key, value in settings.items() if key not in given]
