"""`contrast-export` from a checkout: python scripts/export.py [overrides]."""

from contrast.cli.commands import export

if __name__ == "__main__":
    export()
