"""Sums over scores that are never held as a whole: on a CPU, in Triton, across ranks."""
