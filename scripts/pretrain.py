"""`contrast-pretrain` from a checkout: python scripts/pretrain.py [overrides]."""

from contrast.cli.commands import pretrain

if __name__ == "__main__":
    pretrain()
