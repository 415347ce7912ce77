"""A loss that is not finite stops the run before it can spoil the weights, and leaves what reproduces the step."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import cast

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from contrast.atomic import replacing
from contrast.data.images.image_set import Batch
from contrast.errors import InputError
from contrast.module import Contrastive
from contrast.words.base import TextModel


class StopAtNonFinite(pl.Callback):
    """Checks every loss before the optimiser's step; writes `nonfinite_<batch>.pt` and raises InputError.

    The losses are copied to the host while backward runs, so on a GPU the check waits for the forward pass only, with
    backward still queued: the device does not idle. The file holds the batch, the views' uniforms, the state dict as
    it was before the step (batch norm's running statistics excepted, which the forward pass has moved), and the
    configuration. The error names the first non-finite tensor: a parameter, or the first output on the main path.
    """

    batch: Batch  # of the current step

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.pending: list[tuple[Batch, int, Tensor]] = []  # the batches since the last step: number, loss on the host
        self.copied: torch.cuda.Event | None = None

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Batch, *_: object) -> None:
        self.batch = batch

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        on_host = loss.detach().to("cpu", non_blocking=True)
        self.pending.append((self.batch, cast(Contrastive, pl_module).batch_number, on_host))
        if loss.is_cuda:
            self.copied = torch.cuda.Event()
            self.copied.record()

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        if self.copied is not None:
            self.copied.synchronize()
        pending, self.pending = self.pending, []
        for batch, number, loss in pending:
            if not loss.isfinite():
                model = cast(Contrastive, pl_module)
                model.batch_number = number
                self.stop(trainer, model, batch, loss.item())

    def stop(self, trainer: pl.Trainer, model: Contrastive, batch: Batch, loss: float) -> None:
        number, alone = model.batch_number, trainer.world_size == 1
        state = {
            "batch_number": number,
            "rank": trainer.global_rank,
            "batch": batch._asdict(),
            "uniforms": model.uniforms(len(batch.pixels)),
            "state_dict": model.state_dict(),
            "config": model.config,
        }
        rank = "" if alone else f"_rank{trainer.global_rank}"
        file = self.run_dir / f"nonfinite_{number}{rank}.pt"
        with replacing(file) as temporary:
            torch.save(state, temporary)
        with trainer.precision_plugin.train_step_context():  # what overflows in half precision is to do so again
            first = first_non_finite(model, batch, alone)
        raise InputError(
            f"the loss of batch {number} is {loss}; first non-finite tensor: {first}; the step is in {file}"
        )


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
            raise InputError(f"the loss of batch {number} is {loss}: take a lower learning rate")
