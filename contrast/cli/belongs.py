"""Which command an experiment or a data set belongs to."""

import sys

from contrast.run.folder import conf_folder

TEXT = {"experiment": ("language_model", "skipgram", "skipgram_docs"), "data": ("corpus", "docstrings")}


def refuse_other(command: str) -> None:
    """Ends the program with one line and status 2 if an argument names an experiment or data of the other command."""
    for word in sys.argv[1:]:
        group, _, options = word.partition("=")
        for option in options.split(",") if group in TEXT else ():
            other = "contrast-words" if option in TEXT[group] else "contrast-pretrain"
            if other != command and (conf_folder() / group / f"{option}.yaml").is_file():
                kind = "text" if other == "contrast-words" else "images"
                print(f"error: {group}={option} is of {kind}: {other} {group}={option}", file=sys.stderr)
                sys.exit(2)
