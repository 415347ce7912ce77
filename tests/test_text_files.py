"""What a corpus is read from: formats with a column, compressed files, the standard input, what is no text; units."""

import bz2
import csv
import functools
import gzip
import io
import json
import lzma
import os
import random
import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import contrast.data.text.corpus
import contrast.data.text.vocabulary
from contrast.data.text.corpus import Corpus, corpus
from contrast.data.text.described import described
from contrast.data.text.encode import FILE, LINE, Encoder, Splitter, encoded, write_ids
from contrast.data.text.text_files import _ZSTD, Texts
from contrast.data.text.vocabulary import BORDER
from contrast.errors import InputError
from contrast.run.compose import config_loader, load_config
from contrast.run.folder import conf_folder, run_config

ROWS = ["one two\nthree", "", 'four, "five"', "six"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONTRAST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def lines(found: Corpus) -> list[str]:
    text = " ".join("|" if i == BORDER else found.words[i] for i in found.ids.tolist())
    return [line.strip() for line in text.split("|")[:-1]]


def read(path: Path | str | list[Path], **options: object) -> list[str]:
    return lines(corpus(path, min_count=1, **options))  # type: ignore[arg-type]


def as_csv(mark: str) -> str:
    file = io.StringIO()
    writer = csv.writer(file, delimiter=mark)
    writer.writerows([["id", "text"], *([i, row] for i, row in enumerate(ROWS)), ["short"]])
    return file.getvalue()


RECORDS: dict[str, str] = {
    "a.jsonl": "".join(json.dumps({"id": i, "text": row}) + "\n" for i, row in enumerate(ROWS)) + '\n{"id": 9}\n',
    "a.ndjson": "".join(json.dumps({"id": i, "text": row}) + "\n" for i, row in enumerate(ROWS)),
    "like_json.txt": "".join(json.dumps({"id": i, "text": row}) + "\n" for i, row in enumerate(ROWS)),
    "a.csv": as_csv(","),
    "a.tsv": as_csv("\t"),
}


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize(("suffix", "pack"), [("", bytes), (".gz", gzip.compress)])
def test_a_column_of_records(tmp_path: Path, name: str, suffix: str, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / f"{name}{suffix}"
    path.write_bytes(pack(RECORDS[name].encode()))
    assert read(path, column="text") == ["one two", "three", 'four , " five "', "six"]
    assert read(path, column="text", unit="file") == ["one two three", 'four , " five "', "six"]
    with pytest.raises(InputError, match=r"has the columns id, text; .*data.column=NAME"):
        corpus(path)
    with pytest.raises(InputError, match="has the columns id, text; none of these is 'body'"):
        corpus(path, column="body")


def test_many_records_and_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [f"w{i % 7} x{i % 3}" for i in range(500)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    assert read(tmp_path / "a.jsonl", column="text") == rows
    blocks = Texts([tmp_path / "a.jsonl"], "text").blocks("", 100)
    assert [line for block in blocks for line in block.data.decode().split("\x1c")[:-1]] == rows
    arrow = pytest.importorskip("pyarrow", reason="pip install 'contrast-learning[parquet]'")
    from pyarrow import parquet

    parquet.write_table(arrow.table({"id": [1, 2, 3], "text": ["a b", None, "c\nd"]}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", column="text") == ["a b", "c", "d"]
    with pytest.raises(InputError, match="has the columns id, text"):
        corpus(tmp_path / "a.parquet", column="body")
    with arrow.ipc.new_stream(tmp_path / "c.arrow", arrow.schema([("text", arrow.list_(arrow.string()))])) as stream:
        stream.write_table(arrow.table({"text": [["a", "b"], ["c"]]}))
    assert read(tmp_path / "c.arrow", column="text") == ["a b", "c"]
    table = arrow.table({"text": [["a"], [None], ["b"]]})
    with arrow.ipc.new_file(tmp_path / "d.arrow", table.schema) as file:
        file.write_table(table)
    with pytest.raises(InputError, match=r"row 2 of .*d\.arrow has \[null\]"):
        corpus(tmp_path / "d.arrow", column="text", min_count=1)
    with pytest.warns(UserWarning, match=r"row 2 of .*; 1 such lines are left out"):
        assert read(tmp_path / "d.arrow", column="text", on_error="skip") == ["a", "b"]
    (tmp_path / "b.parquet").write_text("no parquet")
    with pytest.raises(InputError, match=r"b\.parquet cannot be read"):
        corpus(tmp_path / "b.parquet", column="text")


def test_broken_records(tmp_path: Path) -> None:
    for number, (text, said) in enumerate([('{"text": "a"}\n{"te', "line 2 of .* is no JSON"), ("[1]", "no object")]):
        (tmp_path / f"{number}.jsonl").write_text(text)
        with pytest.raises(InputError, match=said):
            corpus(tmp_path / f"{number}.jsonl", column="text")


def test_values_that_are_no_text(tmp_path: Path) -> None:
    rows = [{"text": ["one", "two"]}, {"text": None}, {"id": 3}, {"text": 5}, {"text": "six"}]
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    with pytest.raises(InputError, match=r"line 4 of .*a\.jsonl has 5 in place of a text"):
        corpus(tmp_path / "a.jsonl", column="text", min_count=1)
    with pytest.warns(UserWarning, match=r"line 4 of .*; 1 such lines are left out"):
        assert read(tmp_path / "a.jsonl", column="text", on_error="skip") == ["one two", "six"]


@pytest.mark.parametrize("before", ["\ufeff", "\n\n", " ", "\ufeff\n "])
def test_json_lines_are_known_whatever_is_before_them(tmp_path: Path, before: str) -> None:
    (tmp_path / "a.txt").write_text(before + '{"text": "one"}\n{"text": "two"}\n')
    assert read(tmp_path / "a.txt", column="text") == ["one", "two"]
    with pytest.raises(InputError, match="has the columns text; which of these"):
        corpus(tmp_path / "a.txt")


def test_a_column_of_plain_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text,n\none,1\n")
    with pytest.raises(InputError, match=r"a\.txt is plain text, which has no column 'text'"):
        corpus(tmp_path / "a.txt", column="text", min_count=1)


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".bz2", ".zst"])
def test_compressed_files_that_end_too_early_or_are_none(tmp_path: Path, suffix: str) -> None:
    packs = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}
    pack = packs[suffix] if suffix in packs else pytest.importorskip(_ZSTD).compress
    whole = pack(random.Random(0).randbytes(1 << 16).hex().encode())
    for name, data in (("half", whole[: len(whole) // 2]), ("none", b"plain text\n")):
        path = tmp_path / f"{name}{suffix}"
        path.write_bytes(data)
        with pytest.raises(InputError, match=rf"{name}\{suffix} cannot be read"):
            corpus(path, min_count=1)
        (tmp_path / "good.txt").write_text("one\n")
        with pytest.warns(UserWarning, match=rf"passed over: .*{name}\{suffix} cannot be read"):
            assert "one" in read([path, tmp_path / "good.txt"], on_error="skip")


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_a_broken_line_of_json_costs_that_line_alone(tmp_path: Path, name: str) -> None:
    rows = [json.dumps({"text": f"w{i} x"}) for i in range(50)]
    broken = [*rows[:20], '{"te', *rows[20:30], "[1]", *rows[30:]]
    (tmp_path / name).write_text("\n".join(broken))
    with pytest.warns(UserWarning, match=rf"passed over: line 21 of .*{name} is no JSON.*; 2 such lines are left out"):
        assert read(tmp_path / name, column="text", on_error="skip") == [f"w{i} x" for i in range(50)]


def test_records_before_damage_are_kept(tmp_path: Path) -> None:
    packed = gzip.compress(b'{"text": "one"}\n' * 9) + b"no gzip"
    (tmp_path / "a.jsonl.gz").write_bytes(packed)
    with pytest.warns(UserWarning, match=r"a\.jsonl\.gz cannot be read"):
        assert read(tmp_path / "a.jsonl.gz", column="text", on_error="skip") == ["one"] * 9


def test_columns_are_listed_whichever_line_is_the_first(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('\n{"id": 1, "text": "one"}\n')
    with pytest.raises(InputError, match="has the columns id, text; none of these is 'body'"):
        corpus(tmp_path / "a.jsonl", column="body")


@pytest.mark.parametrize("suffix", ["", ".zst"])
def test_json_whose_first_line_is_longer_than_a_block(tmp_path: Path, suffix: str) -> None:
    text = json.dumps({"text": "one " * 9, "id": "x" * (1 << 20)}) + '\n{"text": "two"}\n'
    pack = pytest.importorskip(_ZSTD).compress if suffix else bytes
    for name in ("a.json", "a.jsonl"):
        path = tmp_path / f"{name}{suffix}"
        path.write_bytes(pack(text.encode()))
        assert read(path, column="text") == [" ".join(["one"] * 9), "two"]
    path.with_name("b.txt").write_text("{ " + "one " * (1 << 19))  # no JSON, and no line feed
    assert len(read(path.with_name("b.txt"))) == 1


def test_compressed_and_packed_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = b"one two\nthree\n"
    packs = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress, ".GZ": gzip.compress}
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(sys.modules, _ZSTD, None)
        (tmp_path / "a.zst").write_bytes(b"?")
        with pytest.raises(InputError, match=r"needs .*zstd: pip install"):
            corpus(tmp_path / "a.zst")
    if zstd := pytest.importorskip(_ZSTD, reason="pip install 'contrast-learning[zstd]'"):
        packs[".zst"] = zstd.compress
    for suffix, pack in packs.items():
        (tmp_path / f"b{suffix}").write_bytes(pack(text))
        assert read(tmp_path / f"b{suffix}") == ["one two", "three"], suffix
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.writestr("x.txt", "one two")
        archive.writestr("folder/y.jsonl", '{"text": "three"}\n')
    assert read(tmp_path / "c.zip", column="text", unit="file") == ["one two", "three"]
    (tmp_path / "c.zip").write_bytes(b"PK no zip")
    with pytest.raises(InputError, match=r"c\.zip cannot be read"):
        corpus(tmp_path / "c.zip")


def test_the_standard_input(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"one two\nthree\n")))
    found = corpus("-", min_count=1)
    assert (lines(found), found.name) == (["one two", "three"], "stdin")
    assert not list(cache.glob("stdin-*"))


def test_the_configuration_of_a_run_leaves_the_standard_input_as_it_is() -> None:
    with config_loader(conf_folder()) as loader:
        config = run_config(load_config(loader, "words", ["data=corpus", "data.path=-", "+data.cache=c"]))
    data = config["data"]
    assert isinstance(data, dict)
    assert (data["path"], data["cache"]) == ("-", str(Path("c").absolute()))


WRAPPED = "one\ntwo\n\nthree\n  \n\nfour\n"


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    whole = contrast.data.text.vocabulary._units
    monkeypatch.setattr(contrast.data.text.vocabulary, "_units", lambda raw, limits: whole(raw, limits, size))
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for file in files:
        file.write_text(WRAPPED + "five")
    assert read(files) == ["one", "two", "three", "four", "five"] * 2
    assert read(files, unit="paragraph") == ["one two", "three", "four five"] * 2
    assert read(files, unit="file") == ["one two three four five"] * 2
    rare = corpus(files, min_count=1, max_words=2, unit="paragraph")  # words that are left out leave no empty units
    assert lines(rare) == ["four five"] * 2
    held = corpus(files, min_count=1, unit="paragraph", held_out=0.5)
    assert held.held_out is not None
    assert (held.lines, int((held.held_out < 0).sum())) == (3, 3)


def test_what_is_no_text_is_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_bytes(b"one two\nbad \0 line\nthree\n")
    (folder / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR picture\n" * 3)
    (folder / "c.txt").write_bytes(b"four")
    (folder / "d.gz").write_bytes(b"no gzip")
    with pytest.raises(InputError, match=r"a\.txt holds NUL bytes \(byte 12\); data.on_error=skip"):
        corpus(folder, min_count=1)
    with pytest.warns(UserWarning, match=r"a\.txt, from byte 12: 1 lines .*b\.png holds NUL.*d\.gz cannot be read"):
        assert read(folder, on_error="skip") == ["one two", "three", "four"]
    with pytest.warns(UserWarning, match=r"when the text was first read: .*a\.txt, from byte 12"):
        assert read(folder, on_error="skip", unknown="keep") == ["one two", "three", "four"]
    with pytest.raises(InputError, match=r"b\.png holds NUL bytes .* not a text in UTF-8"):
        corpus(folder / "b.png")


def test_records_with_nul_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"text,n\none two,1\nbad \0 cell,2\nthree,3\n")
    with pytest.raises(InputError, match=r"a\.csv"):
        corpus(tmp_path / "a.csv", column="text", min_count=1)
    (tmp_path / "b.jsonl").write_text('{"text": "one two"}\n{"text": "bad \\u0000 word"}\n{"text": "three"}\n')
    with pytest.raises(InputError, match=r"b\.jsonl holds NUL bytes \(record 2\); data.on_error=skip"):
        corpus(tmp_path / "b.jsonl", column="text", min_count=1)
    with pytest.warns(UserWarning, match=r"b\.jsonl, record 2, which holds NUL bytes"):
        assert read(tmp_path / "b.jsonl", on_error="skip", column="text") == ["one two", "three"]


def test_json_that_is_no_json_lines_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[\n  {"text": "one two"}\n]\n')
    with pytest.raises(InputError, match=r"a\.json is an array of JSON"):
        corpus(tmp_path / "a.json", column="text", min_count=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": ""}, "a corpus of no files"),
        ({"max_distinct": 0}, "max_distinct must be at least 1, not 0"),
        ({"workers": -1}, "not workers=-1"),
        (
            {"tokenizer": lambda line: [len(word) for word in line.split()], "min_count": 1},
            "gives 3, which is no",
        ),
    ],
)
def test_what_is_no_corpus(tmp_path: Path, options: dict[str, object], message: str) -> None:
    (tmp_path / "a.txt").write_text("one two six\n")
    with pytest.raises(InputError, match=message):
        corpus(**{"path": tmp_path / "a.txt"} | options)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [*range(1, 30), 1000])
def test_a_line_with_nul_is_left_out_wherever_blocks_end(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"good one\nabc def g\0hi jk\nnext line\n\0\n\nlast")
    blocks = list(Texts([path], skip=True).blocks("", size))
    text = b"".join(block.data for block in blocks).decode()
    lines = text.removesuffix("\x1c").split("\n")
    # words of the line that come before a block ends may stay; what follows the NUL byte does not
    assert (lines[0], lines[-3:]) == ("good one", ["next line", "", "last"])
    assert "".join(lines[1:-3]) in ("", "abc", "abc def")


def test_same_bytes_under_another_suffix_are_read_anew(tmp_path: Path) -> None:
    text = '{"text": "one"}\nplain\n'
    (tmp_path / "a.csv").write_text("text\none\n")
    (tmp_path / "a.txt").write_text("text\none\n")
    assert read(tmp_path / "a.csv", column="text") == ["one"]
    assert read(tmp_path / "a.txt") == ["text", "one"]
    (tmp_path / "b.txt").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"one"))
    assert read(tmp_path / "b.txt.gz") == ["one"]


