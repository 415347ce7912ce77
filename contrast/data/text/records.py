"""Files whose text is in a column: JSON lines, tables of .csv and .tsv, and parquet."""

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import IO

from contrast.errors import InputError, named_errors, need

RECORDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")


def records(
    place: str, suffix: str, read: bytes, stream: IO[bytes], column: str | None, skipped: list[str] | None = None
) -> Iterator[str]:
    """The texts in the `column` of a file; rows without one are empty.

    place    what messages call the file; read: its first bytes, before what is left in the `stream`
    skipped  lines that are no JSON are passed over, and a note of them is added to it; None: they are errors

    Raises InputError if there is no such column, or none is given, with the columns that there are.
    """
    if suffix == ".parquet":
        yield from _parquet(place, stream, column)
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
        lines = chain((read + stream.readline()).splitlines(), stream)
        yield from _json_lines(place, lines, column, skipped)


def _json_lines(place: str, lines: Iterable[bytes], column: str | None, skipped: list[str] | None) -> Iterator[str]:
    is_first, wrong, first_wrong = True, 0, ""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            with named_errors((ValueError, RecursionError), f"line {number:,} of {place} is no JSON"):
                row = json.loads(line)
            if not isinstance(row, dict):
                raise InputError(f"line {number:,} of {place} is no object of JSON")
        except InputError as error:
            if skipped is None:
                raise
            wrong, first_wrong = wrong + 1, first_wrong or str(error)
            continue
        text = row[checked(place, column, list(row))] if column is None or is_first else row.get(column)
        is_first = False
        yield text if isinstance(text, str) else ""
    if skipped is not None and wrong:
        skipped.append(f"{first_wrong}; {wrong:,} such lines are left out")


def checked(place: str, column: str | None, columns: list[str]) -> str:
    """The column, if the file has it."""
    if column not in columns or column is None:
        which = "which of these has the text: data.column=NAME" if column is None else f"none of these is '{column}'"
        raise InputError(f"{place} has the columns {', '.join(columns) or '(none)'}; {which}")
    return column


def _parquet(place: str, stream: IO[bytes], column: str | None) -> Iterator[str]:
    need("pyarrow", "parquet", place)
    from pyarrow import ArrowException, parquet

    with named_errors((ArrowException, OSError), f"{place} cannot be read"):
        file = parquet.ParquetFile(stream)
        for batch in file.iter_batches(columns=[checked(place, column, file.schema_arrow.names)]):
            yield from (text if isinstance(text, str) else "" for text in batch.column(0).to_pylist())
