"""Callbacks observe training; none of them changes the loss."""
