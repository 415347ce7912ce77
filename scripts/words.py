"""`contrast-words` from a checkout: python scripts/words.py [overrides]."""

from contrast.cli.words import main

if __name__ == "__main__":
    main()
