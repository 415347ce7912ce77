"""Files that word vectors are measured by: pairs of words with human judgements, and analogy questions."""

import math
from collections.abc import Iterator
from pathlib import Path

from contrast.errors import InputError, named_errors


def read_pairs(file: str | Path) -> list[tuple[str, str, float]]:
    """Word pairs in small letters and their scores, a pair a line.

    Fields stand between tabs; in a line without a tab between commas, and without either between spaces. The first two
    are the words, and the score is the first number after them, so that SimLex-999's part of speech is passed over.
    Empty lines, lines that begin with #, and a first line without a number are passed over too. Raises InputError for a
    file that cannot be read, a line without two words and a number, and a file without pairs.
    """
    pairs: list[tuple[str, str, float]] = []
    header_read = False
    for place, line in _lines(file):
        if line.startswith("#"):
            continue
        mark = next((mark for mark in "\t," if mark in line), None)  # None: any white space
        fields = [field.strip() for field in line.split(mark)]
        score = next((value for field in fields[2:] if (value := _number(field)) is not None), None)
        if score is not None and fields[0] and fields[1]:
            pairs.append((fields[0].lower(), fields[1].lower(), score))
        elif pairs or header_read:
            raise InputError(f"line {place} of {file} has no two words and a score: {line[:80]}")
        header_read = True
    if not pairs:
        raise InputError(f"{file} has no pairs of words with a score")
    return pairs


def read_questions(file: str | Path) -> list[tuple[str, tuple[str, ...]]]:
    """(section, four words in small letters) of a file with ": section" lines and lines of four words.

    Questions above the first section are of "questions". Raises InputError for a file that cannot be read, a line
    that has not four words, and a file without questions.
    """
    questions, section = [], "questions"
    for place, line in _lines(file):
        if line.startswith(":"):
            section = line[1:].strip()
            continue
        words = line.lower().split()
        if len(words) != 4:
            raise InputError(f"line {place} of {file} has {len(words)} words, not 4: {line[:80]}")
        questions.append((section, tuple(words)))
    if not questions:
        raise InputError(f"{file} has no questions")
    return questions


def _lines(file: str | Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, counted from 1."""
    with named_errors((OSError, UnicodeDecodeError), f"{file} cannot be read"):
        text = Path(file).expanduser().read_text(encoding="utf-8-sig")
    return ((place, line.strip("\r\n ")) for place, line in enumerate(text.split("\n"), start=1) if line.strip())


def _number(field: str) -> float | None:
    try:
        value = float(field)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
