"""Word vectors in files: exact round trips, what other programs write and read, and what is wrong with a file."""

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from contrast.data.text.vectors import load_vectors, save_vectors
from contrast.errors import InputError
from contrast.evaluation.words import analogies, nearest_words, similarity_score

SUFFIXES = (".txt", ".vec", ".bin", ".safetensors", ".txt.gz", ".vec.gz", ".bin.gz", ".safetensors.gz")
WORDS = ("the", "naïve", "猫", "don't", ":", "12", "0.5", "</s>", "e\u0301", "\U0001f408")


def awkward() -> Tensor:
    """[10, 7] float32 of all sizes: random bits, subnormal, huge and negative zero among them."""
    bits = torch.randint(-(2**31), 2**31, (10, 7), generator=torch.Generator().manual_seed(0)).to(torch.int32)
    values = bits.view(torch.float32)
    values = torch.where(values.isfinite(), values, 1.0)
    values[0] = torch.tensor([0.0, -0.0, 1e-45, 3.4028234663852886e38, 0.1, 1 / 3, -1e-40])
    values[1, 0] = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    return values


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype == torch.float32 and torch.equal(a.view(torch.int32), b.view(torch.int32))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_round_trip_is_exact(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "new" / f"v{suffix}"
    save_vectors(path, WORDS, awkward())
    words, vectors = load_vectors(path)
    assert words == WORDS
    assert same_bits(vectors, awkward())
    save_vectors(path, WORDS[:2], awkward()[:2])  # in its own place
    assert load_vectors(path)[0] == WORDS[:2]
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    if os.name != "nt":
        plain = tmp_path / "new" / "plain"
        plain.touch()
        assert path.stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_become_float32(tmp_path: Path, suffix: str, dtype: torch.dtype) -> None:
    values = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(dtype)
    save_vectors(tmp_path / f"v{suffix}", "abc", values.requires_grad_().T.contiguous().T)
    assert same_bits(load_vectors(tmp_path / f"v{suffix}")[1], values.detach().float())


def test_the_bytes_are_those_of_the_formats(tmp_path: Path) -> None:
    values = torch.tensor([[0.5, -2.0, 0.1], [1.0, 0.0, 1e-20]])
    for suffix in (".txt", ".bin"):
        save_vectors(tmp_path / f"v{suffix}", ["a", "é"], values)
    text = (tmp_path / "v.txt").read_bytes().decode().split("\n")
    assert text == ["2 3", "a 0.5 -2 0.100000001", "é 1 0 9.99999968e-21", ""]
    rows = [b"2 3\n", b"a ", struct.pack("<3f", 0.5, -2.0, 0.1), b"\n"]
    rows += ["é ".encode(), struct.pack("<3f", 1.0, 0.0, 1e-20), b"\n"]
    assert (tmp_path / "v.bin").read_bytes() == b"".join(rows)


def test_what_other_programs_write(tmp_path: Path) -> None:
    expected = torch.tensor([[0.5, -2.0], [1.0, 0.25]])
    packed = [struct.pack("<2f", *row) for row in expected.tolist()]
    files = {
        "word2vec.txt": b"2 2\na 0.5 -2.0 \nb 1.0 0.25 \n",  # a space at the end of each line
        "glove.txt": b"a 0.5 -2\nb 1 0.25\n",  # no first line
        "windows.vec": b"2 2\r\na 0.5 -2\r\nb 1 0.25\r\n",
        "google.bin": b"2 2\na " + packed[0] + b"b " + packed[1],  # no line feeds
        "word2vec.bin": b"2 2\na " + packed[0] + b"\nb " + packed[1] + b"\n",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        words, vectors = load_vectors(tmp_path / name)
        assert words == ("a", "b"), name
        assert torch.equal(vectors, expected), name


@pytest.mark.parametrize("suffix", [".txt", ".bin", ".safetensors"])
def test_a_compressed_file_that_ends_too_early_is_one_line(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"a{suffix}.gz"
    save_vectors(file, [f"w{i}" for i in range(99)], torch.randn(99, 8))
    file.write_bytes(file.read_bytes()[:-99])
    with pytest.raises(InputError, match=f"a{suffix}.gz holds no word vectors: "):
        load_vectors(file)


def test_words_of_glove_with_spaces_on_the_first_line(tmp_path: Path) -> None:
    (tmp_path / "glove.txt").write_text(". . . 3 4\nthe 1 2\n")
    words, vectors = load_vectors(tmp_path / "glove.txt")
    assert (words, vectors.tolist()) == ((". . .", "the"), [[3, 4], [1, 2]])
    (tmp_path / "text.txt").write_text("no vectors at all\n")
    with pytest.raises(InputError, match="its first line does not end with a number"):
        load_vectors(tmp_path / "text.txt")


def test_words_of_glove_with_spaces(tmp_path: Path) -> None:
    (tmp_path / "glove.txt").write_text("the 1 2\n. . . 3 4\nat name@domain.com 5 6\n")
    words, vectors = load_vectors(tmp_path / "glove.txt")
    assert words == ("the", ". . .", "at name@domain.com")
    assert vectors.tolist() == [[1, 2], [3, 4], [5, 6]]
    (tmp_path / "w2v.txt").write_text("2 2\nthe 1 2\n. . . 3 4\n")  # where a line says the numbers, this is damage
    with pytest.raises(InputError, match="line 3 has 4 numbers, not 2"):
        load_vectors(tmp_path / "w2v.txt")


def test_a_model_of_fasttext_and_a_file_that_grows(tmp_path: Path) -> None:
    (tmp_path / "cc.bin").write_bytes(struct.pack("<2i", 793712314, 12) + bytes(100))
    with pytest.raises(InputError, match=r"cc\.bin is a model of fastText.*\.vec"):
        load_vectors(tmp_path / "cc.bin")
    (tmp_path / "v.bin.gz").write_bytes(gzip.compress(bytes(10**6)))
    with pytest.raises(InputError, match="more than 100 times as large"):
        load_vectors(tmp_path / "v.bin.gz")


def test_numbers_that_hold_line_feeds_and_spaces(tmp_path: Path) -> None:
    values = torch.from_numpy(np.frombuffer(b"\n \n\n    \n\n\n ", "<f4").copy()).view(3, 1)
    save_vectors(tmp_path / "v.bin", "abc", values)
    words, vectors = load_vectors(tmp_path / "v.bin")
    assert words == ("a", "b", "c")
    assert same_bits(vectors, values)


@pytest.mark.parametrize("suffix", [".txt", ".bin"])
def test_a_word_that_occurs_twice(tmp_path: Path, suffix: str) -> None:
    rows = [("b", 1.0), ("a", 2.0), ("b", 3.0), ("c", 4.0), ("b", 5.0)]
    text = b"5 1\n" + b"".join(f"{word} {value}\n".encode() for word, value in rows)
    packed = b"5 1\n" + b"".join(f"{word} ".encode() + struct.pack("<f", value) + b"\n" for word, value in rows)
    path = tmp_path / f"v{suffix}"
    path.write_bytes(text if suffix == ".txt" else packed)
    with pytest.warns(UserWarning, match="2 words of .* occur again: the first vector is taken"):
        words, vectors = load_vectors(path)
    assert words == ("b", "a", "c")
    assert vectors.flatten().tolist() == [1.0, 2.0, 4.0]


def test_words_that_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "v.bin").write_bytes(b"1 1\na\xff " + struct.pack("<f", 1.0))
    (tmp_path / "v.txt").write_bytes(b"1 1\na\xff 1\n")
    for name in ("v.bin", "v.txt"):
        assert load_vectors(tmp_path / name)[0] == ("a\ufffd",)


@pytest.mark.parametrize(
    ("words", "shape", "said"),
    [
        ("ab", (3, 2), r"2 words and vectors \[3, 2\]"),
        ("ab", (2,), r"2 words and vectors \[2\]"),
        ("", (0, 2), r"0 words"),
        ("ab", (2, 0), r"vectors \[2, 0\]"),
        (["a", ""], (2, 2), "1 of 2 words are empty or have a space"),
        (["new york", "b"], (2, 2), "such as 'new york'"),
        (["a\u00a0b", "c\n"], (2, 2), "2 of 2 words"),
        ("aba", (3, 2), "3 words are to be saved, but 'a' occurs 2 times"),
    ],
)
@pytest.mark.parametrize("suffix", [".txt", ".bin", ".safetensors"])
def test_what_cannot_be_saved(tmp_path: Path, words: list[str], shape: tuple[int, ...], said: str, suffix: str) -> None:
    with pytest.raises(InputError, match=said):
        save_vectors(tmp_path / f"v{suffix}", words, torch.zeros(shape))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_where_nothing_can_be_saved(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        save_vectors(tmp_path / "file" / f"v{suffix}", "ab", torch.zeros(2, 2))


def test_suffixes(tmp_path: Path) -> None:
    for name in ("v.pt", "v", "v.txt.bz2", "v.gz", "v.floret.gz"):
        with pytest.raises(
            InputError,
            match=rf"of .txt, .vec, .bin, .safetensors, or .* and .gz, or .floret, not '{name}'",
        ):
            save_vectors(tmp_path / name, "ab", torch.zeros(2, 2))
        (tmp_path / name).touch()
        with pytest.raises(InputError, match="not 'v"):
            load_vectors(tmp_path / name)
    with pytest.raises(InputError, match=r"v\.bin does not exist"):
        load_vectors(tmp_path / "v.bin")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("v.txt", b"", "it has 0 words"),
        ("v.txt", b"3 2\na 1 2\nb 3 4\n", "it has 2 words, not 3"),
        ("v.txt", b"2 2\na 1 2\nb 3\n", "line 3 has 1 numbers, not 2"),
        ("v.txt", b"2 2\na 1 2\nb 3 x\n", "could not convert"),
        ("v.txt", b"just some text\nof two lines\n", "does not end with a number"),
        ("v.txt", b"word\nother\n", "words and vectors"),
        ("v.bin", b"", "empty"),
        ("v.bin", b"no header", "not enough values"),
        ("v.bin", b"2 x\n", "invalid literal"),
        ("v.bin", b"9 9\na 123", "too short for 9 words of 9 numbers"),
        ("v.bin", b"2 1\na 1234\nbbbbbbbbb", "ends after 1 of 2 words"),
        ("v.bin", b"2 1\na 1234\nb 123", "ends after 1 of 2 words"),
        ("v.bin", b"1 2\nking 111 222\nqueen 3 4\n", "goes on after its 1 words"),
        ("v.txt", b"a 1 nan\nb 1 2\n", "not finite, such as in the vector of 'a'"),
        ("v.bin", b"-2 1\na 1234\n", "holds no word vectors"),
        ("v.bin", b"0 4\n", "holds 0 words"),
        ("v.safetensors", b"not one", "holds no word vectors"),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name} .*{said}"):
        load_vectors(tmp_path / name)


def test_safetensors_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "v.safetensors"
    letters = torch.tensor(list(b"a\nb\n"), dtype=torch.uint8)
    cases = [
        ({"weight": torch.zeros(2, 2)}, "no `vectors` and `words`, but 1 other"),
        ({"vectors": torch.zeros(3, 2), "words": letters}, r"2 words and vectors \[3, 2\]"),
        ({"vectors": torch.zeros(2), "words": letters}, r"vectors \[2\]"),
        ({"vectors": torch.zeros(2, 2), "words": torch.tensor([255, 10], dtype=torch.uint8)}, "can't decode"),
        ({"vectors": torch.zeros(2, 2), "words": letters.bfloat16()}, "holds no word vectors"),
    ]
    for tensors, said in cases:
        save_file(tensors, path)
        with pytest.raises(InputError, match=said):
            load_vectors(path)


# --- gensim, of `pip install 'contrast-learning[bench]'`


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".txt", ".vec", ".bin"])
def test_gensim_opens_them(tmp_path: Path, suffix: str) -> None:
    models = pytest.importorskip("gensim.models", reason="pip install 'contrast-learning[bench]'")
    path = tmp_path / f"v{suffix}"
    save_vectors(path, WORDS, awkward())
    found = models.KeyedVectors.load_word2vec_format(path, binary=suffix == ".bin")
    assert tuple(found.index_to_key) == WORDS
    assert same_bits(torch.from_numpy(found.vectors), awkward())
    found.save_word2vec_format(path, binary=suffix == ".bin")
    words, vectors = load_vectors(path)
    assert words == WORDS
    assert same_bits(vectors, awkward())


