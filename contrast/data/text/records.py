"""Files whose text is in a column: JSON lines, tables of .csv and .tsv, parquet and Arrow streams."""

import csv
import io
import json
import re
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import IO

from contrast.errors import InputError, named_errors, need

RECORDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")


def records(
    place: str, suffix: str, read: bytes, stream: IO[bytes], column: str | None, skipped: list[str] | None = None
) -> Iterator[str]:
    """The texts in the `column` of a file; rows without one are empty.

    place    what messages call the file; read: its first bytes, before what is left in the `stream`
    skipped  lines that are no JSON are passed over, and a note of them is added to it; None: they are errors

    Raises InputError if there is no such column, or none is given, with the columns that there are; and for a value
    that is neither a text, nor a list of words, nor absent.
    """
    if suffix in (".parquet", ".arrow"):
        yield from _arrow(place, suffix, stream, column)
    elif suffix in (".csv", ".tsv"):
        csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
        file = io.TextIOWrapper(stream, "utf-8-sig", "replace", newline="")
        with named_errors((csv.Error,), f"{place} cannot be read"):
            rows = csv.reader(file, "excel" if suffix == ".csv" else "excel-tab")
            header = next(rows, [])
            number = header.index(checked(place, column, header))
            yield from (row[number] if number < len(row) else "" for row in rows)
        file.detach()  # or it would close the file
    else:
        lines = chain((read + stream.readline()).removeprefix(b"\xef\xbb\xbf").splitlines(), stream)
        yield from _json_lines(place, lines, column, skipped)


def _json_lines(place: str, lines: Iterable[bytes], column: str | None, skipped: list[str] | None) -> Iterator[str]:
    is_first, wrong, first_wrong = True, 0, ""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if is_first and re.match(rb"\s*\[\s*(\{|$)", line):
            raise InputError(
                f"{place} is an array of JSON; a text needs an object on each line, as `jq -c '.[]'` gives"
            )
        try:
            with named_errors((ValueError, RecursionError), f"line {number:,} of {place} is no JSON"):
                row = json.loads(line)
            if not isinstance(row, dict):
                raise InputError(f"line {number:,} of {place} is no object of JSON")
            here = f"line {number:,} of {place}" if column is not None else place
            value = row[checked(here, column, list(row))] if column is None or is_first else row.get(column)
            text = text_of(value, here)
        except InputError as error:
            if skipped is None or column is None:
                raise
            wrong, first_wrong = wrong + 1, first_wrong or str(error)
            continue
        is_first = False
        yield text
    if skipped is not None and wrong:
        skipped.append(f"{first_wrong}; {wrong:,} such lines are left out")


def checked(place: str, column: str | None, columns: list[str]) -> str:
    """The column, if the file has it."""
    if column not in columns or column is None:
        which = "which of these has the text: data.column=NAME" if column is None else f"none of these is '{column}'"
        raise InputError(f"{place} has the columns {', '.join(columns) or '(none)'}; {which}")
    return column


def text_of(value: object, place: str) -> str:
    """A value as text: a string, or words in a list, with spaces between them; nothing, where there is none."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, list) and all(isinstance(word, str) for word in value):
        return " ".join(value)
    raise InputError(f"{place} has {json.dumps(value, default=str):.40} in place of a text or a list of words")


def _arrow(place: str, suffix: str, stream: IO[bytes], column: str | None) -> Iterator[str]:
    need("pyarrow", "parquet", place)
    from pyarrow import ArrowException, ipc, parquet

    with named_errors((ArrowException, OSError), f"{place} cannot be read"):
        if suffix == ".parquet":
            file = parquet.ParquetFile(stream)
            batches = file.iter_batches(columns=[checked(place, column, file.schema_arrow.names)])
        else:
            batches = ipc.open_stream(stream)
            checked(place, column, batches.schema.names)
        values = chain.from_iterable(batch.column(column).to_pylist() for batch in batches)
        for number, value in enumerate(values, start=1):
            yield text_of(value, f"row {number:,} of {place}")
