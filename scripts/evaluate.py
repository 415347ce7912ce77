"""`contrast-evaluate` from a checkout: python scripts/evaluate.py [overrides]."""

from contrast.evaluate import main

if __name__ == "__main__":
    main()
