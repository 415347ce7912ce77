"""What the two models of text share: checks of their parts and options, and what their checkpoints hold."""

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from contrast.data.loader import Span
from contrast.errors import InputError
from contrast.heads import NCE, AdaptiveSoftmax, FixedBias, InfoNCE
from contrast.heads.head import Head
from contrast.module import is_logged
from contrast.negatives import Table, Targets, Tree
from contrast.rng import generator


class TextModel(pl.LightningModule):
    """A model with one row of an output layer for each word.

    words    the vocabulary, in the order of the rows; None: unknown, and not checked on resuming
    seed     of all random numbers, together with the number of the batch
    config   the configuration of the run, which the checkpoint stores
    options  whole numbers that must be at least 1

    Raises InputError for a negative seed, for other options, and as `check_output_layer`.
    """

    def __init__(
        self,
        encoder: nn.Module,
        negatives: nn.Module,
        head: nn.Module,
        words: Sequence[str] | None,
        seed: int,
        config: dict[str, object] | None,
        **options: int,
    ) -> None:
        super().__init__()
        check_output_layer(negatives, head)
        if seed < 0:
            raise InputError(f"the seed must not be negative, but is {seed}")
        if min(options.values()) < 1:
            given = ", ".join(f"{name} {value}" for name, value in options.items())
            raise InputError(f"each of these must be at least 1: {given}")
        self.encoder, self.negatives, self.head = encoder, negatives, head
        self.words, self.seed, self.config = words, seed, config
        self.batch_number = 0  # of the current batch, from 1, since the start of the run; in the checkpoint
        self.logged = False  # whether metrics of the current batch are logged

    def on_train_batch_start(self, batch: Span, batch_idx: int) -> None:
        self.batch_number += 1
        self.logged = is_logged(self.trainer, batch_idx)

    def generator(self, *stream: int) -> torch.Generator:
        """The random numbers of the current batch, a separate sequence for each `stream`."""
        return generator(self.seed, self.batch_number, *stream)

    def on_save_checkpoint(self, checkpoint: dict[str, object]) -> None:
        checkpoint["batch_number"] = self.batch_number
        checkpoint["config"] = self.config
        checkpoint["words"] = None if self.words is None else list(self.words)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.batch_number = checkpoint["batch_number"]
        saved = checkpoint.get("words")
        if saved is None or self.words is None or list(self.words) == saved:
            return
        sizes = f"the checkpoint has {len(saved):,} words and this text {len(self.words):,}"
        pairs = enumerate(zip(saved, self.words, strict=False))
        first = next((f"; word {n:,} was '{old}' and is now '{new}'" for n, (old, new) in pairs if old != new), "")
        raise InputError(f"a run must be resumed on its own text: {sizes}{first}")


def check_output_layer(negatives: nn.Module, head: nn.Module) -> None:
    """InputError unless the source and the head form an output layer together."""
    plain = isinstance(head, Head) and head.margin is None
    no_bias = isinstance(head, NCE) and type(head.bias) is FixedBias and float(head.bias()) == 0
    if not (
        (isinstance(negatives, Table) and isinstance(head, InfoNCE | NCE) and plain)
        or (isinstance(negatives, Tree) and isinstance(head, NCE) and plain and no_bias and head.num_noise is None)
        or (isinstance(negatives, Targets) and isinstance(head, AdaptiveSoftmax))
    ):
        raise InputError(
            f"{type(negatives).__name__} under {type(head).__name__} is no output layer: a Table goes with InfoNCE or "
            "NCE without a margin, a Tree with NCE without margin, bias and noise, Targets with AdaptiveSoftmax"
        )
