"""Optimisation: LARS, parameter groups, schedules of the learning rate and its scaling with the batch."""

from contrast.optim.groups import parameter_groups
from contrast.optim.lars import LARS
from contrast.optim.scaling import linear_scaled, sqrt_scaled
from contrast.optim.schedule import constant, warmup_cosine

__all__ = ["LARS", "constant", "linear_scaled", "parameter_groups", "sqrt_scaled", "warmup_cosine"]
