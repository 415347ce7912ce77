"""What a run of images saves of a step whose loss is not finite, and what ends such a run of text."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import cast

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from contrast.atomic import replacing
from contrast.data.images.image_set import Batch
from contrast.errors import InputError, one_line
from contrast.module import Contrastive, NonFiniteLoss
from contrast.words.base import TextModel


class SaveNonFinite(pl.Callback):
    """Writes `nonfinite_<batch>.pt` if the loss of a batch is not finite, and adds what it finds to the error.

    The file holds the batch, the views' uniforms, the state dict as it was before the step (batch norm's running
    statistics excepted, which the forward pass has moved), and the configuration. The error names the first tensor that
    is not finite: a parameter, or the first output on the main path.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, NonFiniteLoss):
            try:
                found = self.save(trainer, cast(Contrastive, pl_module), exception)
            except Exception as error:  # such as a full disk: Lightning still has to close the loggers
                found = f"its step could not be saved: {one_line(error)}"
            exception.args = (f"{exception}; {found}",)

    def save(self, trainer: pl.Trainer, model: Contrastive, error: NonFiniteLoss) -> str:
        """Writes the file; returns what is the matter, and where the file is."""
        model.batch_number, alone = error.number, trainer.world_size == 1
        state = {
            "batch_number": error.number,
            "rank": trainer.global_rank,
            "batch": error.batch._asdict(),
            "uniforms": model.uniforms(len(error.batch.pixels)),
            "state_dict": model.state_dict(),
            "config": model.config,
        }
        rank = "" if alone else f"_rank{trainer.global_rank}"
        file = self.run_dir / f"nonfinite_{error.number}{rank}.pt"
        with replacing(file) as temporary:
            torch.save(state, temporary)
        with trainer.precision_plugin.train_step_context():  # what overflows in half precision is to do so again
            first = first_non_finite(model, error.batch, alone)
        return f"first non-finite tensor: {first}; the step is in {file}"


@torch.no_grad()
def first_non_finite(module: Contrastive, batch: Batch, alone: bool = True) -> str:
    """Name of the first tensor on the main path with a NaN or an infinity.

    The parameters are searched first. Then the step is run again and the output of every submodule is checked in order,
    unless there are other ranks (`alone=False`), which would not take part in its collectives.
    """
    for name, parameter in module.named_parameters():
        if not _finite(parameter):
            return f"{name} {list(parameter.shape)}"
    if not alone:
        return "none among the parameters; run it on one process to see the activations"
    broken: list[str] = []

    def check(name: str, module: nn.Module, inputs: object, output: object) -> None:
        tensors = output if isinstance(output, list | tuple) else [output]
        if not broken and any(isinstance(t, Tensor) and not _finite(t) for t in tensors):
            broken.append(f"the output of {name}")

    hooks = [sub.register_forward_hook(partial(check, name)) for name, sub in module.named_modules() if name]
    logged, module.logged = module.logged, False
    try:
        module.training_step(batch, 0)
    finally:
        module.logged = logged
        for hook in hooks:
            hook.remove()
    # buffers come last: the running statistics of a norm are spoilt by the step itself
    broken += [f"{name} {list(buffer.shape)}" for name, buffer in module.named_buffers() if not _finite(buffer)]
    return broken[0] if broken else "none but the loss"


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


class StopAfterNonFinite(pl.Callback):
    """Raises InputError after a step whose loss is not finite, before it is saved."""

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Mapping[str, Tensor], *unused: object
    ) -> None:
        if not outputs["loss"].isfinite():
            number, loss = cast(TextModel, pl_module).batch_number, outputs["loss"].item()
            precision = f"trainer.precision={trainer.precision}, which has no number above 65504, or "
            cause = f"{precision if str(trainer.precision).startswith('16') else ''}a learning rate that is too high"
            raise InputError(f"the loss of batch {number} is {loss}, and the usual cause is {cause}")
