"""The losses without the matrix of scores: sums over tiles of it, in memory linear in queries and candidates."""
