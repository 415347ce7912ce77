"""Tables of words whose rows are on several ranks, for text and vocabularies that one machine does not hold.

Of R ranks, rank i mod R owns row i of both tables, and every rank trains on text of its own. For an update, a rank asks
the owners for the rows that its words and its noise touch (`all_to_all_single`), computes its gradient from these, and
sends the gradient and the load of each row back. The owner sums both over all ranks and takes one step with them, so
that the limit on the pairs of a row counts those of all ranks, and R ranks compute what one rank computes that makes R
times as large an update. In the compiled loop ranks exchange rows less often (contrast.words.spans).

V rows, R ranks, n = V / R rows of a rank, rounded up; m rows of a step, u different ones among them, a rows that a rank
is asked for by all ranks.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from contrast.distributed import rank, sum_over_ranks, world_size
from contrast.encoders import SubwordTable
from contrast.errors import InputError
from contrast.heads import NCE
from contrast.heads.head import Head
from contrast.negatives import Table, Tree
from contrast.words.descent import Descent, Rows


@dataclass
class ShardedDescent(Descent):
    """One step of all ranks, which have to ask for the same tables in the same order.

    loads  [n]
    sent   bytes that this rank has sent to other ranks
    """

    sent: int = 0

    def rows(self, table: Tensor, ids: Tensor) -> Rows:
        """Of a table's part [n, D]; `ids` are those of the whole table."""
        return ShardedRows(self, table, ids)

    def update(self, table: Tensor, ids: Tensor, gradient: Tensor, load: Tensor) -> None:
        """On what every rank has: a parameter of the head. The gradient and the load are summed over ranks."""
        super().update(table, ids, sum_over_ranks(gradient), sum_over_ranks(load))


class ShardedRows(Rows):
    """Rows that their owners send and change."""

    descent: ShardedDescent
    load: Tensor

    def read(self) -> Tensor:
        ranks, rows = world_size(), len(self.table)
        by_owner = self.ids % ranks * rows + self.ids // ranks
        different, self.place = by_owner.unique(return_inverse=True)  # [u], [m]
        self.wanted = torch.bincount(different // rows, minlength=ranks)  # of each rank
        self.asked = torch.empty_like(self.wanted)  # by each rank
        dist.all_to_all_single(self.asked, self.wanted)
        self.parts = self.wanted.tolist(), self.asked.tolist()
        self.owned = self.send(different % rows, *self.parts)  # [a], rows of the part that is here
        return self.send(self.table.index_select(0, self.owned), *self.parts[::-1]).index_select(0, self.place)

    def rates(self, load: Tensor) -> Tensor:
        self.load = load
        return torch.ones_like(load)  # the owner knows them

    def add(self, change: Tensor) -> None:
        width = change.shape[1]
        total = change.new_zeros(sum(self.parts[0]), width + 1)  # [u, D + 1], gradients and loads
        total[:, :width].index_add_(0, self.place, change, alpha=-1)
        total[:, width].index_add_(0, self.place, self.load.to(change.dtype))
        gradient, load = self.send(total, *self.parts).split((width, 1), dim=1)  # [a, D], [a, 1]
        Descent.update(self.descent, self.table, self.owned, gradient, load[:, 0])

    def send(self, values: Tensor, sent: list[int], received: list[int]) -> Tensor:
        """Values in order of the ranks that get so many of them; returns those of all ranks in their order."""
        result = values.new_empty(sum(received), *values.shape[1:])
        dist.all_to_all_single(result, values, received, sent)
        self.descent.sent += (len(values) - sent[rank()]) * values[:1].nbytes
        return result


def check_ranks(workers: int, compiled: bool, encoder: nn.Module, negatives: Table | Tree, head: Head) -> None:
    """InputError for a model (contrast.words.WordVectors) that trains on one rank only.

    compiled  whether it trains in the compiled loop
    """
    if isinstance(encoder, SubwordTable):
        raise InputError("vectors with n-grams train on one rank: trainer.devices=1, or encoder=words")
    if workers > 1 and not compiled:
        raise InputError(
            f"without the compiled loop each of several ranks is one process: model.workers=1, not {workers}"
        )
    if not (head.has_slopes() and negatives.has_output()):
        raise InputError("several ranks need a head and a source of negatives with gradients in closed form")
    if isinstance(negatives, Table) and negatives.sampler is None:
        raise InputError("on several ranks a full softmax would fetch the whole table in every update")
    if isinstance(head, NCE) and head.bias.needs_log_z:
        raise InputError("several ranks have no common estimate of Z: set a number for head.bias")


def check_same(compiled: bool, device: torch.device) -> None:
    """InputError on all ranks if only some of them train in the compiled loop, which exchanges rows in another way."""
    number = int(sum_over_ranks(torch.tensor(float(compiled), device=device)))
    if number not in (0, world_size()):
        raise InputError(f"the compiled loop runs on {number} of {world_size()} ranks: is numba installed on all?")


def part(table: Tensor) -> Tensor:
    """This rank's rows of a table [V, D], with zeros after the last one where other ranks have one more: [n, D]."""
    ranks = world_size()
    mine = table.new_zeros(-(-len(table) // ranks), *table.shape[1:])
    rows = table[rank() :: ranks]
    mine[: len(rows)] = rows
    return mine


def whole(mine: Tensor, rows: int) -> Tensor:
    """The table [V, D] of so many rows on the first rank, which all ranks ask for together; its part on the others."""
    parts = [torch.empty_like(mine) for _ in range(world_size())] if rank() == 0 else None
    dist.gather(mine.contiguous(), parts)
    return mine if parts is None else torch.stack(parts, dim=1).flatten(0, 1)[:rows]


def most_over_ranks(number: int, device: torch.device) -> int:
    """The largest of the ranks' numbers."""
    most = torch.tensor(number, device=device)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return int(most)
