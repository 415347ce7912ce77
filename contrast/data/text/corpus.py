"""Text as one array of word ids, for word embeddings and language models: counted, encoded and kept on disk.

V words, T places of the array.
"""

import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryFile

import torch
from torch import Tensor

from contrast.data.store import cache_folder, cached, digest, from_texts, to_texts
from contrast.data.text.encode import Encoder, encoded, write_ids
from contrast.data.text.phrases import Rules
from contrast.data.text.ranks import files_of_rank, of_all_ranks
from contrast.data.text.split import Splitter
from contrast.data.text.text_files import Text, Texts, content, text_files, with_stdin
from contrast.data.text.tokenizer import check_vocabulary, splitter
from contrast.data.text.vocabulary import Limits, chosen, mapped, with_phrases
from contrast.errors import InputError, named_errors

_FORMAT = 4  # part of every key: to change when the same files are to give other ids


@dataclass(frozen=True, eq=False)
class Corpus:
    """Encoded text. The tensors of ids are mapped from files: they take no memory until they are read.

    ids          [T] int32: the words of a line, or another `unit`, by their ids, then BORDER (-1), then the next line.
                 No line is empty. Two positions are in one line if (ids == BORDER).cumsum(0) is the same at both
    words        [V] by falling count, equal counts in alphabetical order; the id of a word is its index
    counts       [V] int64, of the words in the lines of `ids`
    total_words  words that were read for `ids`, including those that were dropped: "words per second" counts these
    lines        number of lines in `ids`
    unknown      the id of <unk>; None if other words were dropped
    held_out     int32, the lines that are held out and not in `ids`, in the same form; None: there are none
    parts        of a corpus that is a rank's own part of a text: how many places T each rank has; None: it is the whole
    """

    name: str
    ids: Tensor
    words: tuple[str, ...]
    counts: Tensor
    total_words: int
    lines: int
    unknown: int | None = None
    held_out: Tensor | None = None
    parts: tuple[int, ...] | None = None

    @cached_property
    def number(self) -> dict[str, int]:
        """The id of each word."""
        return {word: i for i, word in enumerate(self.words)}


