"""`contrast-embed` from a checkout: python scripts/embed.py [overrides]."""

from contrast.cli.commands import embed

if __name__ == "__main__":
    embed()
