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
from contrast.words.compiled import Loop, Tables, row_lists
from contrast.words.sharded import ShardedDescent, ShardedRows
from contrast.words.workers import shared

# Of the loss along the change of a row, for a pair with a vector of length 1: at most 1 / 4, but vectors have many
# directions. Two ranks learn what one does with 1 / 256, with 1 / 64 and 1 / 1024 nearly; with 1 / 4 they learn less.
CURVATURE = 1 / 256


class Spans:
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
        number = start[words + 1] - start[words]  # [u], rows of each word
        ends = number.cumsum(0)
        place = torch.arange(int(number.sum())) + (start[words] - ends + number).repeat_interleave(number)
        touched = torch.cat([row[place].long(), *(each.flatten() for each in noise)])
        outputs, of_outputs = touched.unique(return_inverse=True)  # [m]
        of_words, of_noise = of_outputs[: len(place)], of_outputs[len(place) :]

        self.rows = [
            MergedRows(self.descent, table.data, rows)
            for table, rows in zip(self.tables, (words, outputs), strict=True)
        ]
        for copy, rows in zip(self.copies, self.rows, strict=True):
            copy[: len(rows.vectors)] = rows.vectors
        of_context = torch.cat([each.number for each in texts]).double()
        pairs = pairs_of(
            ids, of_context, of_words, number, of_noise, loss.noise_weight, sum(map(len, noise)), self.loop.cbow
        )
        self.steps = steps(pairs, [each.vectors for each in self.rows], lr * loss.scale**2 * CURVATURE)

        every = torch.arange(len(words) + 1)
        tables = Tables(
            inputs=np.empty((0, 0)),
            input_rows=row_lists(every, every[:-1], len(words)),
            outputs=np.empty((0, 0)),
            output_rows=row_lists(torch.cat([ends[:0].new_zeros(1), ends]), of_words, len(outputs)),
            positive=self.loop.positive[place.numpy()],
            log_q=(self.loop.log_q if loss.corrected else self.loop.no_log_q)[outputs.numpy()],
            copied=self.loop.copied._replace(first=int((outputs < self.loop.copied.first).sum())),
        )
        of_texts = ids.split([len(each.ids) for each in texts])
        of_draws = iter(of_noise.split([each.numel() for each in noise]))
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

        Returns the bytes that went to other ranks, both ways, since the last call.
        """
        for rows, copy, steps in zip(self.rows, self.copies, self.steps, strict=True):
            rows.merge(copy[: len(rows.vectors)] - rows.vectors, steps)
        sent, self.descent.sent = self.descent.sent, 0
        return sent


class MergedRows(ShardedRows):
    """Rows of which every rank has trained a copy."""

    def merge(self, change: Tensor, steps: Tensor) -> None:
        """change [u, D]; steps [u], see `merged`."""
        by_owner = torch.empty_like(self.place).index_copy_(0, self.place, torch.arange(len(self.place)))  # [u]
        sent = torch.cat([change, steps[:, None].to(change.dtype)], dim=1)[by_owner]
        change, steps = self.send(sent, *self.parts).split((change.shape[1], 1), dim=1)  # [a, D], [a, 1]
        rows, place = self.owned.unique(return_inverse=True)  # [r], [a]
        self.table.index_add_(0, rows, merged(change, steps[:, 0], place, len(rows)))


def merged(change: Tensor, steps: Tensor, place: Tensor, rows: int) -> Tensor:
    """The change [r, D] of each row, of the changes [a, D] of its copies.

    steps  [a]: its copy has come nearer to the row's optimum by exp(-steps)
    place  [a], of its row among the r

    Where the copies one after another would have come nearer by exp(-S), with S the sum of their steps, the sum of
    their changes comes nearer by the sum of all 1 - exp(-steps). It is scaled down to that.
    """
    total = change.new_zeros(rows, change.shape[1]).index_add_(0, place, change)
    all_steps, of_sum = (
        torch.zeros(rows, dtype=torch.float64).index_add_(0, place, each)
        for each in (steps.double(), -torch.expm1(-steps.double()))
    )
    share = torch.where(of_sum > 0, -torch.expm1(-all_steps) / of_sum, 1.0)
    return total * share[:, None].to(total.dtype)


def steps(pairs: "Pairs", vectors: Sequence[Tensor], rate: float) -> tuple[Tensor, Tensor]:
    """How far copies of rows come towards their optimum, in the sense of `merged`, [u] and [m] float64.

    vectors  [u, D] and [m, D], as they are before
    rate     the learning rate times the curvature of the loss of a pair with a vector of length 1
    """
    of_inputs, of_outputs = (rows.square().sum(dim=1).double() for rows in vectors)
    of_query = float((pairs.of_words * of_inputs).sum() / pairs.of_words.sum().clamp(min=1e-30))  # mean square
    of_outputs_of_a_pair = float((pairs.of_rows * of_outputs).sum() / max(1.0, pairs.number))
    return rate * pairs.of_words * of_outputs_of_a_pair, rate * pairs.of_rows * of_query


class Pairs(NamedTuple):
    """How many pairs have each word [u] as their query, and each row [m] of the output layer; and the number of all."""

    of_words: Tensor
    of_rows: Tensor
    number: float


def pairs_of(
    ids: Tensor,
    of_context: Tensor,
    of_words: Tensor,
    number: Tensor,
    of_noise: Tensor,
    weight: float,
    blocks: int,
    cbow: bool,
) -> Pairs:
    """The pairs of a span, as far as their numbers can be expected.

    ids         [T], centre words; of_context [T], how many words are in the context of each
    of_words    rows of the words one after another, `number` [u] of each
    of_noise    rows of the draws of so many blocks, each of which has the weight of so many pairs

    A word is as often in a context as words are in its own. In CBOW a word is a part 1 / C of the query, with C words
    in a context, and of C queries.
    """
    words = len(number)
    in_contexts = torch.bincount(ids, of_context, minlength=words)
    targets = torch.bincount(ids, (of_context > 0).double(), minlength=words) if cbow else in_contexts
    of_queries = in_contexts * (targets.sum() / in_contexts.sum().clamp(min=1)) ** 2
    rows = int(torch.cat([of_words, of_noise]).max()) + 1
    of_rows = torch.zeros(rows, dtype=torch.float64).index_add_(0, of_words, targets.repeat_interleave(number))
    of_rows += torch.bincount(of_noise, minlength=rows) * (weight * float(targets.sum()) / max(1, blocks))
    return Pairs(of_queries, of_rows, float(targets.sum()))
