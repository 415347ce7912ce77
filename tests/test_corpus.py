"""Text as ids of words against its definition in loops; files, blocks, wrong bytes, the cache."""

import bz2
import gzip
import itertools
import lzma
import math
import multiprocessing
import os
import random
import sys
import warnings
from collections import Counter
from functools import partialmethod
from io import BytesIO
from pathlib import Path

import pytest
import torch

import contrast.data.text.corpus
import contrast.data.text.phrases
import contrast.data.text.text_files
from contrast.data.text.corpus import Corpus, corpus
from contrast.data.text.encode import Encoder, write_ids
from contrast.data.text.split import Splitter, tokens
from contrast.data.text.text_files import Texts, text_files
from contrast.data.text.vocabulary import BORDER
from contrast.errors import InputError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONTRAST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The passes over text so far."""
    seen: list[str] = []
    real = Texts.blocks

    def spy(self, desc, *args, **options):
        seen.append(desc)
        return real(self, desc, *args, **options)

    monkeypatch.setattr(Texts, "blocks", spy)
    return seen


def read_in_blocks(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Text is read so many bytes at a time."""
    monkeypatch.setattr(Texts, "blocks", partialmethod(Texts.blocks, size=size))


def written(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def zipf(lines: int, seed: int = 0) -> list[str]:
    """Lines of 0 to 12 of 40 words, some of them with marks, capitals or from other scripts."""
    draw = random.Random(seed)
    words = [f"w{i}" for i in range(30)] + ["Éa", "don't", "猫犬", "x,", "UP", "naïve", "日", "-", "é", "ж"]
    weights = [1 / rank for rank in range(1, 41)]
    return [" ".join(draw.choices(words, weights, k=draw.randrange(13))) for _ in range(lines)]


def naive(
    lines: list[str],
    min_count: int,
    max_words: int | None = None,
    keep: bool = False,
    held_out: float = 0.0,
    seed: int = 0,
) -> tuple[list[str], list[int], list[list[int]], list[list[int]], int]:
    """words, counts, lines of ids, lines of ids held out, words read."""
    texts = [words for line in lines if (words := tokens(line))]
    phase = random.Random(seed).random()
    held = [math.floor((i + 1) * held_out + phase) > math.floor(i * held_out + phase) for i in range(len(texts))]
    counts = Counter(word for words, aside in zip(texts, held, strict=True) if not aside for word in words)
    total = sum(counts.values())
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    words = [word for word in ranked if counts[word] >= min_count][:max_words]
    if keep:
        counts["<unk>"] = total - sum(counts[word] for word in words)
        words = sorted([*words, "<unk>"], key=lambda word: (-counts[word], word))
    place = {word: i for i, word in enumerate(words)}
    parts: tuple[list[list[int]], list[list[int]]] = ([], [])
    for text, aside in zip(texts, held, strict=True):
        ids = [place[word] if word in place else place["<unk>"] for word in text if keep or word in place]
        if ids:
            parts[aside].append(ids)
    return words, [counts[word] for word in words], *parts, total


def lines_of(ids: torch.Tensor | None) -> list[list[int]]:
    found: list[list[int]] = [[]]
    for i in [] if ids is None else ids.tolist():
        if i == BORDER:
            found.append([])
        else:
            found[-1].append(i)
    assert found.pop() == []  # the last line has its border, too
    assert [] not in found
    return found


def assert_is(found: Corpus, expected: tuple) -> None:
    words, counts, lines, held, total = expected
    assert list(found.words) == words
    assert found.counts.tolist() == counts
    assert found.counts.dtype == torch.int64
    assert found.ids.dtype == torch.int32
    assert lines_of(found.ids) == lines
    assert lines_of(found.held_out) == held
    assert (found.lines, found.total_words) == (len(lines), total)
    assert found.number == {word: i for i, word in enumerate(words)}


@pytest.mark.parametrize("size", [1, 7, 64, 1 << 20])
@pytest.mark.parametrize(
    "settings",
    [
        {"min_count": 1},
        {"min_count": 4},
        {"min_count": 2, "max_words": 5},
        {"min_count": 4, "keep": True},
        {"min_count": 1, "max_words": 3, "keep": True, "held_out": 0.25, "seed": 3},
        {"min_count": 3, "held_out": 0.1},
        {"min_count": 2, "held_out": 0.7, "seed": 1},
    ],
)
def test_ids_are_their_definition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, settings: dict):
    read_in_blocks(monkeypatch, size)
    lines = zipf(150)
    options = {key: value for key, value in settings.items() if key != "keep"}
    kept = "keep" if settings.get("keep") else "drop"
    found = corpus(written(tmp_path / "some.text.txt", *lines), unknown=kept, **options)
    assert_is(found, naive(lines, **settings))
    assert found.counts.tolist() == torch.bincount(found.ids[found.ids >= 0]).tolist()
    assert found.unknown == (found.number["<unk>"] if kept == "keep" else None)
    assert (found.held_out is None) == (not settings.get("held_out"))
    assert found.name == "some"


