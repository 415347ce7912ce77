"""Callbacks look at training; none of them shapes the loss."""
