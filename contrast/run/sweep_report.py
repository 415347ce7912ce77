"""The end of a sweep: sweep.csv, sweep.png and the table."""

from collections.abc import Sequence
from pathlib import Path

from contrast.run.jobs import Job, read_jobs
from contrast.run.sweep_plot import save_plot
from contrast.run.sweep_table import table, write_csv


def report(sweep_dir: Path, metric: str | None, expected: Sequence[Sequence[str]] | None = None) -> list[Job]:
    """Prints and writes what the jobs below `sweep_dir` came to; returns them.

    metric    of metrics.json, for the plot and the first column
    expected  overrides of each job, where they are known beforehand (see `read_jobs`)
    """
    jobs = read_jobs(sweep_dir, expected)
    if all(job.folder is None for job in jobs):
        return jobs
    write_csv(sweep_dir / "sweep.csv", jobs)
    drawn = metric is not None and save_plot(sweep_dir / "sweep.png", jobs, metric)
    print(f"\n{table(jobs, metric)}\n{sweep_dir / 'sweep.csv'}{', sweep.png' if drawn else ''}", flush=True)
    return jobs