def test_borders_tell_which_pairs_are_of_one_line(tmp_path: Path):
    found = corpus(written(tmp_path / "a.txt", "a b a", "", "c rare", "b a"), min_count=1)
    line = (found.ids == BORDER).cumsum(0)
    pairs = [
        (found.words[found.ids[i]], found.words[found.ids[j]])
        for i in range(len(line))
        for j in range(i + 1, len(line))
        if line[i] == line[j] and found.ids[i] != BORDER and found.ids[j] != BORDER
    ]
    assert pairs == [("a", "b"), ("a", "a"), ("b", "a"), ("c", "rare"), ("b", "a")]


def test_every_tenth_line_is_held_out(tmp_path: Path):
    path = written(tmp_path / "a.txt", *(f"w{i} all\n" for i in range(200)))  # an empty line after each
    places = []
    for seed in range(20):
        found = corpus(path, min_count=1, unknown="keep", held_out=0.1, seed=seed)
        assert found.held_out is not None
        assert len(lines_of(found.held_out)) == 20
        missing = [i for i in range(200) if f"w{i}" not in found.number]
        assert all(later - earlier == 10 for earlier, later in itertools.pairwise(missing))
        places.append(missing[0])
    assert len(set(places)) > 5


# --- files


@pytest.mark.parametrize(("suffix", "pack"), [(".xz", lzma.compress), (".gz", gzip.compress), (".bz2", bz2.compress)])
def test_compressed_files(tmp_path: Path, suffix: str, pack):
    lines = zipf(60)
    plain = written(tmp_path / "a.txt", *lines)
    packed = tmp_path / f"b.txt{suffix}"
    packed.write_bytes(pack(plain.read_bytes()))
    assert torch.equal(corpus(packed, 2).ids, corpus(plain, 2).ids)
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"b\.txt.* cannot be read"):
        corpus(packed, 2)
    packed.write_bytes(b"not compressed")
    with pytest.raises(InputError, match=r"b\.txt.* cannot be read"):
        corpus(packed, 2)


def test_many_files_are_read_in_order_and_not_joined(tmp_path: Path):
    root = tmp_path / "texts"
    for name, text in (("b.txt", "b1 b2"), ("a/z.txt", "z1 z2"), ("c", "c1"), (".hidden", "no"), (".git/x.txt", "no")):
        written(root / name).write_text(text)  # without a line feed at the end
    words = {}
    for key, path in {
        "folder": root,
        "glob": f"{root}/*.txt",
        "deep": str(root / "**/*.txt"),
        "list": [root / "c", str(root / "b.txt"), root / "a"],
    }.items():
        found = corpus(path, min_count=1)
        words[key] = [[found.words[i] for i in line] for line in lines_of(found.ids)]
    assert words == {
        "folder": [["z1", "z2"], ["b1", "b2"], ["c1"]],
        "glob": [["b1", "b2"]],
        "deep": [["z1", "z2"], ["b1", "b2"]],
        "list": [["c1"], ["b1", "b2"], ["z1", "z2"]],
    }
    assert corpus(root, min_count=1).name == "texts"