@pytest.mark.slow
def test_gensim_has_the_same_figures(tmp_path: Path) -> None:
    models = pytest.importorskip("gensim.models", reason="pip install 'contrast-learning[bench]'")
    generator = torch.Generator().manual_seed(0)
    words = [f"w{i}" for i in range(300)]
    vectors = torch.randn(300, 5, generator=generator)
    number = {word: row for row, word in enumerate(words)}
    drawn = torch.rand(400, 400, generator=generator).argsort(dim=1)[:, :4]  # some words are not known
    unit = torch.nn.functional.normalize(vectors, dim=1)
    for a, b, c, d in drawn[::3].clamp(max=299).tolist():
        vectors[d] = unit[b] - unit[a] + unit[c] + 0.3 * unit[d]
    questions, pairs = tmp_path / "q.txt", tmp_path / "p.tsv"
    lines = [" ".join(f"W{i}" for i in row) + "\n" for row in drawn.tolist()]
    questions.write_text(": one\n" + "".join(lines[:200]) + ": two\n" + "".join(lines[200:]))
    pairs.write_text("".join(f"w{a}\tw{b}\t{i % 10}\n" for i, (a, b, *_) in enumerate(drawn.tolist())))
    save_vectors(tmp_path / "v.bin", words, vectors)
    peer = models.KeyedVectors.load_word2vec_format(tmp_path / "v.bin", binary=True)

    accuracy, sections = peer.evaluate_word_analogies(questions, restrict_vocab=250)
    found = analogies(vectors, number, questions, restrict=250)
    assert found["total"].accuracy == pytest.approx(accuracy)
    assert 0 < accuracy < 1
    told = {part["section"]: (len(part["correct"]), len(part["correct"]) + len(part["incorrect"])) for part in sections}
    assert [found[name][:2] for name in ("one", "two")] == [told["one"], told["two"]]

    _, rank, unknown = peer.evaluate_word_pairs(pairs)
    score = similarity_score(vectors, number, pairs)
    assert score.spearman == pytest.approx(rank.statistic, abs=1e-6)
    assert 100 * (1 - score.used / score.all) == pytest.approx(unknown)

    near = nearest_words(vectors, words, "w7", k=5)
    expected = peer.most_similar("w7", topn=5)
    assert [word for word, _ in near] == [word for word, _ in expected]
    assert [value for _, value in near] == pytest.approx([value for _, value in expected], abs=1e-5)
