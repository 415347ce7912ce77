"""From texts to token ids: words counted on the captions themselves, or any tokenizer of transformers.

N texts, L tokens of each. Ids are int64, 0 is padding, on the right.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from contrast.data.store import digest
from contrast.data.text.described import described
from contrast.data.text.split import ByLine, Splitter, tokens
from contrast.errors import InputError, named_errors, need
from contrast.network import look_for_the_hub

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PADDING, UNKNOWN = 0, 1
_FIRST = 2  # id of the first word
_UNKNOWN_WORD = "<unk>"  # no token: it would be split in three

Facts = Mapping[str, str | list[str]]


@runtime_checkable  # so that a configuration's value can be compared with it
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
    return WordTokenizer(facts["vocabulary"]) if "vocabulary" in facts else named_tokenizer(str(facts["name"]))


def named_tokenizer(name: str) -> Tokenizer:
    """open_clip:NAME of a model of open_clip; else a tokenizer of transformers by name or folder."""
    kind, _, model = name.partition(":")
    return OpenClipTokenizer(model) if kind == "open_clip" else HFTokenizer(name)


def tokenizer_for(
    texts: Sequence[str], tokenizer: Tokenizer | str | None, min_count: int, max_words: int | None
) -> Tokenizer:
    """`tokenizer`, or that of its name; None: the words of the texts, as `WordTokenizer.fit` chooses them."""
    if tokenizer is None:
        return WordTokenizer.fit(texts, min_count, max_words)
    return named_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer


def splitter(
    tokenizer: str | Callable[[str], list[str]] | None, keep_case: bool = False, apostrophes: bool = False
) -> Splitter:
    """The splitter of a corpus: `tokenizer` as `corpus` describes it. Raises InputError for options of another."""
    if tokenizer is None:
        return Splitter(keep_case, apostrophes)
    if keep_case or apostrophes:
        raise InputError(f"keep_case and apostrophes are options of tokenizer=null, not of {tokenizer}")
    if tokenizer == "spaces":
        return ByLine(lambda lines: map(str.split, lines), "spaces")
    if isinstance(tokenizer, str):
        pieces = HFTokenizer(tokenizer)
        return ByLine(pieces.pieces, pieces.digest(), has_threads=True)
    function = tokenizer

    def words(line: str) -> list[str]:
        found = function(line)
        if not isinstance(found, Iterable):
            raise InputError(f"the tokenizer gives {found!r} for a line, and not its words")
        return list(found)

    return ByLine(lambda lines: [words(line) for line in lines], digest(described(function)))


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
    """A `transformers.AutoTokenizer` by name or local folder: `pip install 'contrast-learning[transformers]'`.

    Its ids are shifted up by one, so that 0 is padding and nothing else: many tokenizers have no padding token, or one
    that is the end of the text as well (CLIP, GPT-2), which no rule on their own ids could tell apart. `hf_text`
    shifts them back. Special tokens are kept when a text is cut.

    Raises InputError without transformers, or if there is no such tokenizer.
    """

    def __init__(self, name: str) -> None:
        need("transformers", "transformers", f"the tokenizer '{name}'")
        from transformers import AutoTokenizer

        self.name = name
        if not Path(name).exists():
            look_for_the_hub()
        kinds = OSError, ValueError, KeyError, ImportError, TypeError
        with named_errors(kinds, f"transformers has no tokenizer '{name}'"):
            self._tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, trust_remote_code=False)

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
        return [str(self._tokenizer.decode(row, skip_special_tokens=True)) for row in rows]

    def facts(self) -> Facts:
        return {"name": self.name}

    def _backend(self) -> Any:
        """The tokenizer of `tokenizers`, which then neither cuts nor pads, as its file may say; None: there is none."""
        inner = getattr(self._tokenizer, "backend_tokenizer", None)
        if inner is not None:
            inner.no_truncation()
            inner.no_padding()
        return inner

    def pieces(self, texts: list[str]) -> list[list[str]]:
        """The tokens of each text as words, without special tokens."""
        inner = self._backend()
        if inner is None:
            return [self._tokenizer.tokenize(text, verbose=False) for text in texts]
        return [each.tokens for each in inner.encode_batch(texts, add_special_tokens=False)]

    def digest(self) -> str:
        """Differs between tokenizers that give other tokens, whatever their names."""
        inner = self._backend()
        rules = json.dumps(sorted(self._tokenizer.get_vocab().items())) if inner is None else inner.to_str()
        return digest(type(self._tokenizer).__name__, rules)


class OpenClipTokenizer:
    """The tokenizer of a model of open_clip by name: `pip install 'contrast-learning[open-clip]'`.

    Ids are open_clip's own, for `open_clip_text`. Most of its tokenizers pad with 0 behind the end of a text.
    Raises InputError without open_clip, or if it has no such model.
    """

    def __init__(self, name: str) -> None:
        need("open_clip", "open-clip", f"open_clip:{name}")
        import open_clip

        if name not in open_clip.list_models():
            raise InputError(f"open_clip has no model '{name}': names are like ViT-B-32")
        self.name = name
        with named_errors((Exception,), f"open_clip has no tokenizer for '{name}'"):
            self._tokenizer = open_clip.get_tokenizer(name)

    @property
    def size(self) -> int:
        return getattr(self._tokenizer, "vocab_size", None) or len(self._tokenizer.tokenizer)

    def encode(self, texts: Sequence[str], length: int) -> Tensor:
        """Ids [N, L] with L = length; a warning says how many texts were cut. InputError for a length below 1."""
        _check_length(length)
        if not texts:
            return torch.empty(0, length, dtype=torch.int64)
        ids = self._tokenizer(list(texts), context_length=length)
        longer = self._tokenizer(list(texts), context_length=length + 1)
        _warn_of_cut(int((longer[:, :length] != ids).any(dim=1).sum()), len(ids), length)
        return ids

    def decode(self, ids: Tensor) -> list[str]:
        """The texts, with the marks of their start and end."""
        return [self._tokenizer.decode([i for i in row if i != PADDING]) for row in ids.tolist()]

    def facts(self) -> Facts:
        return {"name": f"open_clip:{self.name}"}


def _check_length(length: int) -> None:
    if length < 1:
        raise InputError(f"texts need a length of at least 1 token, not {length}")


def _warn_of_cut(cut: int, texts: int, length: int) -> None:
    if cut:
        warnings.warn(f"{cut} of {texts} texts have more than {length} tokens and are cut", stacklevel=4)


def _padded(rows: list[list[int]], length: int, cut: int) -> Tensor:
    _warn_of_cut(cut, len(rows), length)
    flat = [(row + [PADDING] * (length - len(row)))[:length] for row in rows]
    return torch.tensor(flat, dtype=torch.int64).view(len(rows), length)