def test_line_ends_and_byte_order_mark(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone two\r\n\r\n  \t\n\nthree\tone\n\n")
    found = corpus(path, min_count=1)
    assert [[found.words[i] for i in line] for line in lines_of(found.ids)] == [["one", "two"], ["three", "one"]]


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_a_line_longer_than_a_block_keeps_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int):
    read_in_blocks(monkeypatch, size)
    words = [f"é{i}" * (1 + i % 4) for i in range(100)]
    found = corpus(written(tmp_path / "a.txt", " ".join(words), "next"), min_count=1)
    assert [[found.words[i] for i in line] for line in lines_of(found.ids)] == [words, ["next"]]
    assert all(len(block.data) < 200 for block in Texts([tmp_path / "a.txt"]).blocks("", size=5))


def test_text_without_spaces_is_cut_between_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(contrast.data.text.text_files, "_MAX_WORD", 20)
    read_in_blocks(monkeypatch, 4)
    text = "猫犬鳥" * 30
    path = written(tmp_path / "a.txt", text)
    found = corpus(path, min_count=1)
    assert ["".join(found.words[i] for i in line) for line in lines_of(found.ids)] == [text]
    path.write_bytes(b"\x80" * 100)
    with pytest.warns(UserWarning, match="not UTF-8"):
        assert corpus(path, min_count=1).total_words > 0


@pytest.mark.parametrize("size", [3, 1000])
def test_wrong_bytes_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int):
    read_in_blocks(monkeypatch, size)
    path = tmp_path / "a.txt"
    good = "gr\u00fcn"
    path.write_bytes(f"{good} a \ufffd\n".encode() + good.encode("latin-1") + b" a\n" + b"b\n" * 1100 + b"\xff a\n")
    with pytest.warns(UserWarning, match="2 of 1,103 lines are not UTF-8: wrong bytes") as caught:
        found = corpus(path, min_count=1)
    assert len(caught) == 1
    assert {"grün", "gr", "\ufffd", "n", "a", "b"} == set(found.words)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_a_line_of_many_wrong_bytes_counts_once(tmp_path: Path, size: int):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xff a b \xff c\nd e\nf \xff g \xff\n\xff\n\nh \xff i")
    parts = map(Encoder(Splitter()), Texts([path]).blocks("", size))
    assert write_ids(parts, BytesIO(), None).broken == 4


def test_no_text(tmp_path: Path):
    path = tmp_path / "a.txt"
    with pytest.raises(InputError, match=r"a\.txt does not exist"):
        corpus(path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match=r"pipe is no regular file: data\.path=-"):
        corpus(tmp_path / "pipe")
    with pytest.raises(InputError, match=r"no file matches .*/\*\.txt"):
        corpus(tmp_path / "*.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty has no files"):
        corpus(tmp_path / "empty")
    with pytest.raises(InputError, match="list of paths, is empty"):
        text_files([])
    path.write_text(" \n\n")
    with pytest.raises(InputError, match=r"a\.txt: no words$"):
        corpus(path)
    path.write_text("a b\n")
    with pytest.raises(InputError, match="no words beside the lines held out"):
        corpus(path, held_out=0.9, min_count=1)
    path.write_bytes("a b\n".encode("utf-16"))
    with pytest.raises(InputError, match=r"a\.txt holds NUL bytes"):
        corpus(path)