def corpus(
    path: Text | Sequence[Text],
    min_count: int = 5,
    max_words: int | None = None,
    unknown: str = "drop",
    tokenizer: str | Callable[[str], list[str]] | None = None,
    held_out: float = 0.0,
    seed: int = 0,
    cache: str | Path | None = None,
    name: str | None = None,
    unit: str = "line",
    column: str | None = None,
    keep_case: bool = False,
    apostrophes: bool = False,
    on_error: str = "raise",
    max_distinct: int | None = None,
    workers: int | None = None,
    over_ranks: bool = False,
    words: Sequence[str] | None = None,
    phrases: int = 0,
    phrase_min_count: int = 5,
    phrase_threshold: float = 10.0,
) -> Corpus:
    """The text at `path` as ids of words.

    path       a file, plain or .xz, .gz, .bz2, .zst, .zip; a folder (every file below it); a glob; a list of these; or
               "-", the standard input
    min_count  words that occur less often are not in the vocabulary
    max_words  the most frequent that are in it; None: all
    unknown    "drop" leaves all other words out, so that their neighbours become neighbours (Mikolov et al. 2013,
               word2vec); "keep" makes them one more word, <unk>, with the count of them all
    tokenizer  None: words and marks in small letters (`split.Splitter`); "spaces": text that is tokenized already
               is split at spaces only; a tokenizer of transformers, by name or folder; or a function of a line that
               returns its words
    held_out   share of the units that go to `Corpus.held_out`, at equal distances from an offset that `seed` draws;
               they do not count for the vocabulary
    cache      folder of encoded text, by default $CONTRAST_CACHE or ~/.cache/contrast; files are known by content
    unit       what no context window crosses the end of: a "line"; a "paragraph", which ends at an empty line, for text
               whose lines are wrapped; or a "file", which a record of a file with columns is, too
    column     of such records: where the text is
    on_error   "skip" passes over files and lines that are no text, and a warning lists them; "raise" ends with an error
    max_distinct  distinct words that are counted at once; when there are more, those seen once so far are forgotten,
               the next time those seen twice, and so on (word2vec's ReduceVocab), with a warning. None: all
    workers    processes that read a large text; None: as many as there are processors
    over_ranks each of R ranks reads every R-th file only, and the counts of all are added: they have one vocabulary,
               and each has the `ids` of its own files
    words      a vocabulary in the order of its ids, that of a trained model, in place of what min_count and max_words
               choose; with unknown="keep" it has <unk>

    keep_case, apostrophes   as `split.Splitter`
    phrases, phrase_min_count, phrase_threshold   as `phrases.Rules`: pairs of words that become one word, as new_york

    Text is read once, block by block; memory grows with the number of distinct words only. All words as ids are in the
    cache, so that other limits of the vocabulary read no text again. Wrong UTF-8 is read as U+FFFD; a warning counts
    the lines, whether the text is read or in the cache.

    Raises InputError for a path that does not exist or cannot be read, text without words, a vocabulary without words,
    a held-out part without lines, a cache that cannot be written, and values out of range.
    """
    check_vocabulary(min_count, max_words)
    for value, known in (
        (unknown, ("drop", "keep")),
        (unit, ("line", "paragraph", "file")),
        (on_error, ("raise", "skip")),
    ):
        if value not in known:
            raise InputError(f"one of {', '.join(known)} is wanted, not '{value}'")
    if workers is not None and workers < 1:
        raise InputError(f"a text needs at least 1 process that reads it, not workers={workers}")
    if max_distinct is not None and max_distinct < 1:
        raise InputError(f"max_distinct must be at least 1, not {max_distinct}")
    if not 0 <= held_out < 1:
        raise InputError(f"the share of lines held out must be in [0, 1), not {held_out}")
    rules = Rules(phrases, phrase_min_count, phrase_threshold)
    rules.check()
    if phrases and over_ranks:
        raise InputError("with over_ranks=true each rank would find phrases of its own: join them beforehand")
    split, folder = splitter(tokenizer, keep_case, apostrophes), cache_folder(cache)
    given_words = None if words is None else tuple(words)
    limits = Limits(min_count, max_words, unknown, unit, held_out, seed if held_out else 0, given_words)
    with (
        with_stdin(path, folder) as given,
        named_errors((OSError,), f"cannot write the encoded text to {folder}, give another cache (+data.cache=FOLDER)"),
    ):
        files = text_files(given)
        alone = len(files) == 1
        if over_ranks:
            files = files_of_rank(files)
        texts = Texts(files, column, on_error == "skip", alone)
        source = digest(_FORMAT, split.key, content(files, folder), column, on_error, max_distinct)

        told: set[str] = set()

        def tell(entry: dict[str, Tensor], when: str = "when the text was first read: ") -> dict[str, Tensor]:
            for note in to_texts(entry["notes"]):
                if note not in told:
                    warnings.warn(f"{when}{note}", stacklevel=3)
                    told.add(note)
            return entry

        def words_of_text() -> dict[str, Tensor]:
            return tell(read(texts, split, folder, max_distinct, workers), "")

        def make() -> dict[str, Tensor]:
            with ThreadPoolExecutor(1) as pool:  # writes the words of the text while those of the vocabulary are chosen
                plain = tell(cached(folder, f"texts/{source}", words_of_text, pool))  # before an error about this text
                notes = {"notes": plain["notes"]}
                if not rules.passes:
                    return chosen(plain, limits, folder, files, over_ranks) | notes
                of_phrases = digest(source, limits.unit, limits.held_out, limits.seed, rules)
                text = cached(folder, f"phrases/{of_phrases}", lambda: with_phrases(plain, limits, rules, folder), pool)
                return chosen(text, limits._replace(unit="line"), folder, files) | notes

        # what the ranks find out together is in no cache, of which some may have a part and others none
        entry = make() if over_ranks else cached(folder, f"corpora/{digest(source, limits, rules)}", make)
    tell(entry)
    total_words, count, unknown_id = entry["numbers"].tolist()
    return Corpus(
        name or ("stdin" if given != path else _name(path, files)),
        entry["ids"],
        tuple(to_texts(entry["words"])),
        entry["counts"],
        total_words,
        count,
        None if unknown_id < 0 else unknown_id,
        entry["held_out"] if len(entry["held_out"]) else None,
        tuple(of_all_ranks(len(entry["ids"]))) if over_ranks else None,
    )


def read(
    texts: Texts, split: Splitter, folder: Path, max_distinct: int | None, workers: int | None
) -> dict[str, Tensor]:
    """All words of a text as ids, their counts, and notes of what was noticed on the way: an entry of the cache."""
    folder.mkdir(parents=True, exist_ok=True)
    size = sum(file.stat().st_size for file in texts.files)
    if (free := shutil.disk_usage(folder).free) < size:
        raise InputError(
            f"{folder} has room for {free / 1e6:,.1f} MB, and {size / 1e6:,.1f} MB of text take more than that when "
            "encoded: give another cache (+data.cache=FOLDER)"
        )
    with TemporaryFile(dir=folder) as file:
        encoder = Encoder(split, keeps=max_distinct is None)  # a forgotten word is a new one when it comes back
        parts = encoded(encoder, texts.blocks("reading words"), size, workers)
        words = write_ids(parts, file, max_distinct)
        ids = mapped(file)
    times, more = words.forgotten, len(texts.skipped) - 1
    notes = {
        f"passed over: {'; '.join(texts.skipped[:3])}{f' and {more - 2:,} more' if more > 2 else ''}": texts.skipped,
        f"{words.broken:,} of {words.lines:,} lines are not UTF-8: wrong bytes are read as U+FFFD": words.broken,
        f"there are more than {max_distinct or 0:,} distinct words: those seen {times} times or less so far were "
        f"forgotten on the way, so counts may be up to {times * (times + 1) // 2} too low": times,
    }
    told = [note for note, applies in notes.items() if applies]
    counts = torch.from_numpy(words.counts)
    return {"ids": ids, "words": from_texts(words.words), "counts": counts, "notes": from_texts(told)}


def _name(path: Text | Sequence[Text], files: Sequence[Path]) -> str:
    whole = Path(path).expanduser() if isinstance(path, str | os.PathLike) else files[0]
    return (whole.resolve() if whole.is_dir() else files[0]).name.split(".")[0]
