"""`contrast-words` from a checkout: python scripts/words.py [overrides]."""

from contrast.cli.commands import words

if __name__ == "__main__":
    words()
