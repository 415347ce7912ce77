"""How text becomes words: by one regular expression for any script, or by a function of lines."""

import functools
import re
import unicodedata
from collections.abc import Callable, Iterable
from itertools import zip_longest

from contrast.errors import InputError

END = "\x1c"  # stands for the end of a text among the words of many, as a line feed does for that of a line
# no part of a word: soft hyphens, marks of direction, spaces without width, variation selectors
_INVISIBLE = "\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufe00-\ufe0f\ufeff"
_JOINERS = "\u200c\u200d"  # invisible, but within a word of Persian or Hindi it is spelt with them
_BREAKS = "\u200b\ufeff"  # invisible, and a word ends there
# `re` takes no mark (category M) for a part of a word, but vowel signs and accents are
_MARKS = "".join(c for c in map(chr, range(0x300, 0x1F000)) if unicodedata.category(c).startswith("M"))
# kana and Han, written without spaces: a token each
_ALONE = "\u3041-\u3096\u30a1-\u30fa\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003fffd"


def _ranges(characters: Iterable[int]) -> str:
    """Those of the characters that are parts of a word, as the ranges of a class of `re`."""
    part = rf"(?:[^\W{_ALONE}]|[{_MARKS}{_JOINERS}{_INVISIBLE}])(?<![{_BREAKS}])"
    runs = re.findall(f"(?:{part})+", "".join(map(chr, characters)))
    return "".join(f"{run[0]}-{run[-1]}" for run in runs)


@functools.cache
def _letters() -> tuple[str, str]:
    """Classes of the letters below and above U+10000.

    One class of 65,536 bits is many times as fast as a choice between classes; above, ranges are tried one by one.
    """
    return _ranges([*range(0xD800), *range(0xE000, 0x10000)]), _ranges(range(0x10000, 0x32000))


class Splitter:
    """How text becomes words: lower-cased words and punctuation marks, in any script; each Han character is a word.

    Scripts without spaces other than these (Thai, Khmer) need a tokenizer of their own. Characters that nobody sees are
    no words and no parts of words.

    keep_case    words keep their capital letters
    apostrophes  an apostrophe between two letters is a part of the word: don't is one word, not three
    """

    has_threads = False  # so that it needs no other processes

    def __init__(self, keep_case: bool = False, apostrophes: bool = False) -> None:
        self.keep_case, self.key = keep_case, f"tokens {keep_case} {apostrophes}"
        common, rare = _letters()
        self._common, self._all = (
            re.compile(rf"{word}(?:['\u2019]{word})*|{rest}" if apostrophes else rf"{word}|{rest}")
            for word in (f"[{common}]+", f"(?:[{common}]+|(?=[\U00010000-\U0010ffff])[{rare}])+")
            for rest in (rf"[{_ALONE}]|[\n{END}]|[^\w\s{_BREAKS}]",)
        )

    def split(self, text: str) -> list[str]:
        """The words of a text, and the line feeds and ENDs between them, before `finish`."""
        if not unicodedata.is_normalized("NFC", text):
            text = unicodedata.normalize("NFC", text)
        is_common = len(text.encode("utf-16-le", "surrogatepass")) == 2 * len(text)
        return (self._common if is_common else self._all).findall(text)

    def finish(self, word: str) -> str:
        """A word as it is counted; "" if it is none. It is separate because few words of a text are different."""
        word = word if self.keep_case else word.lower()
        if word.isascii():
            return word
        word = re.sub(f"[{_INVISIBLE}]", "", unicodedata.normalize("NFC", word)).strip(_JOINERS)
        return word.replace("\u2019", "'") if len(word) > 1 else word


class ByLine(Splitter):
    """How a function of a list of lines splits them into words.

    key  differs between functions that give other words
    """

    def __init__(self, lines: Callable[[list[str]], Iterable[list[str]]], key: str, has_threads: bool = False) -> None:
        self.lines, self.key, self.has_threads = lines, key, has_threads

    def split(self, text: str) -> list[str]:
        parts = re.split(f"([\n{END}])", text)
        words: list[str] = []
        for line, end in zip_longest(self.lines(parts[::2]), parts[1::2]):
            words += line if end is None else [*line, end]
        return words

    def finish(self, word: str) -> str:
        if not isinstance(word, str):
            raise InputError(f"the tokenizer gives {word!r}, which is no string")
        if word.split() != [word]:
            raise InputError(
                f"the tokenizer gives the word {word!r}: files of word vectors hold no empty word, none with a space"
            )
        return word


_standard = functools.cache(Splitter)


def tokens(text: str) -> list[str]:
    """The words of a text as `Splitter` gives them."""
    words = _standard()
    return [word for each in words.split(text) if each not in ("\n", END) and (word := words.finish(each))]
