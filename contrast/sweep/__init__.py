"""What came out of a sweep: its job folders, the table over seeds, sweep.csv and the plot."""

from contrast.sweep.jobs import Job, read_jobs
from contrast.sweep.report import report

__all__ = ["Job", "read_jobs", "report"]
