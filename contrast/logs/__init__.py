"""What a run writes besides its weights: metrics, W&B, curves, the record of its environment, checkpoints."""
