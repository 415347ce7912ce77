"""Text as ids, and word vectors in files."""
