"""Images and captions, in memory or on disk."""
