"""Optimisation: LARS, parameter groups, schedules of the learning rate and its scaling with the batch size."""

from contrast.optim.groups import parameter_groups
from contrast.optim.lars import LARS
from contrast.optim.schedule import constant, linear_scaled, sqrt_scaled, warmup_cosine

__all__ = ["LARS", "constant", "linear_scaled", "parameter_groups", "sqrt_scaled", "warmup_cosine"]