def test_other_limits_read_nothing_and_known_files_are_not_hashed(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a b c d\n" * 5 + "a a b\n")
    os.utime(path, (1, 1))
    monkeypatch.setattr("contrast.data.text.text_files._SETTLED", -1)
    corpus(path, min_count=1)
    monkeypatch.setattr("contrast.data.text.text_files.blake2b", None)
    monkeypatch.setattr(Texts, "blocks", None)
    assert corpus(path, min_count=6).words == ("a", "b")
    assert corpus(path, min_count=1, max_words=3, unknown="keep", held_out=0.3).words[:2] == ("a", "b")
    monkeypatch.undo()
    monkeypatch.setenv("CONTRAST_CACHE", str(cache))
    path.write_text("x y z d\n" * 5 + "x x b\n")  # of the same size
    os.utime(path, (1, 1))  # and time of change
    assert corpus(path, min_count=6).words == ("x",)


def test_processes_give_the_same_words(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("".join(f"Wörter {i} und {i % 11}, é\n" for i in range(3000)).encode() + b"\xff\n")
    alone = corpus(path, min_count=1, workers=1, cache=tmp_path / "1")
    several = corpus(path, min_count=1, workers=3, cache=tmp_path / "3")
    assert alone.words == several.words
    assert torch.equal(alone.ids, several.ids)


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("most", [10**6, 40])
def test_an_encoder_that_knows_or_forgets_words_gives_the_same_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keeps: bool, most: int
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("".join(f"Wort {i % 70} und {i % 11}, UND\u200b wort\n" for i in range(1000)))
    expected = path.read_text().lower().replace(",", " ,").replace("\u200b", "").replace("\n", " \n ").split(" ")
    monkeypatch.setattr("contrast.data.text.encode._KNOWN", most)
    for workers in (1, 3):
        with io.BytesIO() as file:
            blocks = Texts([path]).blocks("", 500)
            found = write_ids(encoded(Encoder(Splitter(), keeps), blocks, 10**9, workers), file, None)
            ids = np.frombuffer(file.getvalue(), np.int32)
        assert found.words == list(dict.fromkeys(word for word in expected if word.strip()))
        text = ["\n" if i == LINE else found.words[i] for i in ids if i != FILE]
        assert text == [word for word in expected if word]
        assert found.counts.tolist() == [text.count(word) for word in found.words]


def test_a_full_disk_and_full_memory_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a b\n" * 10)
    with monkeypatch.context() as patched:
        patched.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=5))
        with pytest.raises(InputError, match=r"has room for 0\.0 MB"):
            corpus(path, min_count=1)
    monkeypatch.setattr("contrast.data.text.encode.free_memory", lambda: 10)
    monkeypatch.setattr("contrast.data.text.encode._MANY", 1)
    with pytest.raises(InputError, match=r"2 distinct words so far fill the memory: data\.max_distinct=1 "):
        corpus(path, min_count=1)


