"""Training runs: from a configuration to a model, its trainer and its evaluation."""
