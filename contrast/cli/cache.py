"""contrast-cache: what the cache of decoded images, indices, features and text takes, and how to clear it."""

import argparse
from collections import defaultdict
from typing import NoReturn

from contrast.data.store import cache_folder, entries, limit_gb
from contrast.errors import InputError


class OneLine(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def main() -> None:
    parser = OneLine(
        prog="contrast-cache",
        description="Lists what the cache contains. It is in $CONTRAST_CACHE or ~/.cache/contrast, and takes at most "
        "$CONTRAST_CACHE_GB (50 by default). Whatever is cleared is made again when it is needed.",
    )
    parser.add_argument("--clear", nargs="*", metavar="KIND", help="remove everything, or such kinds as images")
    args = parser.parse_args()
    try:
        most = limit_gb()
    except InputError as error:
        parser.error(str(error))
    folder, kinds = cache_folder(), defaultdict[str, list[int]](list)
    for path, status in entries(folder).items():
        kind = path.relative_to(folder).parts[0]
        if args.clear is None or (args.clear and kind not in args.clear):
            kinds[kind].append(status.st_size)
        else:
            path.unlink(missing_ok=True)
            kinds[f"{kind} (removed)"].append(status.st_size)
    for kind, sizes in sorted(kinds.items()):
        print(f"{kind:24}{len(sizes):8,} files{sum(sizes) / 1e6:12,.1f} MB")
    left = sum(sum(sizes) for kind, sizes in kinds.items() if not kind.endswith("(removed)"))
    print(f"{folder}: {left / 1e9:.3g} of at most {most:g} GB")
