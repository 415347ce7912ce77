"""Which batches are logged."""

from typing import Any


def is_logged(trainer: Any, batch_idx: int) -> bool:
    """Whether Lightning writes a row after this batch, of a run with one optimiser: asked before its step.

    It does so after each `log_every_n_steps` optimiser steps, which with accumulated gradients are fewer than batches.
    """
    every = trainer.log_every_n_steps
    steps = (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch
    return bool(every > 0 and steps and (trainer.global_step + 1) % every == 0)
