"""Which tiles a product of queries and candidates is cut into, and the few pairs in each that do not count.

B queries, C candidates, M pairs.
"""

import torch
from torch import Tensor

from contrast.losses.tiled.pairs import Pairs

ROWS, COLUMNS = 768, 768  # of a tile on a CPU: 2.3 MiB in float32, of which two or three stay in the caches


class Plan:
    """Tiles of [rows, columns] over [B, C], and the pairs in each that are left out.

    exceptions     pairs that do not count, or None: there are none
    rows, columns  of a tile; None: ROWS, COLUMNS
    """

    def __init__(
        self,
        queries: int,
        candidates: int,
        exceptions: Pairs | None,
        rows: int | None = None,
        columns: int | None = None,
    ) -> None:
        self.queries, self.candidates = queries, candidates
        self.rows = max(1, min(rows or ROWS, queries))
        self.columns = max(1, min(columns or COLUMNS, candidates))
        self.across = -(-candidates // self.columns)  # tiles in a row of them
        self.row = self.column = torch.empty(0, dtype=torch.long)
        self.start = [0]
        if exceptions is not None and len(exceptions.row):
            tile = (exceptions.row // self.rows) * self.across + exceptions.column // self.columns
            order = tile.argsort()
            self.row, self.column = exceptions.row[order] % self.rows, exceptions.column[order] % self.columns
            down = -(-queries // self.rows)
            ends = torch.bincount(tile, minlength=down * self.across).cumsum(0)
            self.start += ends.tolist()

    def left_out(self, row: int, column: int) -> tuple[Tensor, Tensor] | None:
        """Rows and columns, within the tile that begins at (row, column), of the pairs that do not count."""
        if len(self.start) == 1:
            return None
        tile = (row // self.rows) * self.across + column // self.columns
        part = slice(self.start[tile], self.start[tile + 1])
        return None if part.start == part.stop else (self.row[part], self.column[part])