def shout(line: str, mark: str = "!") -> list[str]:
    return [word + mark for word in line.upper().split()]


def test_a_tokenizer_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one two\n\nthree\n")
    assert read(path, tokenizer=shout) == ["ONE! TWO!", "THREE!"]
    assert read(path, tokenizer=lambda line: line.split()[:1]) == ["one", "three"]
    with pytest.raises(InputError, match="gives the word 'one two': files of word vectors hold no empty word"):
        corpus(path, tokenizer=lambda line: [line])
    with pytest.raises(InputError, match="gives None for a line"):
        corpus(path, tokenizer=lambda line: None)  # type: ignore[arg-type, return-value]


STOPS = {"one"}


def is_kept(word: str) -> bool:
    return word not in STOPS


def without_stops(line: str) -> list[str]:
    return [word for word in line.split() if is_kept(word)]


def test_what_a_tokenizer_refers_to_is_a_part_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one two\n")
    assert read(path, tokenizer=without_stops) == ["two"]
    assert described(without_stops) == described(without_stops)
    monkeypatch.setattr(sys.modules[__name__], "STOPS", {"two"})
    assert read(path, tokenizer=without_stops) == ["one"]
    monkeypatch.setattr(sys.modules[__name__], "is_kept", lambda word: True)
    assert read(path, tokenizer=without_stops) == ["one two"]


