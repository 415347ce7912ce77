"""Tables on disk, .csv, .tsv, .txt or .parquet, with the names of their columns in the first row."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from contrast.errors import InputError, named_errors, one_line

DELIMITERS = {".csv": ",|", ".tsv": "\t", ".txt": "\t|,"}  # the first of these that the first row has
FLICKR = ["image", "caption"]  # the columns of a table without a header
SUFFIXES = (".parquet", *DELIMITERS)


def read_table(file: Path, columns: Sequence[str], what: str) -> list[list[str]]:
    """The values of each of the columns, without blanks around them; InputError if there is no row.

    Fields may be quoted as in RFC 4180, and are in UTF-8. `what` the table holds is for the errors.
    """
    check_table(file, what)
    suffix = file.suffix.lower()
    values = _parquet(file, columns) if suffix == ".parquet" else _delimited(file, columns)
    if not values[0]:
        raise InputError(f"{file} has no rows")
    return values


def column_names(file: Path, what: str) -> list[str]:
    """The names in the first row."""
    check_table(file, what)
    if file.suffix.lower() == ".parquet":
        return _parquet_names(file)
    with named_errors((csv.Error, UnicodeDecodeError, OSError), f"{file} cannot be read"), _opened(file) as opened:
        if _is_flickr(opened):
            return FLICKR
        return [name.strip() for name in next(csv.reader(opened, delimiter=_delimiter(opened, file)), [])]


def pick(header: Sequence[str], names: Sequence[str]) -> str:
    """The column that has one of the names, in any case of letters; the first name if there is none."""
    return next((each for each in header if each.lower() in names), names[0])


def check_table(file: Path, what: str) -> None:
    if not file.is_file():
        raise InputError(f"no such file of {what}: {file}")
    if file.suffix.lower() not in SUFFIXES:
        raise InputError(f"{what} are read from .csv, .tsv, .txt and .parquet, not from {file.name}")


def _opened(file: Path) -> TextIO:
    return open(file, encoding="utf-8-sig", newline="")


def _is_flickr(opened: TextIO) -> bool:
    """Whether the table has no header, and rows of the form `1.jpg#0<TAB>a caption`, as Flickr8k and Flickr30k have."""
    first = opened.readline()
    opened.seek(0)
    return re.match(r"[^\t]+\.\w+#\d+\t", first) is not None


def _delimiter(opened: TextIO, file: Path) -> str:
    first, known = opened.readline(), DELIMITERS[file.suffix.lower()]
    opened.seek(0)
    return next((each for each in known if each in first), known[0])


def _delimited(file: Path, columns: Sequence[str]) -> list[list[str]]:
    reader = None
    try:
        with _opened(file) as opened:
            if _is_flickr(opened):
                _check_columns(file, FLICKR, columns)
                pairs = [re.split(r"#\d+\t", line.strip(), maxsplit=1) for line in opened if line.strip()]
                if wrong := [number for number, pair in enumerate(pairs, start=1) if len(pair) != len(FLICKR)]:
                    raise InputError(f"row {wrong[0]} of {file} is not `image#number<TAB>caption`, as its first row")
                return [[pair[FLICKR.index(name)].strip() for pair in pairs] for name in columns]
            reader = csv.reader(opened, delimiter=_delimiter(opened, file), strict=True)
            header = [name.strip() for name in next(reader, [])]
            _check_columns(file, header, columns)
            rows = [row for row in reader if row]
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        line = "" if reader is None else f" line {reader.line_num}"
        raise InputError(f"{file}{line} cannot be read: {one_line(error)}") from error
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise InputError(f"row {number} of {file} has {len(row)} fields, the header {len(header)}")
    return [[row[place].strip() for row in rows] for place in map(header.index, columns)]


def _parquet_names(file: Path) -> list[str]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise InputError(f"{file.name} needs pyarrow: pip install 'contrast-learning[parquet]'") from error
    with named_errors((pyarrow.ArrowException, OSError), f"{file} cannot be read"):
        return list(parquet.read_schema(file).names)


def _parquet(file: Path, columns: Sequence[str]) -> list[list[str]]:
    _check_columns(file, _parquet_names(file), columns)
    import pyarrow
    from pyarrow import parquet

    with named_errors((pyarrow.ArrowException, OSError), f"{file} cannot be read"):
        table = parquet.read_table(file, columns=list(columns))
        texts = [table.column(name).cast(pyarrow.string()).to_pylist() for name in columns]
    return [[(text or "").strip() for text in column] for column in texts]


def _check_columns(file: Path, header: Sequence[str], columns: Sequence[str]) -> None:
    if missing := [name for name in columns if name not in header]:
        raise InputError(f"{file} has no column {', '.join(missing)}; its columns are {', '.join(header) or 'none'}")
    if twice := [name for name in columns if list(header).count(name) > 1]:
        raise InputError(f"{file} has more than one column {', '.join(twice)}")
