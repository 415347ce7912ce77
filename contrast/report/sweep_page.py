"""The page of a sweep: its table with intervals over seeds, its plot, the curves of its jobs, and their own pages."""

import os
from pathlib import Path
from urllib.parse import quote

from contrast.report.curves import sweep_panels
from contrast.report.page import Page, Section, picture, table, write_page
from contrast.run.folder import CONFIG, read_config
from contrast.run.sweep_report import SEED, Job, group_rows, label, read_jobs, run_title, swept_keys, table_metrics

REPORT = "report.html"  # in the folder of a run


def is_sweep(folder: Path) -> bool:
    """Whether this is the folder of a sweep that has ended."""
    return (folder / "sweep.csv").is_file()


def save_sweep_report(folder: Path) -> None:
    """The page in the folder of a sweep at its end; none if no job began."""
    if is_sweep(folder):
        write_sweep_page(folder, folder / REPORT)
        print(folder / REPORT)


def write_sweep_page(folder: Path, out: Path) -> None:
    """Writes the page of the sweep in `folder`."""
    jobs = read_jobs(folder)
    configs = (read_config(job.folder) for job in jobs if job.folder is not None and (job.folder / CONFIG).is_file())
    config = next(configs, {})
    metric, columns = str(config.get("metric")), config.get("columns")
    metrics = table_metrics(jobs, [metric, *(columns if isinstance(columns, list) else ())])
    keys = swept_keys(jobs)
    page: Page = {
        "title": f"Sweep of {', '.join(keys) or 'one job'}: {run_title(jobs)}",
        "subtitle": str(folder),
        "sections": [
            groups(jobs, keys, metrics),
            picture(folder / "sweep.png", f"{metric} by {', '.join(keys)}"),
            sweep_panels([(label(job, keys), job) for job in jobs]),
            each_job(jobs, keys, metrics, out.parent),
        ],
    }
    write_page(out, page)


def groups(jobs: list[Job], keys: list[str], names: list[str]) -> Section:
    """The mean over seeds of each combination of the other values."""
    others = [key for key in keys if key != SEED]
    note = "Means over seeds with 95 % intervals of the mean (Student's t). A click on a heading sorts."
    return table("Results", [*others, *names, "runs"], group_rows(jobs, keys, names), note)


def each_job(jobs: list[Job], keys: list[str], names: list[str], folder: Path) -> Section:
    """Every job, with the address of its own page if it has one, relative to `folder`."""
    rows = []
    for job in jobs:
        cells = [*(job.swept.get(key, "") for key in keys), *(job.metrics.get(name, "-") for name in names)]
        rows.append([job.name, *cells, ": ".join(filter(None, (job.status, job.reason)))])
    pages = [job.folder / REPORT for job in jobs if job.folder is not None]
    links = {page.parent: address(Path(os.path.relpath(page, folder))) for page in pages if page.is_file()}
    section = table("Jobs", ["job", *keys, *names, "status"], rows, "A job that has its own report links to it.")
    return {**section, "links": [None if job.folder is None else links.get(job.folder) for job in jobs]}


def address(path: Path) -> str:
    """A relative path as the address of a link, which no name of a folder turns into another kind of address."""
    quoted = quote(path.as_posix())
    return quoted if quoted.startswith("../") else f"./{quoted}"
