"""Skip-gram and CBOW: word vectors under any head and any table of words.

T positions of a chunk of text, L centre words of a block, D dimensions, V words, P pairs.
"""

import copy
import logging
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from contrast.candidates import as_rows
from contrast.data.loader import Span
from contrast.data.text.corpus import Corpus
from contrast.distributed import rank, world_size
from contrast.encoders import WordTable
from contrast.errors import InputError
from contrast.heads.head import Head
from contrast.negatives import Table, Tree
from contrast.words import by_autograd, closed_form
from contrast.words.base import TextModel
from contrast.words.blocks import Passage, Passages, cut, keep_probability, kept_share
from contrast.words.compiled import Loop, Tables, why_not
from contrast.words.descent import Descent
from contrast.words.sharded import ShardedDescent, check_ranks, check_same, most_over_ranks, part, whole
from contrast.words.spans import SpanCopies
from contrast.words.start import check_options, check_parts, start_from, usual_rate, usual_subsample
from contrast.words.workers import Workers

log = logging.getLogger(__name__)


class Task(NamedTuple):
    """A worker's part of a chunk."""

    ids: np.ndarray  # [T] int32, -1 between lines
    batch_number: int
    steps: int  # training steps of the run
    span: tuple[Passages, Tensor | None, Tables] | None = None  # what is trained, where rows are on several ranks


