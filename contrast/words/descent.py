"""Gradient descent on the rows of a table that a step touches: how both ways of computing gradients apply them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from contrast.encoders import SubwordTable, WordTable


@dataclass
class Descent:
    """One step of gradient descent.

    lr        learning rate of the sum over pairs
    max_load  if a row's load in a step is more, its summed gradient is scaled by max_load / load; None: never
    loads     [V] zeros, one tensor for each worker, in which loads are summed; `rates` leaves zeros behind

    The load of a row is the number of its pairs times the mean of |v / T|^2, over all pairs of the step, of the vectors
    v that a pair compares it with at the temperature T: about four times the greatest curvature that the sum of their
    logistic losses can have. The load of a learned temperature or bias is, likewise, the sum over all scores of their
    squared derivative by it. A step of a frequent word, with hundreds of pairs at once, would overshoot where its
    curvature times lr is more than 2. While vectors are short it does not, and a limit on the number of pairs instead
    would hold back the words that the others learn from.
    """

    lr: float
    max_load: float | None
    loads: Tensor

    def rows(self, table: Tensor, ids: Tensor) -> "Rows":
        """The rows `ids` [m] of `table` [V, D], to be read and changed."""
        return Rows(self, table, ids)

    def words(self, encoder: WordTable, ids: Tensor) -> "Rows":
        """The vectors of the words `ids` [m], to be read and changed."""
        return Means(self, encoder, ids) if isinstance(encoder, SubwordTable) else self.rows(encoder.weight, ids)

    def rates(self, ids: Tensor, load: Tensor) -> Tensor:
        """Learning rates of the rows `ids` [m] of a table; the loads [m] of a row that occurs twice are summed."""
        most, loads = self.max_load, self.loads
        if most is None:
            return torch.full_like(load, self.lr)
        loads.index_add_(0, ids, load.to(loads.dtype))
        rates = loads.index_select(0, ids).clamp_(min=most).reciprocal_().mul_(self.lr * most)
        loads.index_fill_(0, ids, 0)
        return rates.to(load.dtype)

    def update(self, table: Tensor, ids: Tensor, gradient: Tensor, load: Tensor) -> None:
        """Subtracts rate * gradient from rows of `table` [V, D]. A row that occurs twice gets both.

        ids, gradient, load  [m], [m, D], which is overwritten, and [m]
        """
        table.index_add_(0, ids, gradient.mul_(self.rates(ids, load).neg_()[:, None]))


@torch.enable_grad()
def scalar_load(parameter: Tensor, scores: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """The load [1] of a parameter of the head, a scalar, from scores and the number of pairs that have each of them.

    A weighted sum of the scores has a derivative by the parameter that is linear in the weights, so that its own
    derivatives by the weights are those of the scores. A parameter that no score depends on counts as a bias.
    """
    ones = [torch.ones_like(each, requires_grad=True) for each in scores]
    (total,) = torch.autograd.grad(scores, parameter, ones, create_graph=True, allow_unused=True)
    slopes = ones if total is None else torch.autograd.grad(total, ones)
    loads = [(pairs * slope.square()).sum() for pairs, slope in zip(weights, slopes, strict=True)]
    return torch.stack(loads).sum(dim=0, keepdim=True)


class Rows:
    """The rows `ids` [m] of a table [V, D] in one step: `vectors` [m, D], as they are before it, and their change."""

    def __init__(self, descent: Descent, table: Tensor, ids: Tensor) -> None:
        self.descent, self.table, self.ids = descent, table, ids
        self.vectors = self.read()

    def read(self) -> Tensor:
        return self.table.index_select(0, self.ids)

    def rates(self, load: Tensor) -> Tensor:
        """What their gradients are to be multiplied by for `add`, [m], given their loads [m]."""
        return self.descent.rates(self.ids, load)

    def add(self, change: Tensor) -> None:
        """Adds `change` [m, D] to the rows, once `rates` was called. A row that occurs twice gets both."""
        self.table.index_add_(0, self.ids, change)

    def update(self, gradient: Tensor, load: Tensor) -> None:
        """`rates` and `add` of a gradient [m, D], which is overwritten."""
        self.add(gradient.mul_(self.rates(load).neg_()[:, None]))


class Means(Rows):
    """Vectors of words that are means over rows of a table: an update changes these rows."""

    def __init__(self, descent: Descent, encoder: SubwordTable, ids: Tensor) -> None:
        self.encoder = encoder
        super().__init__(descent, encoder.weight, ids)

    def read(self) -> Tensor:
        return self.encoder(self.ids)

    def update(self, gradient: Tensor, load: Tensor) -> None:
        self.descent.update(self.table, *self.encoder.spread(self.ids, gradient, load))
