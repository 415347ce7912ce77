"""What the models of text share: the vocabulary and the number of the batch, which are in the checkpoint."""

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl

from contrast.data.text.spans import Span
from contrast.errors import InputError
from contrast.module import is_logged


class TextModel(pl.LightningModule):
    """A model whose rows are words, trained in one process.

    words   the vocabulary, in the order of the rows; None: it is not known, and not checked on resuming
    seed    of all draws, with the number of the batch
    config  the configuration of the run, for the checkpoint
    """

    def __init__(self, words: Sequence[str] | None, seed: int, config: dict[str, Any] | None) -> None:
        super().__init__()
        if seed < 0:
            raise InputError(f"the seed must not be negative, but is {seed}")
        self.words, self.seed, self.config = words, seed, config
        self.batch_number = 0  # of the current batch, from 1, since the start of the run; in the checkpoint
        self.logged = False  # whether the current batch is

    def on_train_batch_start(self, batch: Span, batch_idx: int) -> None:
        self.batch_number += 1
        self.logged = is_logged(self.trainer, batch_idx)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["batch_number"] = self.batch_number
        checkpoint["config"] = self.config
        checkpoint["words"] = None if self.words is None else list(self.words)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.batch_number = checkpoint["batch_number"]
        saved = checkpoint.get("words")
        if saved is None or self.words is None or list(self.words) == saved:
            return
        told = f"the checkpoint knows {len(saved):,} words, and this text has {len(self.words):,}"
        both = zip(saved, self.words, strict=False)
        other = next(((n, old, new) for n, (old, new) in enumerate(both) if old != new), None)
        first = "" if other is None else ", number {:,} is '{}' there and '{}' here".format(*other)
        raise InputError(f"{told}{first}: it is not the text of the run")
