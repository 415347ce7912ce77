"""What the console commands have in common: configuration, run folder, resume, sweeps and readable errors."""

from contrast.entry.command import run

__all__ = ["run"]
