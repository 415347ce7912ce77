"""Losses: pure functions of scores, and the one place that decides how scores are computed."""
