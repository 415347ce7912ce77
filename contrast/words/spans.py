"""The compiled loop where the rows of the tables are on several ranks: a span of text at a time.

A span is a rank's part of a chunk. For it, the rank fetches copies of all rows that its words and its noise touch, its
workers train them, and the changes are sent to the owners of the rows (contrast.words.sharded). A row that several
ranks have changed gets the sum of their changes where these are a small part of the way to its optimum, and their mean
where each went all of the way (`merged`).

u different words of a span, m different rows of the output layer, D dimensions.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from contrast.heads.head import Head
from contrast.words.blocks import Passages
from contrast.words.compiled import CURVATURE, Loop, Tables, row_lists
from contrast.words.sharded import ShardedDescent, ShardedRows
from contrast.words.workers import shared


class SpanCopies:
    """Copies of the rows of a span, in memory that the workers of this rank share.

    loop    made for whole tables
    tables  this rank's parts of the input and the output vectors, [n, D] each; `Workers` moves their data
    words   the most words of a span; rows: the most rows of the output layer that it touches
    """

    def __init__(self, loop: Loop, tables: Sequence[nn.Parameter], words: int, rows: int) -> None:
        self.loop, self.tables = loop, tables
        self.copies = [
            shared(torch.zeros(size, part.shape[1], dtype=part.dtype))
            for size, part in zip((words, rows), tables, strict=True)
        ]
        self.descent = ShardedDescent(0.0, None, torch.zeros(0))

    def fetch(
        self, parts: Sequence[tuple[Passages, Tensor | None]], head: Head, lr: float
    ) -> list[tuple[Passages, Tensor | None, Tables]]:
        """What each worker trains on: its text and its noise by their rows among the copies, and what the loop needs.

        All ranks call this together.
        """
        texts = [text for text, _ in parts]
        noise = [drawn for _, drawn in parts if drawn is not None]
        loss = head.pair_loss(noise[0].shape[1] if noise else 0)
        assert loss is not None
        words, ids = torch.cat([each.ids for each in texts]).unique(return_inverse=True)  # [u]
        lists = self.loop.output_rows
        start, row = torch.from_numpy(lists.start), torch.from_numpy(lists.row)
        rows_per_word = start[words + 1] - start[words]  # [u]
        ends = rows_per_word.cumsum(0)
        starts = start[words] - (ends - rows_per_word)
        place = torch.arange(int(rows_per_word.sum())) + starts.repeat_interleave(rows_per_word)
        touched = torch.cat([row[place].long(), *(each.flatten() for each in noise)])
        outputs, of_outputs = touched.unique(return_inverse=True)  # [m]
        word_rows, noise_rows = of_outputs[: len(place)], of_outputs[len(place) :]

        self.rows = [
            MergedRows(self.descent, table.data, rows)
            for table, rows in zip(self.tables, (words, outputs), strict=True)
        ]
        for copy, rows in zip(self.copies, self.rows, strict=True):
            copy[: len(rows.vectors)] = rows.vectors
        in_context = torch.cat([each.number for each in texts]).double()
        per_draw = loss.noise_weight / max(1, sum(map(len, noise)))
        pairs = pairs_of(ids, in_context, word_rows, rows_per_word, noise_rows, per_draw, self.loop.cbow)
        self.progress = progress(pairs, [each.vectors for each in self.rows], lr * loss.scale**2 * CURVATURE)

        every = torch.arange(len(words) + 1)
        first, stop = torch.searchsorted(outputs, torch.tensor(self.loop.copied[:2])).tolist()
        tables = Tables(
            inputs=np.empty((0, 0)),
            input_rows=row_lists(every, every[:-1], len(words)),
            outputs=np.empty((0, 0)),
            output_rows=row_lists(torch.cat([ends.new_zeros(1), ends]), word_rows, len(outputs)),
            positive=self.loop.positive[place.numpy()],
            log_q=(self.loop.log_q if loss.corrected else self.loop.no_log_q)[outputs.numpy()],
            copied=self.loop.copied._replace(first=first, stop=stop),
        )
        # each a tensor of its own, because a part of one is sent to a worker with all of its memory
        of_texts = [each.clone() for each in ids.split([len(each.ids) for each in texts])]
        of_draws = iter([each.clone() for each in noise_rows.split([each.numel() for each in noise])])
        return [
            (text._replace(ids=own), None if drawn is None else next(of_draws).view_as(drawn), tables)
            for (text, drawn), own in zip(parts, of_texts, strict=True)
        ]

    def with_copies(self, tables: Tables) -> Tables:
        """What `fetch` returns, with the copies, which all workers of this rank have in their memory."""
        inputs, outputs = (copy.numpy() for copy in self.copies)
        rows = len(tables.input_rows.start) - 1, len(tables.log_q)
        return tables._replace(inputs=inputs[: rows[0]], outputs=outputs[: rows[1]])

    def send(self) -> int:
        """Sends the changes of all copies to the owners of their rows, which change them. All ranks call this together.

        Returns the bytes that this rank has sent since the last call: requests, rows and changes.
        """
        for rows, copy, done in zip(self.rows, self.copies, self.progress, strict=True):
            rows.merge(copy[: len(rows.vectors)] - rows.vectors, done)
        sent, self.descent.sent = self.descent.sent, 0
        return sent


class MergedRows(ShardedRows):
    """Rows of which every rank has trained a copy."""

    def merge(self, change: Tensor, progress: Tensor) -> None:
        """change [u, D]; progress [u], see `merged`."""
        by_owner = torch.empty_like(self.place).index_copy_(0, self.place, torch.arange(len(self.place)))  # [u]
        sent = torch.cat([change, progress[:, None].to(change.dtype)], dim=1)[by_owner]
        change, progress = self.send(sent, *self.parts).split((change.shape[1], 1), dim=1)  # [a, D], [a, 1]
        rows, place = self.owned.unique(return_inverse=True)  # [r], [a]
        self.table.index_add_(0, rows, merged(change, progress[:, 0], place, len(rows)))


def merged(change: Tensor, progress: Tensor, place: Tensor, rows: int) -> Tensor:
    """The change [r, D] of each row, of the changes [a, D] of its copies.

    progress  [a]: its copy has come nearer to the row's optimum by exp(-progress)
    place     [a], of its row among the r

    Where the copies one after another would have come nearer by exp(-P), with P the sum of their progress, the sum of
    their changes comes nearer by the sum of all 1 - exp(-progress). It is scaled down to that.
    """
    total = change.new_zeros(rows, change.shape[1]).index_add_(0, place, change)
    of_all, of_sum = (
        torch.zeros(rows, dtype=torch.float64).index_add_(0, place, each)
        for each in (progress.double(), -torch.expm1(-progress.double()))
    )
    share = torch.where(of_sum > 0, -torch.expm1(-of_all) / of_sum, 1.0)
    return total * share[:, None].to(total.dtype)


class Pairs(NamedTuple):
    """The pairs of a span, as far as their numbers can be expected.

    per_word  [u]: the sum over the pairs with a word of the square of its share in their query. In skip-gram the word
              is the query, so this is their number; in CBOW it is the number times (1 / C)^2, with C words in a context
    per_row   [m]: how many pairs have a row of the output layer
    total     the number of all pairs; in CBOW a centre word is one
    """

    per_word: Tensor
    per_row: Tensor
    total: float


def pairs_of(
    ids: Tensor,
    in_context: Tensor,
    word_rows: Tensor,
    rows_per_word: Tensor,
    noise_rows: Tensor,
    per_draw: float,
    cbow: bool,
) -> Pairs:
    """Counts the pairs of a span.

    ids         [T], centre words; in_context [T], how many words are in the context of each
    word_rows   rows of the words one after another, `rows_per_word` [u] of each
    noise_rows  rows of all draws, each of which has the share `per_draw` of all pairs

    A word is in as many contexts as it has words in its own, up to chance.
    """
    words = len(rows_per_word)
    contexts = torch.bincount(ids, in_context, minlength=words)
    targets = torch.bincount(ids, (in_context > 0).double(), minlength=words) if cbow else contexts
    total = float(targets.sum())
    per_word = contexts * (total / contexts.sum().clamp(min=1)) ** 2
    rows = int(torch.cat([word_rows, noise_rows]).max()) + 1
    per_row = torch.zeros(rows, dtype=torch.float64).index_add_(0, word_rows, targets.repeat_interleave(rows_per_word))
    per_row += torch.bincount(noise_rows, minlength=rows) * (per_draw * total)
    return Pairs(per_word, per_row, total)


def progress(pairs: Pairs, vectors: Sequence[Tensor], rate: float) -> tuple[Tensor, Tensor]:
    """How far copies of rows come towards their optimum, in the sense of `merged`, [u] and [m] float64.

    vectors  [u, D] and [m, D], as they are before
    rate     the learning rate times the curvature of the loss of a pair with a vector of length 1
    """
    of_inputs, of_outputs = (rows.square().sum(dim=1).double() for rows in vectors)
    of_query = float((pairs.per_word * of_inputs).sum() / pairs.per_word.sum().clamp(min=1e-30))  # mean square
    of_a_pair = float((pairs.per_row * of_outputs).sum() / max(1.0, pairs.total))  # sum of the squares of its rows
    return rate * pairs.per_word * of_a_pair, rate * pairs.per_row * of_query