def test_values_out_of_range(tmp_path: Path):
    path = written(tmp_path / "a.txt", "b a a", "a c")
    with pytest.raises(InputError, match=r"none of 3 words occurs 5 times: .* most frequent, 'a', occurs 3 times"):
        corpus(path)
    with pytest.raises(InputError, match=r"min_count \(0\)"):
        corpus(path, min_count=0)
    with pytest.raises(InputError, match=r"max_words \(0\)"):
        corpus(path, max_words=0)
    with pytest.raises(InputError, match="not 'ignore'"):
        corpus(path, unknown="ignore")
    for share in (1.0, -0.1, math.nan):
        with pytest.raises(InputError, match="held out must be in"):
            corpus(path, held_out=share)
    with pytest.raises(InputError, match=r"held_out=0.001 beside 2 lines holds out no word"):
        corpus(path, min_count=1, held_out=0.001)


# --- phrases


def joined_in_loops(texts: list[list[str]], held: list[bool], passes: int, least: int, threshold: float):
    """Lines of words with their phrases joined, and the phrases of the last pass."""
    found: set[str] = set()
    for _ in range(passes):
        words, pairs = Counter(), Counter()
        for text, aside in zip(texts, held, strict=True):
            if not aside:
                words.update(text)
                pairs.update((a, b) for a, b in itertools.pairwise(text) if a[0].isalnum() and b[0].isalnum())
        number = len(words) + len(pairs)
        score = {(a, b): (n - least) / (words[a] * words[b]) * number for (a, b), n in pairs.items()}
        found = {f"{a}_{b}" for (a, b), value in score.items() if value > threshold}
        joined = []
        for text in texts:
            line, rest = [], list(text)
            while rest:
                pair = "_".join(rest[:2])
                line.append(pair if pair in found else rest[0])
                rest = rest[2 if pair in found else 1 :]
            joined.append(line)
        texts = joined
    return texts, found


@pytest.mark.parametrize("size", [13, 1 << 24])
@pytest.mark.parametrize(("passes", "held_out"), [(1, 0.0), (2, 0.0), (2, 0.3)])
def test_phrases_are_their_definition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, passes: int, held_out: float
):
    monkeypatch.setattr(contrast.data.text.phrases, "_AT_ONCE", size)
    draw = random.Random(0)
    fixed = ["new york", "new york times", "los angeles .", "b_c", "b c", "x x x x x"]  # pairs that overlap, too
    lines = [f"{draw.choice(fixed)} {line} {draw.choice(fixed)}" for line in zipf(200)]
    texts = [tokens(line) for line in lines]
    phase = random.Random(0).random()
    held = [math.floor((i + 1) * held_out + phase) > math.floor(i * held_out + phase) for i in range(len(texts))]
    texts, phrases = joined_in_loops(texts, held, passes, 3, 2.0)
    assert phrases
    path = written(tmp_path / "a.txt", *lines)
    found = corpus(path, 1, held_out=held_out, phrases=passes, phrase_min_count=3, phrase_threshold=2.0)
    counts = Counter(word for text, aside in zip(texts, held, strict=True) if not aside for word in text)
    assert dict(zip(found.words, found.counts.tolist(), strict=True)) == counts
    for ids, aside in ((found.ids, False), (found.held_out, True)):
        expected = [text for text, is_held in zip(texts, held, strict=True) if is_held == aside]
        expected = [[word for word in text if word in counts] for text in expected]
        assert [[found.words[i] for i in line] for line in lines_of(ids)] == [text for text in expected if text]


def test_a_phrase_ends_with_its_unit(tmp_path: Path):
    path = written(tmp_path / "a.txt", *["new", "york", ""] * 40)
    settings = {"phrases": 1, "phrase_min_count": 2, "phrase_threshold": 0.05}
    assert corpus(path, **settings).words == ("new", "york")
    assert corpus(path, unit="paragraph", **settings).words == ("new_york",)
    with pytest.raises(InputError, match=r"phrase_threshold \(0\) more than 0"):
        corpus(path, phrases=1, phrase_threshold=0.0)


