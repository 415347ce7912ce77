"""`contrast-report` from a checkout: python scripts/report.py [overrides]."""

from contrast.cli.commands import report

if __name__ == "__main__":
    report()
