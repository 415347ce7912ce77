"""`contrast-pretrain` from a checkout: python scripts/pretrain.py [overrides]."""

from contrast.cli.pretrain import main

if __name__ == "__main__":
    main()
