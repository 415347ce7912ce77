"""From texts to token ids: words counted on the captions themselves, or any tokenizer of transformers.

N texts, L tokens of each. Ids are int64, 0 is padding, on the right.
"""

from __future__ import annotations

import json
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from contrast.data.store import digest, named_errors
from contrast.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PADDING, UNKNOWN = 0, 1
_FIRST = 2  # id of the first word
_UNKNOWN_WORD = "<unk>"  # no token: it would be split in three

# `re` takes no mark (category M) for a part of a word, but vowel signs and accents are
_MARKS = "".join(c for c in map(chr, range(0x300, 0x1F000)) if unicodedata.category(c).startswith("M"))
# kana and Han, written without spaces: a token each
_ALONE = "\u3041-\u3096\u30a1-\u30fa\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003fffd"
_TOKEN = re.compile(rf"[{_ALONE}]|(?:[^\W{_ALONE}]|[{_MARKS}])+|[^\w\s]")
_ASCII = re.compile(r"\w+|[^\w\s]")  # the same for text without any of these, in a quarter of the time
_PLAIN = b"abcdefghijklmnopqrstuvwxyz0123456789_ \t\r"  # text of these is split at spaces, in a third of that time

Facts = Mapping[str, str | list[str]]


class Tokenizer(Protocol):
    """What the captions and the text encoder need of a tokenizer."""

    @property
    def size(self) -> int:
        """Ids are 0..size - 1."""

    def encode(self, texts: Sequence[str], length: int) -> Tensor:
        """Ids [N, L]; a text of more than L = length tokens is cut, and a warning says how many are."""

    def decode(self, ids: Tensor) -> list[str]:
        """The N texts of ids [N, L], as far as the tokens determine them."""

    def facts(self) -> Facts:
        """Plain values, for a checkpoint, from which `tokenizer_of` makes it again."""


def tokenizer_of(facts: Facts) -> Tokenizer:
    """The tokenizer whose `facts()` these are."""
    return WordTokenizer(facts["vocabulary"]) if "vocabulary" in facts else HFTokenizer(str(facts["name"]))


def tokens(text: str) -> list[str]:
    """Lower-cased words and punctuation marks in order, in any script; each Han character and kana is a word.

    Scripts without spaces other than these (Thai, Khmer) need an HFTokenizer.
    """
    text = text.lower()
    if not text.isascii():
        return _TOKEN.findall(unicodedata.normalize("NFC", text))
    return _ASCII.findall(text) if text.encode().translate(None, _PLAIN) else text.split()


def check_vocabulary(min_count: int, max_words: int | None) -> None:
    """InputError for limits of a vocabulary below 1."""
    if min_count < 1 or (max_words is not None and max_words < 1):
        raise InputError(f"min_count ({min_count}) and max_words ({max_words}) of a vocabulary must be 1 or more")


def frequent_words(counts: Mapping[str, int], min_count: int, most: int | None) -> dict[str, int]:
    """At most `most` of the words that occur at least min_count times, by falling count, then by letter.

    Raises InputError if there are none.
    """
    ranked = sorted((-count, word) for word, count in counts.items() if count >= min_count)[:most]
    if not ranked:
        count, word = max(((count, word) for word, count in counts.items()), default=(0, ""))
        raise InputError(
            f"none of {len(counts):,} words occurs {min_count} times: the vocabulary would be empty; "
            f"the most frequent, '{word}', occurs {count} times"
        )
    return {word: -count for count, word in ranked}


