"""Optimisation: LARS, parameter groups, schedules of the learning rate and its scaling with the batch size."""

from contrast.optim.groups import parameter_groups
from contrast.optim.lars import LARS
from contrast.optim.schedule import constant, warmup_cosine
from contrast.scaling import linear_scaled, sqrt_scaled

__all__ = ["LARS", "constant", "linear_scaled", "parameter_groups", "sqrt_scaled", "warmup_cosine"]
