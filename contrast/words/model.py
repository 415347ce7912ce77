"""Skip-gram and CBOW: word vectors under any head and any table of words.

T positions of a chunk of text, L centre words of a block, D dimensions, V words, P pairs.
"""

import copy
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from contrast.data.loader import Span
from contrast.data.text.corpus import Corpus
from contrast.encoders import WordTable
from contrast.errors import InputError
from contrast.heads import AdaptiveSoftmax
from contrast.heads.head import Head
from contrast.negatives import Table, Tree
from contrast.words import by_autograd, closed_form
from contrast.words.base import TextModel
from contrast.words.blocks import Blocks, cut_blocks, keep_probability
from contrast.words.descent import Descent
from contrast.words.workers import Workers


class Task(NamedTuple):
    """A worker's part of a chunk."""

    ids: np.ndarray  # [T] int32, -1 between lines
    batch_number: int
    steps: int  # training steps of the run


class WordVectors(TextModel):
    """word2vec (Mikolov et al. 2013): input and output vectors of words, trained on pairs under a head.

    encoder    the input vectors, which are the result of the training
    negatives  the output vectors: a `Table`, whole or sampled, or the nodes of a `Tree`
    head       `head(query [P, D], candidates) -> losses [P], counted [P]`
    counts     [V] int64, how often each word occurs
    method     skipgram: a centre word's vector is the query, each word of its context a target; cbow: the mean of the
               context's vectors is the query, the centre word the target
    window     the most words to either side that a context extends
    subsample  threshold of `keep_probability`
    lr, lr_end learning rate of the sum over pairs, which falls linearly over the run, as in word2vec
    chunk      positions of the corpus in a training step, which is many updates; no pair crosses the ends of a chunk
    block      L, centre words that share the noise words of `negatives`
    blocks     blocks in an update, each with noise words of its own
    max_pairs_per_row  if more pairs than this update one row in an update, the row's summed gradient is scaled by
               max_pairs_per_row / pairs; None: never
    workers    processes that update the same tables without locks (contrast.words.workers), so that the result depends
               on their timing. With one worker a run is a function of its seed

    words, seed, config  as in every `TextModel`

    With a logistic head, a fixed temperature of 1 and a bias that is not learned, over dot products with a sampled
    `Table`, gradients are computed in closed form, and by autograd otherwise, with the same sums of the same losses.
    Training is plain gradient descent on the rows that an update touches.

    After every update the head advances: a bounded temperature returns to its bounds, a scheduled one takes a step, an
    estimate of Z is renewed. Every worker has its own schedule and its own estimate, because without locks shared ones
    could be torn; those of the first worker are logged and stored in the checkpoint. Learned parameters of the head are
    shared like the tables. A schedule over the whole training is planned for the expected number of updates, from which
    the real one differs by a few per cent, because frequent words are dropped at random.

    The logged loss is that of the first two blocks of a chunk before any update on it; a run's metric `loss` is its
    mean over the last epoch. It compares runs with the same head and noise.
    """

    encoder: WordTable
    negatives: Table | Tree
    head: Head
    keep: Tensor

    def __init__(
        self,
        encoder: WordTable,
        negatives: Table | Tree,
        head: Head,
        counts: Tensor,
        method: Literal["skipgram", "cbow"] = "skipgram",
        window: int = 5,
        subsample: float = 1e-4,
        lr: float = 0.025,
        lr_end: float = 1e-4,
        chunk: int = 200_000,
        block: int = 32,
        blocks: int = 16,
        max_pairs_per_row: float | None = 64,
        workers: int = 1,
        words: Sequence[str] | None = None,
        seed: int = 0,
        config: dict[str, object] | None = None,
    ) -> None:
        sizes = {"window": window, "chunk": chunk, "block": block, "blocks": blocks, "workers": workers}
        super().__init__(encoder, negatives, head, words, seed, config, **sizes)
        if method not in ("skipgram", "cbow"):
            raise InputError(f"the method is skipgram or cbow, not {method!r}")
        if not lr > 0 or not 0 <= lr_end <= lr:
            raise InputError(f"the learning rate falls from lr > 0 to lr_end in 0..lr, got {lr} and {lr_end}")
        if max_pairs_per_row is not None and not max_pairs_per_row > 0:
            raise InputError(f"max_pairs_per_row must be more than 0, or null for no limit, got {max_pairs_per_row}")
        if isinstance(head, AdaptiveSoftmax):
            raise InputError("AdaptiveSoftmax has its own classes: word vectors need a Table or a Tree")
        self.automatic_optimization = False
        self.method, self.window, self.lr, self.lr_end = method, window, lr, lr_end
        self.chunk, self.block, self.blocks, self.workers = chunk, block, blocks, workers
        self.max_pairs_per_row = max_pairs_per_row
        self.register_buffer("keep", keep_probability(counts, subsample))
        self.kept_share = float((counts * self.keep).sum() / counts.sum())  # of the text
        self.has_closed_form = closed_form.is_supported(head, negatives)
        self.epoch_loss = (0, 0.0, 0)  # number of the epoch, sum and number of the losses in it
        self.first_losses = torch.empty(0)  # [P], of the current chunk before any update on it
        self.pool: Workers[Task] | None = None  # during training
        self.heads: list[Head] = []  # of each worker, during training
        self.threads: int | None = None  # torch's number of threads, which is restored after training

    @staticmethod
    def counts(corpus: Corpus) -> Tensor:
        """How often each class occurs, [V]: the classes are the words."""
        return corpus.counts

    def count(self, batch: Span) -> int:
        """Words in a batch."""
        return int((batch.ids >= 0).sum())

    def on_fit_start(self) -> None:
        self.start_workers(int(self.trainer.estimated_stepping_batches))

    def start_workers(self, steps: int) -> None:
        """Starts the workers of a run of so many training steps."""
        self.threads = torch.get_num_threads()
        # matrix products of a block are too small to share, and a fork must not use OpenMP's threads of this process
        torch.set_num_threads(1)
        blocks = math.ceil(self.kept_share * self.chunk / self.workers / self.block)
        self.head.plan(steps * math.ceil(blocks / self.blocks))
        shared = {id(each): each for each in self.head.parameters()}  # not copied, but used by all copies
        self.heads = [self.head, *(copy.deepcopy(self.head, dict(shared)) for _ in range(1, self.workers))]
        self.pool = Workers(self, self.work, self.workers)

    def teardown(self, stage: str) -> None:
        if self.pool is not None:
            self.pool.close()
            self.pool = None
        if self.threads is not None:
            torch.set_num_threads(self.threads)
            self.threads = None

    def training_step(self, batch: Span, batch_idx: int) -> dict[str, Tensor]:
        steps = int(self.trainer.estimated_stepping_batches)
        parts = np.array_split(batch.ids.int().cpu().numpy(), self.workers)
        assert self.pool is not None
        self.pool.run([Task(part, self.batch_number, steps) for part in parts])
        self.optimizers().step()  # type: ignore[union-attr]  # without gradients: it only counts the step
        return {"loss": self.log_loss(self.first_losses, steps)}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)  # changes nothing: see `training_step`

    def work(self, worker: int, task: Task) -> None:
        """Trains on a worker's part of a chunk."""
        self.batch_number = task.batch_number
        ids = torch.from_numpy(task.ids).long().to(self.device)
        text = cut_blocks(ids, self.keep, self.window, self.block, self.generator(worker, 0))
        head, random = self.heads[worker], self.generator(worker, 1)
        if worker == 0:
            with torch.no_grad():
                scored = self.score(text.part(0, 2), head, self.generator(0, 2))
            self.first_losses = torch.cat([self.encoder.weight.new_empty(0), *(each.losses for each in scored)])
        noise = None  # drawn for all steps at once, which is faster
        if self.has_closed_form:
            noise = closed_form.noise_words(head, self.negatives, len(text), random)
        pair_counts = torch.zeros_like(self.encoder.weight[:, 0])
        for start in range(0, len(text), self.blocks):
            stop = start + self.blocks
            lr = self.learning_rate((task.batch_number - 1 + start / len(text)) / task.steps)
            descent = Descent(lr, self.max_pairs_per_row, pair_counts)
            part = text.part(start, stop)
            if noise is None:
                by_autograd.step(self.encoder, self.negatives, head, self.score(part, head, random), descent)
            else:
                tables = self.encoder.weight, self.negatives.vectors
                closed_form.step(self.method, *tables, part, noise.part(start, stop), descent)
            head.advance()

    def score(self, text: Blocks, head: Head, random: torch.Generator) -> list[by_autograd.Scored]:
        return by_autograd.score(self.encoder, self.negatives, head, text, self.method, random)

    def learning_rate(self, done: float) -> float:
        """After this share of the run."""
        return self.lr + (self.lr_end - self.lr) * min(done, 1.0)

    def log_loss(self, losses: Tensor, steps: int) -> Tensor:
        """The mean of the losses [P], which is logged and added to the epoch's."""
        loss = losses.mean() if len(losses) else losses.sum()
        if not loss.isfinite():
            raise InputError(f"the loss of chunk {self.batch_number} is {loss.item()}: take a lower lr than {self.lr}")
        epoch, total, number = self.epoch_loss
        if epoch != self.current_epoch:
            total, number = 0.0, 0
        self.epoch_loss = self.current_epoch, total + float(losses.double().sum()), number + len(losses)
        if self.logged:
            self.log("train/lr", self.learning_rate(self.batch_number / steps))
            self.log("train/loss", loss, prog_bar=True)
            self.log("train/largest", self.encoder.weight.abs().max())
        return loss

    def metrics(self) -> dict[str, float]:
        """`loss`, the mean of the logged losses of the last epoch; nothing if there were none."""
        _, total, number = self.epoch_loss
        return {"loss": total / number} if number else {}

    def vectors(self) -> Tensor:
        """The vectors of all words, [V, D]. Raises InputError if some are not finite."""
        vectors = self.encoder.weight.detach().cpu()
        broken = int((~vectors.isfinite().all(dim=1)).sum())
        if broken:
            raise InputError(f"{broken} of {len(vectors)} vectors are not finite: take a lower lr than {self.lr}")
        return vectors

    def on_save_checkpoint(self, checkpoint: dict[str, object]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["epoch_loss"] = self.epoch_loss

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.epoch_loss = checkpoint["epoch_loss"]