def test_phrases_are_those_of_gensim(tmp_path: Path):
    models = pytest.importorskip("gensim.models")
    text = [line.split() for line in zipf(300)]
    words = [[word for word in line if tokens(word)[0].isalnum()] for line in text]
    path = written(tmp_path / "a.txt", *(" ".join(line) for line in words))
    theirs = models.Phrases(words, min_count=2, threshold=1.5)
    expected = Counter(word for line in words for word in theirs[line])
    found = corpus(path, 1, tokenizer="spaces", phrases=1, phrase_min_count=2, phrase_threshold=1.5)
    assert dict(zip(found.words, found.counts.tolist(), strict=True)) == expected
    assert any("_" in word for word in expected)


# --- words


def test_text_that_is_split_already(tmp_path: Path):
    path = written(tmp_path / "a.txt", "The <unk> U.S. don't", "the <unk> <unk>", "The")
    found = corpus(path, min_count=1, tokenizer="spaces")
    assert found.words == ("<unk>", "The", "U.S.", "don't", "the")
    kept = corpus(path, min_count=2, tokenizer="spaces", unknown="keep")  # its own <unk> are of the rest
    assert (kept.words, kept.counts.tolist(), kept.unknown) == (("<unk>", "The"), [6, 2], 0)


def test_rare_words_are_forgotten_when_there_are_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    read_in_blocks(monkeypatch, 60)
    path = written(tmp_path / "a.txt", *(f"often rare{i} often twice{i // 2}" for i in range(200)))
    full = corpus(path, min_count=100)
    with pytest.warns(UserWarning, match=r"more than 30 distinct words: those seen \d+ times or less so far"):
        found = corpus(path, min_count=100, max_distinct=30)
    assert (found.words, found.counts.tolist(), found.total_words) == (("often",), [400], 800)
    assert torch.equal(found.ids, full.ids)


def test_tokens_of_transformers(tmp_path: Path):
    transformers = pytest.importorskip("transformers", reason="pip install 'contrast-learning[transformers]'")
    import tokenizers

    vocabulary = {word: i for i, word in enumerate(["[UNK]", "[CLS]", "run", "##s", "dog"])}
    inner = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.post_processor = tokenizers.processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 1)])
    inner.enable_truncation(1)  # as a file may say, but a text is neither cut nor filled up
    inner.enable_padding(length=9, pad_token="[CLS]", pad_id=1)
    special = {"unk_token": "[UNK]", "cls_token": "[CLS]", "model_max_length": 2}
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **special).save_pretrained(tmp_path / "pieces")
    path = written(tmp_path / "a.txt", "dogs run", "dog runs")
    found = corpus(path, min_count=1, tokenizer=str(tmp_path / "pieces"))
    assert [[found.words[i] for i in line] for line in lines_of(found.ids)] == [
        ["dog", "##s", "run"],
        ["dog", "run", "##s"],
    ]
    assert torch.equal(corpus(path, min_count=1, tokenizer=str(tmp_path / "pieces")).ids, found.ids)


def test_without_transformers_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match="'some-model' needs transformers"):
        corpus(written(tmp_path / "a.txt", "a"), tokenizer="some-model")


# --- the cache


def entries(cache: Path) -> list[Path]:
    return sorted((cache / "corpora").glob("*"))


def test_second_start_reads_no_text(tmp_path: Path, cache: Path, counted: list[str]):
    path = written(tmp_path / "a.txt", *zipf(50))
    first = corpus(path, 2, held_out=0.2)
    assert counted == ["reading words"]
    moved = path.rename(tmp_path / "b.txt")  # known by its content, wherever it lies
    second = corpus(moved, 2, held_out=0.2)
    assert len(counted) == 1
    assert (first.words, first.total_words, first.lines) == (second.words, second.total_words, second.lines)
    assert torch.equal(first.ids, second.ids)
    assert first.held_out is not None
    assert second.held_out is not None
    assert torch.equal(first.held_out, second.held_out)
    assert second.name == "b"
    maps = Path("/proc/self/maps")
    if maps.exists():  # ids are mapped, so that processes share the memory
        assert str(entries(cache)[0]) in maps.read_text()