class WordTokenizer:
    """Ids of words: 0 padding, 1 any word that is not in the vocabulary, then the vocabulary in its order.

    vocabulary  distinct words as `tokens` gives them; the only state. InputError if a word occurs twice.
    """

    def __init__(self, vocabulary: Iterable[str]) -> None:
        self.vocabulary = tuple(vocabulary)
        self._number = {word: _FIRST + i for i, word in enumerate(self.vocabulary)}
        if len(self._number) < len(self.vocabulary):
            twice = next(word for word, count in Counter(self.vocabulary).items() if count > 1)
            raise InputError(f"a vocabulary of {len(self.vocabulary)} words holds '{twice}' more than once")

    @classmethod
    def fit(cls, texts: Iterable[str], min_count: int = 1, max_words: int | None = None) -> WordTokenizer:
        """The words that occur at least min_count times, at most max_words of them: by falling count, then by letter.

        Raises InputError if none is left.
        """
        check_vocabulary(min_count, max_words)
        return cls(frequent_words(Counter(word for text in texts for word in tokens(text)), min_count, max_words))

    @property
    def size(self) -> int:
        return _FIRST + len(self.vocabulary)

    def encode(self, texts: Sequence[str], length: int) -> Tensor:
        """Ids [N, L] with L = length; a warning says how many texts were cut. InputError for a length below 1."""
        _check_length(length)
        rows = [[self._number.get(word, UNKNOWN) for word in tokens(text)] for text in texts]
        return _padded(rows, length, sum(len(row) > length for row in rows))

    def decode(self, ids: Tensor) -> list[str]:
        """Words with a space between them, <unk> for an unknown one."""
        words = ("", _UNKNOWN_WORD, *self.vocabulary)
        return [" ".join(words[i] for i in row if i != PADDING) for row in ids.tolist()]

    def facts(self) -> Facts:
        return {"vocabulary": list(self.vocabulary)}


class HFTokenizer:
    """A `transformers.AutoTokenizer` by name or local folder, an extra: `pip install 'contrast[transformers]'`.

    Its ids are shifted up by one, so that 0 is padding and nothing else: many tokenizers have no padding token, or one
    that is the end of the text as well (CLIP, GPT-2), which no rule on their own ids could tell apart. `hf_text`
    shifts them back. Special tokens are kept when a text is cut.

    Raises InputError without transformers, or if there is no such tokenizer.
    """

    def __init__(self, name: str) -> None:
        try:
            from transformers import AutoTokenizer
        except ImportError as error:
            install = "transformers: pip install 'contrast[transformers]'"
            raise InputError(f"the tokenizer '{name}' needs {install}") from error
        self.name = name
        kinds = OSError, ValueError, KeyError, ImportError, TypeError
        with named_errors(kinds, f"transformers has no tokenizer '{name}'"):
            self._tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name)

    @property
    def size(self) -> int:
        return len(self._tokenizer) + 1

    def encode(self, texts: Sequence[str], length: int) -> Tensor:
        """Ids [N, L] with L = length; a warning says how many texts were cut. InputError for a length below 1."""
        _check_length(length)
        rows = self._tokenizer(list(texts), truncation=True, max_length=length)["input_ids"] if texts else []
        full = [text for text, row in zip(texts, rows, strict=True) if len(row) == length]
        whole = self._tokenizer(full, verbose=False)["input_ids"] if full else []
        return _padded([[i + 1 for i in row] for row in rows], length, sum(len(row) > length for row in whole))

    def decode(self, ids: Tensor) -> list[str]:
        """The texts without special tokens."""
        rows = [[i - 1 for i in row if i != PADDING] for row in ids.tolist()]
        return [self._tokenizer.decode(row, skip_special_tokens=True) for row in rows]

    def facts(self) -> Facts:
        return {"name": self.name}

    def split(self, text: str) -> list[str]:
        """The tokens of a text as words, without special tokens."""
        return self._tokenizer.tokenize(text, verbose=False)

    def digest(self) -> str:
        """Differs between tokenizers that give other tokens, whatever their names."""
        inner = getattr(self._tokenizer, "backend_tokenizer", None)
        rules = json.dumps(sorted(self._tokenizer.get_vocab().items())) if inner is None else inner.to_str()
        return digest(type(self._tokenizer).__name__, rules)


def _check_length(length: int) -> None:
    if length < 1:
        raise InputError(f"texts need a length of at least 1 token, not {length}")


def _padded(rows: list[list[int]], length: int, cut: int) -> Tensor:
    if cut:
        warnings.warn(f"{cut} of {len(rows)} texts have more than {length} tokens and are cut", stacklevel=3)
    flat = [(row + [PADDING] * (length - len(row)))[:length] for row in rows]
    return torch.tensor(flat, dtype=torch.int64).view(len(rows), length)
