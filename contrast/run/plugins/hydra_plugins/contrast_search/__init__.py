"""A sweep whose values Optuna draws. Hydra's own plugin for it needs an Optuna before version 3.

Hydra finds its plugins in packages below `hydra_plugins` and imports each of them at its start, so that optuna is
imported when a sweep begins.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from contrast.atomic import replacing
from contrast.run.folder import PRUNED, read_metrics

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler


class Search(Sweeper):
    """Draws `n_trials` jobs, `n_jobs` at a time: interval(0.1,1), tag(log,interval(...)), choice(a,b) and lists.

    A job that fails is a failed trial, and one that `callbacks.prune` ended is a pruned one, whose value is that of the
    epoch at which it ended; neither can be the best one. `optimization_results.yaml` in the sweep's folder has the best
    values. The study is not stored: with a seed in its sampler, a repeated sweep draws the same values and finds its
    jobs complete.
    """

    launcher: Launcher
    folder: Path

    def __init__(
        self,
        sampler: "BaseSampler",
        direction: Literal["maximize", "minimize"] = "maximize",
        n_trials: int = 20,
        n_jobs: int = 1,
        params: Mapping[str, object] | None = None,
    ) -> None:
        self.sampler, self.direction, self.n_trials, self.n_jobs = sampler, direction, n_trials, n_jobs
        self.params = params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.launcher = Plugins.instance().instantiate_launcher(hydra_context, task_function, config)
        self.folder = Path(config.hydra.sweep.dir)

    def sweep(self, arguments: Sequence[str]) -> None:
        import optuna

        space: dict[str, BaseDistribution] = {}
        fixed: dict[str, str] = {}
        words = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        for override in OverridesParser.create().parse_overrides(words):
            key = override.get_key_element()
            space.pop(key, None)  # the command line comes after the file
            fixed.pop(key, None)
            if override.is_sweep_override():
                space[key] = distribution(override)
            else:
                fixed[key] = override.get_value_element_as_str()
        study = optuna.create_study(sampler=self.sampler, direction=self.direction)
        states = optuna.trial.TrialState
        while (left := self.n_trials - len(study.trials)) > 0:
            trials = [study.ask(space) for _ in range(min(self.n_jobs, left))]
            jobs = [[f"{key}={value}" for key, value in {**each.params, **fixed}.items()] for each in trials]
            for trial, job in zip(trials, self.launcher.launch(jobs, initial_job_idx=trials[0].number), strict=True):
                assert job.hydra_cfg is not None
                value, metrics = job.return_value, read_metrics(Path(job.hydra_cfg.hydra.runtime.output_dir))
                if value is not None and PRUNED in metrics:
                    trial.report(value, int(metrics[PRUNED]))
                    study.tell(trial, state=states.PRUNED)
                else:
                    study.tell(trial, value, state=states.FAIL if value is None else None)
        if any(trial.state == states.COMPLETE for trial in study.trials):
            best = {"name": "optuna", "best_params": study.best_params, "best_value": study.best_value}
            with replacing(self.folder / "optimization_results.yaml") as file:
                OmegaConf.save(OmegaConf.create(best), file)


def distribution(override: Override) -> "BaseDistribution":
    """Where the values of a swept key are drawn from: all numbers of an interval, or the values of a list."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    if not isinstance(value, IntervalSweep):
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    start, end, is_log = value.start, value.end, "log" in value.tags
    if isinstance(start, int) and isinstance(end, int):
        return IntDistribution(start, end, log=is_log)
    return FloatDistribution(float(str(start)), float(str(end)), log=is_log)