def test_what_changes_the_ids_changes_the_key(tmp_path: Path, cache: Path):
    path = written(tmp_path / "a.txt", *zipf(50))
    settings = [{}, {"max_words": 3}, {"unknown": "keep"}, {"tokenizer": "spaces"}, {"held_out": 0.2}]
    settings += [{"phrases": 1}, {"phrases": 2}, {"phrases": 1, "phrase_threshold": 1.0}]
    for _ in range(2):
        for options in [*settings, {"held_out": 0.2, "seed": 1}, {"seed": 1}]:  # a seed alone changes nothing
            corpus(path, 2, **options)
    assert len(entries(cache)) == 9
    path.write_text(path.read_text() + "more\n")
    corpus(path, 2)
    corpus([path, path], 2)
    assert len(entries(cache)) == 11


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_damaged_corpus_is_rebuilt(tmp_path: Path, cache: Path, counted: list[str], damage: str):
    path = written(tmp_path / "a.txt", *zipf(50))
    first = corpus(path, 2, held_out=0.2)
    expected = first.ids.clone()
    (entry,) = entries(cache)
    content = entry.read_bytes()
    bad = {"truncate": content[:-3], "flip": content[:-5] + bytes([content[-5] ^ 1]) + content[-4:], "empty": b""}
    entry.unlink()
    entry.write_bytes(bad[damage])
    with pytest.warns(UserWarning, match="is damaged"):
        assert torch.equal(corpus(path, 2, held_out=0.2).ids, expected)
    counted.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(corpus(path, 2, held_out=0.2).ids, expected)
    assert counted == []
    assert entries(cache) == [entry]


def test_interrupted_build_leaves_nothing(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    path = written(tmp_path / "a.txt", *zipf(50))

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(contrast.data.text.corpus, "mapped", fail)  # when all is written
        with pytest.raises(KeyboardInterrupt):
            corpus(path, 2)
    assert [file for file in cache.rglob("*") if file.is_file()] == []


def test_cache_that_cannot_be_written(tmp_path: Path):
    blocker = written(tmp_path / "file", "not a folder")
    with pytest.raises(InputError, match=r"cannot write the encoded text to .*give another cache"):
        corpus(written(tmp_path / "a.txt", "a a"), 1, cache=blocker / "cache")


@pytest.mark.parametrize("damaged", [False, True])
def test_two_processes_at_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, damaged: bool):
    """Each process has encoded the text before either writes its file, over one that is damaged or none."""
    path = written(tmp_path / "a.txt", *zipf(50))
    if damaged:
        corpus(path, 2)
        entries(cache)[0].write_bytes(b"")
    context = multiprocessing.get_context("fork")  # a fresh interpreter would spend seconds on importing torch
    both, results = context.Barrier(2, timeout=20), context.Queue()
    real = contrast.data.text.corpus.chosen

    def encoded(*args):
        entry = real(*args)
        both.wait()
        return entry

    def job() -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore" if damaged else "error")
                results.put(corpus(path, 2).ids.tolist())
        except BaseException as error:  # or the test would wait for a result
            results.put(repr(error))

    monkeypatch.setattr(contrast.data.text.corpus, "chosen", encoded)
    jobs = [context.Process(target=job) for _ in range(2)]
    for process in jobs:
        process.start()
    found = [results.get(timeout=20) for _ in jobs]
    for process in jobs:
        process.join()
    monkeypatch.undo()
    assert found == [corpus(path, 2, cache=tmp_path / "other").ids.tolist()] * 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert corpus(path, 2, cache=cache).ids.tolist() == found[0]
    assert len(entries(cache)) == 1
