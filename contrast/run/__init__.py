"""The infrastructure of a run: Hydra's application, run folders, resuming, sweeps, logging. No methods are in here."""

from contrast.run.app import Command, run

__all__ = ["Command", "run"]
