"""Triton kernels of the tiled losses."""