class Shorter:
    def __init__(self, letters: object) -> None:
        self.letters = letters

    def __call__(self, line: str) -> list[str]:
        return [word[: int(str(self.letters))] for word in line.split()]


class StillShorter(Shorter):
    pass


class Number:
    """Its value is not among its attributes."""

    __slots__ = ("value",)

    def __init__(self, value: int) -> None:
        self.value = value

    def __str__(self) -> str:
        return str(self.value)


def in_closure(letters: int) -> Callable[[str], list[str]]:
    return lambda line: [word[:letters] for word in line.split()]


def in_default(letters: int) -> Callable[[str], list[str]]:
    def shorter(line: str, *, letters: int = letters) -> list[str]:
        return [word[:letters] for word in line.split()]

    return shorter


MAKERS: list[Callable[[int], Callable[[str], list[str]]]] = [
    in_closure,
    in_default,
    Shorter,
    StillShorter,
    lambda letters: Shorter(letters).__call__,
    lambda letters: Shorter(Number(letters)),
    lambda letters: re.compile(rf"\b\w{{{letters}}}").findall,
]


@pytest.mark.parametrize("make", MAKERS)
def test_a_tokenizer_with_other_values_is_another(tmp_path: Path, make: Callable[[int], Callable[[str], list[str]]]):
    path = tmp_path / "a.txt"
    path.write_text("one two\n")
    assert [read(path, tokenizer=make(letters)) for letters in (1, 2)] == [["o t"], ["on tw"]]


