"""Tables on disk, .csv, .tsv, .txt or .parquet, with the names of their columns in the first row."""

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from contrast.errors import InputError, named_errors, need, one_line

DELIMITERS = {".csv": ",|", ".tsv": "\t", ".txt": "\t|,"}  # the first of these that the first row has
FLICKR = ["image", "caption"]  # the columns of a table without a header
SUFFIXES = (".parquet", *DELIMITERS)


def column_names(file: Path, what: str) -> list[str]:
    """The names in the first row; InputError for a file that is no table. `what` the table holds is for the errors."""
    if not file.is_file():
        raise InputError(f"no such file of {what}: {file}")
    if file.suffix.lower() not in SUFFIXES:
        raise InputError(f"{what} are read from .csv, .tsv, .txt and .parquet, not from {file.name}")
    return _parquet_names(file) if file.suffix.lower() == ".parquet" else next(_rows(file))


def read_table(file: Path, columns: Sequence[str], what: str) -> list[list[str]]:
    """The values of each of the columns, without blanks around them; InputError if there is no row.

    Fields may be quoted as in RFC 4180, and are in UTF-8.
    """
    header = column_names(file, what)
    if missing := [name for name in columns if name not in header]:
        raise InputError(f"{file} has no column {', '.join(missing)}; its columns are {', '.join(header) or 'none'}")
    if twice := [name for name in columns if header.count(name) > 1]:
        raise InputError(f"{file} has more than one column {', '.join(twice)}")
    values = _parquet(file, columns) if file.suffix.lower() == ".parquet" else _delimited(file, columns)
    if not values[0]:
        raise InputError(f"{file} has no rows")
    return values


def pick(header: Sequence[str], names: Sequence[str]) -> str:
    """The column that has one of the names, in any case of letters; the first name if there is none."""
    return next((each for each in header if each.lower() in names), names[0])


def _rows(file: Path) -> Iterator[list[str]]:
    """The names of the columns of a table that is no parquet, and then its rows.

    A table with rows of the form `1.jpg#0<TAB>a caption`, as Flickr8k and Flickr30k have, has no row of names.
    """
    reader = None
    try:
        with open(file, encoding="utf-8-sig", newline="") as opened:
            first, known = opened.readline(), DELIMITERS[file.suffix.lower()]
            opened.seek(0)
            if re.match(r"[^\t]+\.\w+#\d+\t", first):
                yield FLICKR
                yield from (re.split(r"#\d+\t", line.strip(), maxsplit=1) for line in opened if line.strip())
                return
            delimiter = next((each for each in known if each in first), known[0])
            reader = csv.reader(opened, delimiter=delimiter, strict=True)
            yield [name.strip() for name in next(reader, [])]
            yield from (row for row in reader if row)
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        line = "" if reader is None else f" line {reader.line_num}"
        raise InputError(f"{file}{line} cannot be read: {one_line(error)}") from error


def _delimited(file: Path, columns: Sequence[str]) -> list[list[str]]:
    header, *rows = _rows(file)
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            has = f"has {len(row)} fields, the header {len(header)}"
            is_not = "is not `image#number<TAB>caption`, as its first row"
            raise InputError(f"row {number} of {file} {is_not if header is FLICKR else has}")
    return [[row[place].strip() for row in rows] for place in map(header.index, columns)]


def _parquet_names(file: Path) -> list[str]:
    need("pyarrow", "parquet", file.name)
    import pyarrow
    from pyarrow import parquet

    with named_errors((pyarrow.ArrowException, OSError), f"{file} cannot be read"):
        return list(parquet.read_schema(file).names)


def _parquet(file: Path, columns: Sequence[str]) -> list[list[str]]:
    import pyarrow
    from pyarrow import parquet

    with named_errors((pyarrow.ArrowException, OSError), f"{file} cannot be read"):
        table = parquet.read_table(file, columns=list(columns))
        texts = [table.column(name).cast(pyarrow.string()).to_pylist() for name in columns]
    return [[(text or "").strip() for text in column] for column in texts]
