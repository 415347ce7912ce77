"""`contrast-evaluate` from a checkout: python scripts/evaluate.py [overrides]."""

from contrast.cli.commands import evaluate

if __name__ == "__main__":
    evaluate()
