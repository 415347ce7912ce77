"""Data sets as uint8 tensors, their cache on disk, and batches in an order that survives a resume."""
