"""A next-word model: an encoder of the preceding words, and any head and source over words as its output layer.

B sequences, T words, N positions of a chunk of text, Q predicted words, D features, V classes: the end of a line and
the words.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from contrast.data.loader import Span
from contrast.data.text.corpus import Corpus
from contrast.distributed import average_gradients, mean_counted, mean_over_ranks, rank, world_size
from contrast.errors import InputError, making
from contrast.evaluation.language import NextWord
from contrast.heads import NCE, AdaptiveSoftmax, FixedBias
from contrast.heads.head import Head
from contrast.negatives import Table, Targets, Tree
from contrast.optim import LARS
from contrast.optim.groups import parameter_groups
from contrast.words.base import TextModel
from contrast.words.frequencies import start_at_frequencies


class LanguageModel(TextModel):
    """Predicts each word from the words before it (Bengio et al. 2003), with any output layer.

    encoder      `encoder(ids [B, T], state) -> features [B, T, D], state`, the last feature 1; `contrast.encoders.GRU`
    negatives    `Table`, whole or sampled, under InfoNCE or NCE; `Tree` under NCE; `Targets` under AdaptiveSoftmax
    head         `head(query [Q, D], candidates) -> losses [Q], counted [Q]`
    counts       [V] int64, how often each class occurs: at least once
    optimizer    called with parameter groups
    scheduler    called with the optimizer and `total_steps`; None: a constant learning rate
    length       T, words of a window; each window begins without a context
    batch        B, windows of a training step
    frequencies  whether the model starts as the unigram model of `counts` (contrast.words.frequencies)
    max_held_out_words  on which the final perplexity is measured, evenly spread over the streams
    streams      parts of the held-out text that are read in parallel

    words, seed, config  as in every `TextModel`

    A step's loss is the mean over its predicted words. The first word of a window is not predicted.

    Every rank is given the same spans, and trains on its part of the windows of each. The draws are the same on all
    ranks, and gradients are averaged here (`average_gradients`), so that DDP must not do it.
    """

    negatives: Table | Tree | Targets
    head: Head | AdaptiveSoftmax
    log_p: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        negatives: Table | Tree | Targets,
        head: Head | AdaptiveSoftmax,
        counts: Tensor,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[..., LRScheduler] | None = None,
        length: int = 20,
        batch: int = 64,
        frequencies: bool = True,
        max_held_out_words: int = 20_000,
        streams: int = 32,
        words: Sequence[str] | None = None,
        seed: int = 0,
        config: dict[str, object] | None = None,
    ) -> None:
        sizes = {"length": length, "batch": batch, "max_held_out_words": max_held_out_words, "streams": streams}
        super().__init__(encoder, negatives, head, words, seed, config, **sizes)
        self.optimizer, self.scheduler = optimizer, scheduler
        self.length, self.chunk = length, batch * (length + 1)
        self.max_held_out_words, self.streams = max_held_out_words, streams
        self.register_buffer("log_p", (counts.double() / counts.sum()).log().float())  # [V]
        if frequencies:
            start_at_frequencies(negatives, head, counts)

    @staticmethod
    def counts(corpus: Corpus) -> Tensor:
        """How often each class occurs, [V]: the end of a line, then the words by falling frequency.

        The end of a line comes first because it is frequent in most text, and an adaptive softmax has its frequent
        classes first. An <unk> that replaces no word of the text counts as 1: it must be drawn, and be in a tree.
        """
        return torch.cat([corpus.counts.new_tensor([corpus.lines]), corpus.counts]).clamp(min=1)

    def classes(self, ids: Tensor) -> Tensor:
        """Ids of a corpus as classes: the end of a line, -1, is class 0, and word n is class n + 1."""
        return ids.long() + 1

    def windows(self, ids: Tensor) -> Tensor:
        """A chunk [N] as windows [B, T + 1], without the remainder; a chunk shorter than a window is one window."""
        width = min(self.length + 1, len(ids))
        rows = len(ids) // width
        return ids[: rows * width].view(rows, width)

    def count(self, batch: Span) -> int:
        """Predicted words of a batch, on all ranks."""
        return self.windows(batch.ids)[:, 1:].numel()

    def training_step(self, batch: Span, batch_idx: int) -> dict[str, Tensor]:
        text = self.windows(self.classes(batch.ids))  # [B, T + 1]
        if text.shape[1] == 1:  # a single word: nothing to predict
            return {"loss": 0 * torch.stack([parameter.sum() for parameter in self.parameters()]).sum()}
        mine = text.tensor_split(world_size())[rank()]
        is_counted = len(mine) > 0
        text = mine if is_counted else text[:1]  # a rank without a window takes part with one that does not count
        features, _ = self.encoder(text[:, :-1])  # [B, T, D]
        query, ids = features.flatten(0, 1), text[:, 1:].flatten()  # [Q, D], [Q]
        ((query, candidates),) = self.negatives(query[None], None, ids, None, self.generator())
        losses, counted = self.head(query, candidates)
        loss = mean_counted(losses, counted & is_counted)
        if self.logged:
            self.log("train/loss", mean_over_ranks(loss.detach()), prog_bar=True)
            if isinstance(self.head, NCE) and not isinstance(self.head.bias, FixedBias):
                self.log("train/log_z", -self.head.bias())
        return {"loss": loss}

    def on_after_backward(self) -> None:
        average_gradients(self.parameters())

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.head.advance()

    def next_word(self) -> NextWord:
        """The same parts without their training."""
        return NextWord(self.encoder, self.negatives, self.head, self.log_p)

    def held_out(self, ids: Tensor, max_words: int) -> dict[str, float]:
        """Metrics of held-out text `ids` [N], on at most `max_words` words of it: see `metrics`."""
        metrics = self.next_word().metrics(self.classes(ids), self.streams, max_words)
        return {"held_out_words" if name == "words" else name: value for name, value in metrics.items()}

    def metrics(self, corpus: Corpus, device: torch.device) -> dict[str, float]:
        """Metrics of the model on the held-out text; nothing if none is held out.

        Those of `NextWord.metrics`; `held_out_words` is how many words were predicted.
        """
        return {} if corpus.held_out is None else self.to(device).held_out(corpus.held_out, self.max_held_out_words)

    def metric_names(self, corpus: Corpus) -> set[str]:
        """Names of the metrics that `metrics` may return on this corpus."""
        if corpus.held_out is None:
            return set()
        return self.next_word().metric_names() - {"words"} | {"held_out_words"}

    def table(self, metrics: dict[str, float]) -> str:
        """The metrics as lines of text."""
        if not metrics:
            return "no text was held out (data.held_out=0.05), so there is no perplexity"
        return "\n".join(f"{name:<28}{value:>12,.2f}" for name, value in metrics.items())

    def on_fit_start(self) -> None:
        if self.sparse_parts():
            if self.trainer.gradient_clip_algorithm == "value":
                raise InputError("clipping by value needs dense gradients: encoder.sparse=false negatives.sparse=false")
            torch.sparse.check_sparse_tensor_invariants.disable()  # the default, but torch warns unless it is set
        self.head.plan(int(self.trainer.estimated_stepping_batches))

    def sparse_parts(self) -> list[str]:
        """Which parts have sparse gradients."""
        parts = {"encoder": self.encoder, "negatives": self.negatives}
        return [name for name, part in parts.items() if any(getattr(m, "sparse", False) for m in part.modules())]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        with making("optimizer"):
            optimizer = self.optimizer(parameter_groups(self))
        self.check_optimizer(optimizer)
        if self.scheduler is None:
            return optimizer
        with making("scheduler"):
            schedule = self.scheduler(optimizer, total_steps=int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def check_optimizer(self, optimizer: Optimizer) -> None:
        """InputError for an optimiser that would fail at the first sparse gradient."""
        parts = self.sparse_parts()
        dense = isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW | torch.optim.RMSprop | LARS)
        decay = max((group.get("weight_decay", 0) for group in optimizer.param_groups), default=0)
        if parts and (dense or decay):
            name = type(optimizer).__name__ + (f" with weight decay {decay}" if decay and not dense else "")
            remedy = " ".join(f"{part}.sparse=false" for part in parts)
            other = "" if dense else ", or optimizer.weight_decay=0"
            raise InputError(f"{name} takes no sparse gradients: {remedy}{other}; or optimizer=adagrad")

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        if self.logged:
            self.log("train/lr", optimizer.param_groups[0]["lr"])
