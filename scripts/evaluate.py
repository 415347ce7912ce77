"""`contrast-evaluate` from a checkout: python scripts/evaluate.py [overrides]."""

from contrast.cli.evaluate import main

if __name__ == "__main__":
    main()
