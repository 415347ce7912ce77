"""Lightning's notes on itself, which would bury what a run has to say."""

import logging
import warnings

import lightning_fabric
import pytorch_lightning


def quiet() -> None:
    """Leaves Lightning's warnings, and drops its notes and the deprecations inside it."""
    for module in (pytorch_lightning, lightning_fabric):  # imported first: they set the levels of their own loggers
        logging.getLogger(module.__name__).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")
    warnings.filterwarnings("ignore", message=".*number of training batches .* is smaller than the logging interval.*")
