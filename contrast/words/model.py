"""Skip-gram and CBOW: word vectors under any head and any table of words.

T places of a span, N blocks, L centres of a block, C places around, M draws, D dimensions, V words, P pairs.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from contrast.candidates import Candidates
from contrast.data.text.corpus import Corpus
from contrast.data.text.spans import Span
from contrast.errors import InputError
from contrast.heads import NCE, AdaptiveSoftmax
from contrast.heads.scalars import Fixed, FixedBias
from contrast.losses.similarity import LOWEST_LOG_Q
from contrast.negatives import Table
from contrast.rng import generator
from contrast.samplers import Sampler
from contrast.words import by_autograd, closed_form
from contrast.words.base import TextModel
from contrast.words.blocks import Blocks, blocks, keep_probability
from contrast.words.by_autograd import Questions, questions
from contrast.words.closed_form import Rule
from contrast.words.output import check_pair
from contrast.words.workers import Workers


class Task(NamedTuple):
    """A worker's part of a span."""

    ids: np.ndarray  # [T] int32, -1 between lines
    batch_number: int
    total: int  # steps of the run


class WordVectors(TextModel):
    """word2vec (Mikolov et al. 2013): a word and its context, each pair scored against noise by a head.

    encoder    ids -> vectors, `contrast.encoders.WordTable`: what is kept in the end
    negatives  a source over words: `Table`, whole or sampled, or `Tree`
    head       `head(query [P, D], candidates) -> losses [P], counted [P]`
    counts     [V] int64, how often each word occurs
    method     skipgram: the centre asks, every word of its context answers; cbow: the mean of the context's vectors
               asks, the centre answers
    window     words on either side that a context reaches at most; subsample: see `keep_probability`
    lr, lr_end learning rate of the sum over pairs, falling linearly over the run, as in word2vec
    span       places of the corpus in a training step, which is many updates; no pair crosses its ends
    block      L, centres that share the draws of `negatives`; blocks: in one update, each with draws of its own
    limit      of a row that more pairs change in one update, the step is scaled down to so many; None: never
    workers    processes that update the same tables without locks, `contrast.words.workers`: the result then depends on
               their timing. With one a run is a function of its seed

    words, seed, config  as of every `TextModel`

    With a logistic head, a fixed temperature of 1 and a bias that is not learned, over dot products with a sampled
    `Table`, an update is written out (contrast.words.closed_form); all else goes through autograd, with the same sums
    of the same losses. Training is plain gradient descent on the rows that are touched.

    The loss that is logged is that of two blocks of a span before they change anything; a run's `loss` is its mean
    over the last epoch. It compares runs with the same head and noise.
    """

    encoder: Any
    negatives: Any
    head: Any
    keep: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        negatives: nn.Module,
        head: nn.Module,
        counts: Tensor,
        method: Literal["skipgram", "cbow"] = "skipgram",
        window: int = 5,
        subsample: float = 1e-4,
        lr: float = 0.025,
        lr_end: float = 1e-4,
        span: int = 200_000,
        block: int = 32,
        blocks: int = 16,
        max_pairs_per_row: float | None = 64,
        workers: int = 1,
        words: Sequence[str] | None = None,
        seed: int = 0,
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(words, seed, config)
        if method not in ("skipgram", "cbow"):
            raise InputError(f"the method is skipgram or cbow, not {method!r}")
        if min(window, span, block, blocks, workers) < 1:
            raise InputError(
                f"window {window}, span {span}, block {block}, blocks {blocks}, workers {workers}: 1 or more"
            )
        if not lr > 0 or not 0 <= lr_end <= lr:
            raise InputError(f"the learning rate falls from lr > 0 to lr_end in 0..lr, got {lr} and {lr_end}")
        if max_pairs_per_row is not None and not max_pairs_per_row > 0:
            raise InputError(
                f"a row is limited to more than 0 pairs an update, or with null not at all: got {max_pairs_per_row}"
            )
        if isinstance(head, AdaptiveSoftmax):
            raise InputError("AdaptiveSoftmax holds its classes itself: word vectors want a Table or a Tree of them")
        check_pair(negatives, head)
        self.automatic_optimization = False
        self.encoder, self.negatives, self.head = encoder, negatives, head
        self.method, self.window, self.lr, self.lr_end = method, window, lr, lr_end
        self.span, self.block, self.blocks, self.limit, self.workers = span, block, blocks, max_pairs_per_row, workers
        self.epoch_loss = (0, 0.0, 0)  # number of the epoch, sum of the losses looked at in it, and how many
        self.register_buffer("keep", keep_probability(counts, subsample))
        self.looked = torch.empty(0)  # losses of the current span before it changed anything
        self.pool: Workers | None = None  # while it trains
        self.written_out = written_out(head, negatives)
        self.offset: Tensor | None = None
        self.threads: int | None = None  # torch's, to be set again after training

    @staticmethod
    def counts(corpus: Corpus) -> Tensor:
        """How often each class occurs, [V]: the classes are the words."""
        return corpus.counts

    def count(self, batch: Span) -> int:
        """Words in a batch."""
        return int((batch.ids >= 0).sum())

    def training_step(self, batch: Span, batch_idx: int) -> dict[str, Tensor]:
        total = int(self.trainer.estimated_stepping_batches)
        parts = batch.ids.int().cpu().numpy()
        assert self.pool is not None
        self.pool.run([Task(part, self.batch_number, total) for part in np.array_split(parts, self.workers)])
        self.head.advance()
        self.optimizers().step()  # type: ignore[union-attr]  # there are no gradients left: it counts the step
        return {"loss": self.told(self.looked)}

    def work(self, worker: int, task: "Task") -> None:
        """Train on a worker's part of a span."""
        self.batch_number = task.batch_number
        text = self.read(torch.from_numpy(task.ids).long().to(self.device), worker)
        if worker == 0:
            self.looked = self.look(text)
        for share, update in self.updates(text, worker):
            update(self.rate((task.batch_number - 1 + share) / task.total))

    def read(self, ids: Tensor, worker: int) -> Blocks:
        return blocks(ids, self.keep, self.window, self.block, self.generator(worker, 0))

    def updates(self, text: Blocks, worker: int = 0) -> Iterator[tuple[float, Callable[[float], None]]]:
        """The updates of a part of a span in turn: how much of it lies behind, and a step with a learning rate."""
        draws = self.generator(worker, 1)
        tally = torch.zeros_like(self.encoder.weight[:, 0])
        shape = len(text), getattr(self.negatives, "draws", 0)
        drawn = self.negatives.sampler.draw(shape, draws) if self.written_out else None  # [N, M]: all at once
        for start in range(0, len(text), self.blocks):
            stop = start + self.blocks
            part = text.part(start, stop)
            if drawn is None:
                update = partial(self.step_by_autograd, part, draws, tally)
            else:
                update = partial(self.step, part, drawn[start:stop], tally)
            yield start / len(text), update

    @torch.no_grad()
    def step(self, text: Blocks, drawn: Tensor, tally: Tensor, rate: float) -> None:
        """An update written out, with the draws [N, M]."""
        step = closed_form.skip_gram if self.method == "skipgram" else closed_form.cbow
        rule = Rule(self.head.num_noise or self.negatives.draws, self.word_offset(), self.limit, tally)
        step(self.encoder.weight, self.negatives.vectors, text, drawn, rate, rule)

    def step_by_autograd(self, text: Blocks, draws: torch.Generator, tally: Tensor, rate: float) -> None:
        asked = [questions(self.encoder, text.part(n, n + 1), self.method) for n in range(len(text))]
        asked = [each for each in asked if len(each.answers)]
        if asked:
            losses, candidates = zip(*(self.answer(each, draws) for each in asked), strict=True)
            by_autograd.step(self, asked, candidates, torch.cat(losses), rate, self.limit, tally)

    def losses(self, text: Blocks, draws: torch.Generator) -> Tensor:
        """The head's losses of the pairs of one block, [P]; of its centres that have a context with CBOW."""
        asked = questions(self.encoder, text, self.method)
        return self.answer(asked, draws)[0] if len(asked.answers) else asked.query.sum(dim=1)

    def answer(self, asked: Questions, draws: torch.Generator) -> tuple[Tensor, Candidates]:
        ((query, candidates),) = self.negatives(asked.query[None], None, asked.answers, None, draws)
        return self.head(query, candidates)[0], candidates

    def word_offset(self) -> Tensor | None:
        """What the head adds to the score of each word: bias - log(k q) in NCE, [V]; None: nothing."""
        if self.offset is None and self.head.correction:
            everything, draws = torch.arange(len(self.negatives.vectors), device=self.device), self.negatives.draws
            log_q = (self.negatives.sampler.log_prob(everything) + math.log(draws)).clamp(min=LOWEST_LOG_Q)
            self.offset = self.head.bias() - log_q - math.log((self.head.num_noise or draws) / draws)
        if self.offset is None and float(self.head.bias()) != 0:
            self.offset = self.head.bias().expand(len(self.negatives.vectors))
        return self.offset

    def rate(self, done: float) -> float:
        """Learning rate after this share of the run."""
        return self.lr + (self.lr_end - self.lr) * min(done, 1.0)

    def generator(self, worker: int, stream: int) -> torch.Generator:
        return generator(self.seed, self.batch_number, worker, stream)

    @torch.no_grad()
    def look(self, text: Blocks) -> Tensor:
        """Losses [P] of the pairs of the first two blocks of a span, before they change anything."""
        draws = self.generator(0, 2)
        losses = [self.losses(text.part(n, n + 1), draws) for n in range(min(2, len(text)))]
        return torch.cat(losses) if losses else self.encoder.weight.new_zeros(0)

    def told(self, losses: Tensor) -> Tensor:
        """The mean of the losses [P] that were looked at; logged, and summed up over the epoch."""
        loss = losses.mean() if len(losses) else losses.sum()
        if not loss.isfinite():
            raise InputError(f"the loss of span {self.batch_number} is {loss.item()}: take a lower lr than {self.lr}")
        epoch, total, number = self.epoch_loss
        if epoch != self.current_epoch:
            total, number = 0.0, 0
        self.epoch_loss = self.current_epoch, total + float(losses.double().sum()), number + len(losses)
        if self.logged:
            done = self.batch_number / int(self.trainer.estimated_stepping_batches)
            self.log("train/lr", self.rate(done))
            self.log("train/loss", loss, prog_bar=True)
            self.log("train/largest", self.encoder.weight.abs().max())
        return loss

    def figures(self) -> dict[str, float]:
        """loss: the mean over the last epoch of the losses that were looked at; nothing where none was."""
        _, total, number = self.epoch_loss
        return {"loss": total / number} if number else {}

    def vectors(self) -> Tensor:
        """The vectors of all words, [V, D]. Raises InputError if some are not finite."""
        vectors = self.encoder.weight.detach().cpu()
        broken = int((~vectors.isfinite().all(dim=1)).sum())
        if broken:
            raise InputError(f"{broken} of {len(vectors)} vectors are not finite: take a lower lr than {self.lr}")
        return vectors

    def on_fit_start(self) -> None:
        self.offset = None
        self.threads = torch.get_num_threads()
        torch.set_num_threads(1)  # products of a block are too small to be shared: the workers are the threads
        self.head.plan(int(self.trainer.estimated_stepping_batches))
        self.pool = Workers(self, self.work, self.workers)

    def teardown(self, stage: str) -> None:
        if self.pool is not None:
            self.pool.close()
            self.pool = None
        if self.threads is not None:
            torch.set_num_threads(self.threads)
            self.threads = None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)  # it only counts: see `training_step`

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["epoch_loss"] = self.epoch_loss

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.epoch_loss = checkpoint["epoch_loss"]


def written_out(head: nn.Module, negatives: nn.Module) -> bool:
    """Whether `contrast.words.closed_form` covers this head and this source."""
    return (
        type(head) is NCE
        and not head.cosine
        and head.margin is None
        and type(head.temperature) is Fixed
        and float(head.temperature()) == 1
        and type(head.bias) is FixedBias
        and type(negatives) is Table
        and isinstance(negatives.sampler, Sampler)
    )
