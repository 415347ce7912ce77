"""An average of the encoder's weights over the steps (EMA), which is what is evaluated and shipped in their place."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import pytorch_lightning as pl
import torch
from torch import Tensor

from contrast.errors import InputError
from contrast.keys import Momentum, Second
from contrast.module import Contrastive


class EncoderEMA(pl.Callback):
    """Averages encoder and projection head: average <- d average + (1 - d) trained after each step; None: not at all.

    Of step n, d is the smaller of `decay` and (1 + n) / (10 + n), so that the weights before training are forgotten.
    The online kNN measures the average, the checkpoints hold it where a reader expects the weights, and at the end it
    takes their place in the model. The trained weights are in the checkpoint, too, and a resumed run goes on with them.
    """

    def __init__(self, decay: float | None = None) -> None:
        if decay is not None and not 0 < decay < 1:
            raise InputError(f"an average of weights needs a decay between 0 and 1, got {decay}")
        self.decay = decay
        self.average: Momentum | None = None
        self.step = 0  # the last one in the average

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self.decay is None:
            return
        model = cast(Contrastive, pl_module)
        if isinstance(model.key, Second):
            raise InputError("callbacks.ema averages the encoder of images alone, which a second encoder does not fit")
        self.average = Momentum(model.normalize, model.encoder, model.projector)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.step = trainer.global_step
        if self.average is not None:
            self.average.to(pl_module.device)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *unused: object) -> None:
        if trainer.global_step == self.step or self.average is None or self.decay is None:
            return  # gradients are accumulated
        self.step, model = trainer.global_step, cast(Contrastive, pl_module)
        self.average.momentum = min(self.decay, (1 + self.step) / (10 + self.step))
        self.average.advance(model.encoder, model.projector)

    def weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the average has of `state`, the state dict of a model."""
        assert self.average is not None
        return {name: state[name] for name in self.average.state_dict() if name in state}

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, dict[str, Tensor]]
    ) -> None:
        if self.average is not None:
            state, average = checkpoint["state_dict"], self.average.state_dict()
            checkpoint["trained"] = self.weights(state)
            checkpoint["state_dict"] = state | {name: average[name] for name in checkpoint["trained"]}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, dict[str, Tensor]]
    ) -> None:
        if self.average is not None:
            self.average.load_state_dict(self.weights(checkpoint["state_dict"]), strict=False)
        # the model has loaded the average by now, and training goes on from the trained weights, with or without it
        pl_module.load_state_dict(checkpoint.get("trained", {}), strict=False)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.exchange(pl_module)

    @torch.no_grad()
    def exchange(self, pl_module: pl.LightningModule) -> None:
        """The model gets the average, and what it had is kept in its place; nothing without an average."""
        if self.average is not None:
            model, average = pl_module.state_dict(), self.average.state_dict()
            for name, value in self.weights(model).items():
                held = value.clone()
                value.copy_(average[name])
                average[name].copy_(held)


@contextmanager
def averaged(trainer: pl.Trainer, pl_module: pl.LightningModule) -> Iterator[None]:
    """The model with averaged weights in this block, where the run averages them."""
    callbacks = [each for each in trainer.callbacks if isinstance(each, EncoderEMA)]  # type: ignore[attr-defined]
    for each in callbacks:
        each.exchange(pl_module)
    try:
        yield
    finally:
        for each in callbacks:
            each.exchange(pl_module)
