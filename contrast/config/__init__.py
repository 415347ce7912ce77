"""What a configuration may say: the facts that complete it, names of older runs, and what a stranger's may call."""
