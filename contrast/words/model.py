"""Skip-gram and CBOW: word vectors under any head and any table of words.

T places of a span, N blocks, L centres of a block, C places around, M draws, D dimensions, V words, P pairs.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from contrast.data.corpus import Corpus
from contrast.data.spans import Span
from contrast.draws import generator
from contrast.errors import InputError
from contrast.heads import NCE
from contrast.heads.bias import FixedBias
from contrast.heads.temperature import Fixed
from contrast.negatives import Table
from contrast.samplers import Sampler
from contrast.words import closed_form
from contrast.words.blocks import Blocks, blocks, keep_probability
from contrast.words.closed_form import Rule


class WordVectors(pl.LightningModule):
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
    workers    threads that update the same tables without locks (Recht et al. 2011): the result then depends on their
               timing. With one a run is a function of its seed

    With a logistic head, a fixed temperature of 1 and a bias that is not learned, over dot products with a sampled
    `Table`, an update is written out (contrast.words.closed_form); all else goes through autograd, with the same sums
    of the same losses. Training is plain gradient descent on the rows that are touched. One process: workers are its
    parallelism.
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
        limit: float | None = 64,
        workers: int = 1,
        seed: int = 0,
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if method not in ("skipgram", "cbow"):
            raise InputError(f"the method is skipgram or cbow, not {method!r}")
        if min(window, span, block, blocks, workers) < 1:
            raise InputError(
                f"window {window}, span {span}, block {block}, blocks {blocks}, workers {workers}: 1 or more"
            )
        if not lr > 0 or not 0 <= lr_end <= lr:
            raise InputError(f"the learning rate falls from lr > 0 to lr_end in 0..lr, got {lr} and {lr_end}")
        if seed < 0:
            raise InputError(f"the seed must not be negative, but is {seed}")
        self.automatic_optimization = False
        self.encoder, self.negatives, self.head = encoder, negatives, head
        self.method, self.window, self.lr, self.lr_end = method, window, lr, lr_end
        self.span, self.block, self.blocks, self.limit, self.workers = span, block, blocks, limit, workers
        self.seed, self.config, self.batch_number = seed, config, 0
        self.register_buffer("keep", keep_probability(counts, subsample))
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
        done = self.batch_number - 1
        parts = batch.ids.chunk(self.workers)

        def work(worker: int) -> Blocks:
            text = self.read(parts[worker], worker)
            for share, update in self.updates(text, worker):
                update(self.rate((done + share) / total))
            return text

        if self.workers == 1:
            first = work(0)
        else:
            with ThreadPoolExecutor(self.workers) as pool:
                first, *_ = pool.map(work, range(len(parts)))
        self.head.advance()
        self.optimizers().step()  # type: ignore[union-attr]  # there are no gradients left: it counts the step
        loss = self.look(first)
        return {"loss": loss}

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
        rule = Rule(self.head.noise or self.negatives.draws, self.word_offset(), self.limit, tally)
        step(self.encoder.weight, self.negatives.vectors, text, drawn, rate, rule)

    def step_by_autograd(self, text: Blocks, draws: torch.Generator, tally: Tensor, rate: float) -> None:
        losses = [self.losses(text.part(n, n + 1), draws).sum() for n in range(len(text))]
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        found = torch.autograd.grad(torch.stack(losses).sum(), parameters, allow_unused=True)
        with torch.no_grad():
            for parameter, grad in zip(parameters, found, strict=True):
                if grad is not None and grad.is_sparse:  # row by row: coalescing would sort them first
                    row, step = grad._indices()[0], grad._values()
                    pairs = torch.ones_like(row, dtype=tally.dtype)
                    closed_form.change(parameter, [(row, step, pairs)], -rate, self.limit, tally)
                elif grad is not None:
                    parameter.sub_(grad, alpha=rate)

    def losses(self, text: Blocks, draws: torch.Generator) -> Tensor:
        """The head's losses of the pairs of one block, [P]; of its centres that have a context with CBOW."""
        block, centre, place = text.pairs().nonzero(as_tuple=True)  # [P] each
        if self.method == "skipgram":
            query = self.encoder(text.centre[block, centre])  # [P, D]
            ids = text.around[block, place]
        else:
            some, which = centre.unique(return_inverse=True)
            context = self.encoder(text.around[block, place])  # [P, D]
            total = context.new_zeros(len(some), context.shape[1]).index_add(0, which, context)
            query = total / torch.bincount(which, minlength=len(some))[:, None]
            ids = text.centre[0, some]
        if not len(ids):
            return query.sum(dim=1)
        ((query, candidates),) = self.negatives(query[None], None, ids, None, draws)
        return self.head(query, candidates)[0]

    def word_offset(self) -> Tensor | None:
        """What the head adds to the score of each word: bias - log(k q) in NCE, [V]; None: nothing."""
        if self.offset is None and self.head.correction:
            everything = torch.arange(len(self.negatives.vectors), device=self.device)
            noise = self.head.noise or self.negatives.draws
            log_q = self.negatives.sampler.log_prob(everything).clamp(min=-87.0)  # as floored in the head
            self.offset = self.head.bias() - log_q - torch.log(torch.tensor(float(noise)))
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
        """Mean loss of the pairs of the first block of a span after its updates; logged. InputError if not finite."""
        draws = self.generator(0, 2)
        losses = self.losses(text.part(0, 1), draws) if len(text) else self.encoder.weight.new_zeros(0)
        loss = losses.mean() if len(losses) else losses.sum()
        if not loss.isfinite():
            raise InputError(f"the loss of span {self.batch_number} is {loss.item()}: take a lower lr than {self.lr}")
        if self.logs_this_step():
            done = self.batch_number / int(self.trainer.estimated_stepping_batches)
            self.log("train/lr", self.rate(done))
            self.log("train/loss", loss, prog_bar=True)
            self.log("train/largest", self.encoder.weight.abs().max())
        return loss

    def logs_this_step(self) -> bool:
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return every > 0 and self.batch_number % every == 0

    def vectors(self) -> Tensor:
        """The vectors of all words, [V, D]."""
        return self.encoder.weight.detach().cpu()

    def on_fit_start(self) -> None:
        self.offset = None
        self.threads = torch.get_num_threads()
        torch.set_num_threads(1)  # products of a block are too small to be shared: the workers are the threads
        self.head.plan(int(self.trainer.estimated_stepping_batches))

    def teardown(self, stage: str) -> None:
        if self.threads is not None:
            torch.set_num_threads(self.threads)
            self.threads = None

    def on_train_batch_start(self, batch: Span, batch_idx: int) -> None:
        self.batch_number += 1

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)  # it only counts: see `training_step`

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["batch_number"] = self.batch_number
        checkpoint["config"] = self.config

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.batch_number = checkpoint["batch_number"]


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
