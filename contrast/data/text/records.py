"""Files whose text is in a column: JSON lines, tables of .csv and .tsv, parquet and Arrow streams."""

import csv
import io
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from typing import IO

from contrast.errors import InputError, named_errors, need

BOM = b"\xef\xbb\xbf"  # a mark of UTF-8 before the first line
RECORDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")


def records(
    place: str, suffix: str, read: bytes, stream: IO[bytes], column: str | None, skipped: list[str] | None = None
) -> Iterator[str]:
    """The texts in the `column` of a file; rows without one are empty.

    place    what messages call the file; read: its first bytes, before what is left in the `stream`
    skipped  wrong lines and values are passed over, and a note of them is added to it; None: they are errors

    Raises InputError if there is no such column, or none is given, with the columns that there are; and for a value
    that is neither a text, nor a list of words, nor absent.
    """
    if suffix in (".parquet", ".arrow"):
        yield from _arrow(place, suffix, stream, column, skipped)
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
        lines = chain((read + stream.readline()).removeprefix(BOM).splitlines(), stream)
        yield from _json_lines(place, lines, column, skipped)


def _json_lines(place: str, lines: Iterable[bytes], column: str | None, skipped: list[str] | None) -> Iterator[str]:
    is_first = True

    def text(number: int, line: bytes) -> str:
        nonlocal is_first
        here = f"line {number:,} of {place}"
        with named_errors((ValueError, RecursionError), f"{here} is no JSON"):
            row = json.loads(line)
        if not isinstance(row, dict):
            raise InputError(f"{here} is no object of JSON")
        value = row[checked(here, column, list(row))] if column is None or is_first else row.get(column)
        is_first = False
        return text_of(value, here)

    numbered = ((number, line) for number, line in enumerate(lines, start=1) if line.strip())
    number, first = next(numbered, (0, b""))
    if re.match(rb"\s*\[\s*(\{|$)", first):
        raise InputError(f"{place} is an array of JSON; a text needs an object on each line, as `jq -c '.[]'` gives")
    rows = chain([(number, first)] if number else [], numbered)
    yield from _without_wrong((partial(text, *row) for row in rows), skipped)


def _without_wrong(texts: Iterable[Callable[[], str]], skipped: list[str] | None) -> Iterator[str]:
    """The texts; those that raise an InputError are left out, with one note of all of them, or None: raise it."""
    wrong, first_wrong = 0, ""
    for text in texts:
        try:
            yield text()
        except InputError as error:
            if skipped is None:
                raise
            wrong, first_wrong = wrong + 1, first_wrong or str(error)
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


def _arrow(place: str, suffix: str, stream: IO[bytes], column: str | None, skipped: list[str] | None) -> Iterator[str]:
    need("pyarrow", "parquet", place)
    from pyarrow import ArrowException, ipc, parquet

    with named_errors((ArrowException, OSError), f"{place} cannot be read"):
        if suffix == ".parquet":
            file = parquet.ParquetFile(stream)
            batches = file.iter_batches(columns=[checked(place, column, file.schema_arrow.names)])
        else:
            is_file = stream.read(6) == b"ARROW1"  # or a stream, as data sets of Hugging Face are saved
            stream.seek(0)
            batches = ipc.open_file(stream) if is_file else ipc.open_stream(stream)
            checked(place, column, batches.schema.names)
            batches = map(batches.get_batch, range(batches.num_record_batches)) if is_file else batches
        values = chain.from_iterable(batch.column(column).to_pylist() for batch in batches)
        texts = (partial(text_of, value, f"row {n:,} of {place}") for n, value in enumerate(values, start=1))
        yield from _without_wrong(texts, skipped)