class Base:
    def __call__(self, line: str) -> list[str]:
        return self.kept(line.split())

    @staticmethod
    def kept(words: list[str]) -> list[str]:
        return [word for word in words if word not in STOPS]


class Derived(Base):
    pattern, flags = "a", 0

    def __init__(self, lower: bool = True) -> None:
        self.lower = lower


def test_what_classes_and_functions_of_one_kind_refer_to(monkeypatch: pytest.MonkeyPatch) -> None:
    before = described(Derived())
    assert described(Derived()) == before != described(Derived(lower=False))
    monkeypatch.setattr(sys.modules[__name__], "STOPS", {"two"})
    assert described(Derived()) != before
    one, two = in_closure(1), in_closure(2)
    assert described(functools.partial(Shorter, [one, two, one])) != described(
        functools.partial(Shorter, [one, two, two])
    )
    assert described(functools.partial(re.findall, r"\w+")) == described(functools.partial(re.findall, r"\w+"))


def test_which_tokenizers_are_known_again() -> None:
    for make in (*MAKERS[:5], MAKERS[-1], lambda _: str.split, lambda _: list, lambda _: shout):
        assert described(make(3)) == described(make(3))
    assert described(Shorter(Number(3))) != described(Shorter(Number(3)))
    assert described(Shorter({3})) == described(Shorter({3})) != described(Shorter([3]))


def test_words_of_one_block_that_become_equal() -> None:
    part = Encoder(Splitter())(next(Texts([Path(__file__)]).blocks("", 1 << 20)))
    assert len(part.words) == len(part.counts)
    assert part.counts.sum() == len(part.ids)