class WordVectors(TextModel):
    """word2vec (Mikolov et al. 2013): input and output vectors of words, trained on pairs under a head.

    encoder    the input vectors, which are the result of the training
    negatives  the output vectors: a `Table`, whole or sampled, or the nodes of a `Tree`
    head       `head(query [P, D], candidates) -> losses [P], counted [P]`
    counts     [V] int64, how often each word occurs
    method     skipgram: a centre word's vector is the query, each word of its context a target; cbow: the mean of the
               context's vectors is the query, the centre word the target
    window     the most words to either side that a context extends
    shrink_windows  whether a context has a random size up to it, which weights near words more
    subsample  threshold of `keep_probability`; None: 1e-4, or 0 where that would drop nearly all of a small vocabulary
    lr, lr_end learning rate of the sum over pairs, falling linearly over the run, as in word2vec; lr=None: `usual_rate`
    chunk      positions of the corpus in a training step, which is many updates; no pair crosses the ends of a chunk
    block      L, centre words that share the noise words of `negatives`
    blocks     blocks in an update, each with noise words of its own
    max_pairs_per_row  if more pairs than this update one row in an update, the row's summed gradient is scaled by
               max_pairs_per_row / pairs, where a pair with a vector v counts |v / T|^2 (`Descent`); None: never. The
               compiled loop needs no limit, because an update is one centre word there
    workers    processes that update the same tables without locks (contrast.words.workers), so that the result depends
               on their timing. With one worker a run is a function of its seed. Each of several ranks has so many, and
               a part of the tables (contrast.words.spans; without the compiled loop one, contrast.words.sharded)

    compiled   whether one centre word after another is trained in a loop that numba compiles (contrast.words.compiled);
               None: where it can be, as it is faster: on a processor, with numba, for dot products under InfoNCE and
               NCE, with no learned or estimated part of the head, and with independent draws or a tree
    vectors    a run or a file of word vectors, from which the input vectors of the words in it start; `output_vectors`
               likewise. To go on with a run on other text give both: evaluation.output saves the latter
    words, seed, config  as in every `TextModel`

    Outside the compiled loop an update is all pairs of its blocks. Gradients are computed in closed form where the head
    has `slopes` and the table or tree an `output`: also with a whole table, and whatever the temperature and the bias.
    All else (cosines, Poisson draws, heads of your own) goes through autograd pair by pair, which is slower, with the
    same sums of the same losses. Training is plain gradient descent on the rows that an update touches.

    After every update the head advances: a bounded temperature returns to its bounds, a scheduled one takes a step, an
    estimate of Z is renewed. Every worker has its own schedule and its own estimate, because without locks shared ones
    could be torn; those of the first worker are logged and stored in the checkpoint. Learned parameters of the head are
    shared like the tables. A schedule over the whole training is planned for the expected number of updates, from which
    the real one differs by a few per cent, because frequent words are dropped at random.

    The logged loss is that of the first update of a chunk, of each pair before it is trained on; a run's metric `loss`
    is its mean over the last epoch. It compares runs with the same head and noise.
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
        shrink_windows: bool = True,
        subsample: float | None = None,
        lr: float | None = None,
        lr_end: float = 1e-4,
        chunk: int = 200_000,
        block: int | None = 32,
        blocks: int = 32,
        max_pairs_per_row: float | None = 512,
        workers: int = 1,
        compiled: bool | None = None,
        vectors: str | None = None,
        output_vectors: str | None = None,
        words: Sequence[str] | None = None,
        seed: int = 0,
        config: dict[str, object] | None = None,
    ) -> None:
        block = (32 if method == "skipgram" else 128) if block is None else block  # null in older runs
        self.has_usual_rate = lr is None  # which is known when the training starts
        lr = usual_rate(method, math.inf) if lr is None else lr
        sizes = {"window": window, "chunk": chunk, "block": block, "blocks": blocks, "workers": workers}
        super().__init__(encoder, negatives, head, words, seed, config, **sizes)
        check_parts(encoder, negatives, head, counts)
        check_options(method, workers, lr, lr_end, max_pairs_per_row)
        self.automatic_optimization = False
        start_from(encoder, negatives, vectors, output_vectors, words or ())
        subsample = usual_subsample(counts) if subsample is None else subsample
        self.shrink_windows = shrink_windows
        self.method, self.window, self.subsample, self.lr, self.lr_end = method, window, subsample, lr, lr_end
        self.chunk, self.block, self.blocks, self.workers = chunk, block, blocks, workers
        self.max_pairs_per_row, self.compiled = max_pairs_per_row, compiled
        self.register_buffer("keep", keep_probability(counts, subsample))
        self.kept_share = kept_share(counts, self.keep)
        self.has_closed_form = head.has_slopes() and negatives.has_output()
        self.epoch_loss = (0, 0.0, 0)  # number of the epoch, sum and number of the losses in it
        self.first_loss = (0.0, 0)  # sum and number of the losses of the chunk's first update, before it
        self.rows: dict[str, int] = {}  # of each table that is in parts on several ranks, during training
        self.sent = 0  # bytes of the chunk that went to other ranks
        self.pool: Workers[Task] | None = None  # during training
        self.loop: Loop | None = None  # likewise
        self.spans: SpanCopies | None = None  # likewise, where the loop trains on several ranks
        self.heads: list[Head] = []  # of each worker, during training
        self.threads: int | None = None  # torch's number of threads, which is restored after training

    @staticmethod
    def counts(corpus: Corpus) -> Tensor:
        """How often each class occurs, [V]: the classes are the words."""
        return corpus.counts

    def count(self, batch: Span) -> int:
        """Words in a batch, on all ranks as if each had as many as this one."""
        return int((batch.ids >= 0).sum()) * world_size()

    def on_fit_start(self) -> None:
        if world_size() > 1:
            check_same(why_not(self.encoder, self.negatives, self.head) is None, self.device)
            self.loop = self.compiled_loop()  # for whole tables
            check_ranks(self.workers, self.loop is not None, self.encoder, self.negatives, self.head)
            self.rows = {name: len(table) for name, table in self.tables().items()}
            for table in self.tables().values():
                table.data = part(table.data)
        self.start_workers(int(self.trainer.estimated_stepping_batches))

    def tables(self) -> dict[str, nn.Parameter]:
        """By their names in a checkpoint."""
        return {"encoder.weight": self.encoder.weight, "negatives.vectors": self.negatives.vectors}

    def whole_tables(self) -> dict[str, Tensor]:
        """The tables that are in parts as the first rank saves them; all ranks call this together."""
        tables = self.tables()
        return {name: whole(tables[name].data, rows) for name, rows in self.rows.items()}

    def start_workers(self, steps: int) -> None:
        """Starts the workers of a run of so many training steps."""
        self.threads = torch.get_num_threads()
        # matrix products of a block are too small to share, and a fork must not use OpenMP's threads of this process
        torch.set_num_threads(1)
        blocks = math.ceil(self.kept_share * self.chunk / world_size() / self.workers / self.block)
        self.head.plan(steps * math.ceil(blocks / self.blocks))
        shared = {id(each): each for each in self.head.parameters()}  # not copied, but used by all copies
        self.heads = [self.head, *(copy.deepcopy(self.head, dict(shared)) for _ in range(1, self.workers))]
        if not self.rows:
            self.loop = self.compiled_loop()
        elif self.loop is not None:
            self.spans = self.spans_of(self.loop)
        if self.has_usual_rate and self.loop is not None:
            self.lr = usual_rate(self.method, self.kept_share * self.chunk * steps)
        self.pool = Workers(self, self.work, self.workers)

    def check_compiled(self) -> str | None:
        """Why the compiled loop cannot be used; None if it can. Raises InputError where it is required and cannot."""
        off = self.compiled is False
        reason = "model.compiled=false" if off else why_not(self.encoder, self.negatives, self.head)
        if self.compiled and reason is not None:
            raise InputError(f"model.compiled=true: {reason}")
        return reason

    def compiled_loop(self) -> Loop | None:
        """The compiled loop, unless it is switched off or cannot be used."""
        reason = self.check_compiled()
        if reason is None:
            return Loop(self.encoder, self.negatives, self.head, self.method, self.window, self.workers)
        log.info("words are not trained in the compiled loop, which is faster on a processor: %s", reason)
        return None

    def teardown(self, stage: str) -> None:
        if self.pool is not None:
            self.pool.close()
        self.pool = self.loop = self.spans = None
        if self.threads is not None:
            torch.set_num_threads(self.threads)
            self.threads = None

    def training_step(self, batch: Span, batch_idx: int) -> dict[str, Tensor]:
        steps = int(self.trainer.estimated_stepping_batches)
        texts = np.array_split(batch.ids.int().cpu().numpy(), self.workers)
        tasks = [Task(text, self.batch_number, steps) for text in texts]
        assert self.pool is not None
        if self.spans is None:
            self.pool.run(tasks)
        else:
            parts = [self.prepared(worker, text)[:2] for worker, text in enumerate(texts)]
            spans = self.spans.fetch(parts, self.head, self.learning_rate((self.batch_number - 1) / steps))
            self.pool.run([task._replace(span=span) for task, span in zip(tasks, spans, strict=True)])
            self.sent = self.spans.send()
        self.optimizers().step()  # type: ignore[union-attr]  # without gradients: it only counts the step
        if self.logged and self.rows:
            self.log("train/bytes_per_word", self.sent / max(1, self.count(batch)))
        return {"loss": self.log_loss(*self.first_loss, steps)}

    def on_train_end(self) -> None:
        for name, table in self.whole_tables().items():
            self.tables()[name].data = table
        self.rows = {}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)  # changes nothing: see `training_step`

    def work(self, worker: int, task: Task) -> None:
        """Trains on a worker's part of a chunk."""
        self.batch_number = task.batch_number
        head, tables = self.heads[worker], None
        if task.span is None or self.spans is None:
            text, drawn, random = self.prepared(worker, task.ids)
        else:
            text, drawn, tables = task.span
            tables, random = self.spans.with_copies(tables), torch.Generator()  # which the loop does not use
        loads = torch.zeros_like(self.encoder.weight[:, 0])
        if worker == 0:
            self.first_loss, self.sent = (0.0, 0), 0
        for n in range(text.passages):
            lr = self.learning_rate((task.batch_number - 1 + n / text.passages) / task.steps)
            noise = None if drawn is None else drawn[n * self.blocks : (n + 1) * self.blocks]
            if self.loop is not None:
                loss = self.loop.step(text, n, head, noise, lr, worker == n == 0, tables)
            else:
                descent = (ShardedDescent if self.rows else Descent)(lr, self.max_pairs_per_row, loads)
                loss = self.update(text.passage(n), head, noise, random, descent, worker == n == 0)
                self.sent += descent.sent if isinstance(descent, ShardedDescent) else 0
            if loss is not None:
                self.first_loss = float(loss[0]), int(loss[1])
            head.advance()

    def prepared(self, worker: int, ids: np.ndarray) -> tuple[Passages, Tensor | None, torch.Generator]:
        """A worker's part of a chunk as passages, their noise, and the generator of more random numbers."""
        places, stream = torch.from_numpy(ids).long().to(self.device), rank() * self.workers + worker
        size = self.block * self.blocks
        text = cut(places, self.keep, self.window, size, self.generator(stream, 0), self.shrink_windows)
        if self.rows and self.loop is None:  # all ranks exchange rows equally often
            text = text.extended(most_over_ranks(text.passages, self.device))
        random, drawn = self.generator(stream, 1), None
        if self.has_closed_form:  # for all updates at once, which is faster
            drawn = self.negatives.draw(text.passages * self.blocks, random)
        if self.loop is not None and drawn is not None:
            as_rows(drawn, len(self.negatives.vectors) if not self.rows else self.rows["negatives.vectors"])
        return text, drawn, random

    def spans_of(self, loop: Loop) -> SpanCopies:
        """Room for the rows of a span."""
        tables, classes = (self.rows[name] for name in self.tables())
        words = min(tables, -(-self.chunk // world_size()) + 1)  # and that of the padding
        blocks = words // self.block + (self.blocks + 1) * self.workers  # the last passage of a worker is filled up
        drawn = 0 if isinstance(self.negatives, Tree) else blocks * self.negatives.draws
        rows = min(classes, words * loop.output_rows.most + drawn)
        return SpanCopies(loop, list(self.tables().values()), words, rows)

    def update(
        self,
        passage: Passage,
        head: Head,
        drawn: Tensor | None,
        random: torch.Generator,
        descent: Descent,
        with_loss: bool = False,
    ) -> tuple[Tensor, Tensor] | None:
        """One update; if requested, the sum of the losses of its pairs and their number."""
        parts = self.encoder, self.negatives, head
        if self.has_closed_form:
            return closed_form.step(*parts, passage, self.method, drawn, descent, with_loss)
        scored = by_autograd.score(*parts, passage, self.method, self.block, random)
        by_autograd.step(*parts, scored, descent)
        losses = torch.cat([descent.loads[:0], *(each.losses.detach() for each in scored)])
        return losses.sum(), torch.tensor(len(losses))

    def learning_rate(self, done: float) -> float:
        """After this share of the run."""
        return self.lr + (self.lr_end - self.lr) * min(done, 1.0)

    def log_loss(self, loss_sum: float, pairs: int, steps: int) -> Tensor:
        """The mean of the losses of so many pairs, which is logged and added to the epoch's."""
        loss = torch.tensor(loss_sum / max(1, pairs))
        if not loss.isfinite():
            raise InputError(f"the loss of chunk {self.batch_number} is {loss.item()}: take a lower lr than {self.lr}")
        epoch, total, number = self.epoch_loss
        if epoch != self.current_epoch:
            total, number = 0.0, 0
        self.epoch_loss = self.current_epoch, total + loss_sum, number + pairs
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
        vectors = self.encoder.whole().detach().cpu()
        broken = int((~vectors.isfinite().all(dim=1)).sum())
        if broken:
            raise InputError(f"{broken} of {len(vectors)} vectors are not finite: take a lower lr than {self.lr}")
        return vectors

    def on_save_checkpoint(self, checkpoint: dict[str, object]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["epoch_loss"], checkpoint["lr"] = self.epoch_loss, self.lr
        for name, table in self.whole_tables().items():
            cast(dict[str, Tensor], checkpoint["state_dict"])[name] = table

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.epoch_loss = checkpoint["epoch_loss"]
        if self.has_usual_rate:  # a resumed run keeps its rate, however many epochs are added; older ones saved none
            self.lr, self.has_usual_rate = checkpoint.get("lr", usual_rate(self.method, math.inf)), False
