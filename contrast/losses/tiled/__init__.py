"""Sums over scores without the whole matrix in memory: on a CPU, in Triton, across ranks."""
