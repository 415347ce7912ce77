"""Warnings of a run: one line each, in the console and in the run's log."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.core.hydra_config import HydraConfig


@contextmanager
def logged_warnings() -> Iterator[None]:
    """Warnings are logged, each once a job and as one line, and so they are kept in the log file of the run."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"warning: {' '.join(str(message).split())}"
    seen: set[tuple[str, str]] = set()

    def is_new(record: logging.LogRecord) -> bool:
        job = HydraConfig.get().runtime.output_dir if HydraConfig.initialized() else ""
        known = (job, record.getMessage()) in seen
        seen.add((job, record.getMessage()))
        return not known

    logger = logging.getLogger("py.warnings")
    logger.addFilter(is_new)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        logger.removeFilter(is_new)
        warnings.formatwarning = before
