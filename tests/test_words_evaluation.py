"""Similarity, analogies and nearest words against their definitions in loops, on small files and on the usual ones."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from conftest import Command, figures
from torch import Tensor

from contrast.data.text.vectors import save_vectors
from contrast.deploy.words import WordEmbeddings
from contrast.errors import InputError
from contrast.evaluation.encoder import word_vectors
from contrast.evaluation.word_files import read_pairs, read_questions
from contrast.evaluation.words import (
    Analogy,
    analogies,
    nearest_words,
    similarity_score,
    word_scores,
)

WORDS = ("king", "queen", "Man", "woman", "paris", "France", "rome", "italy", "man", "walk", "walked", "go", "went")
PAIRS = """# a comment
Word 1\tWord 2\tHuman
King\tqueen\t8.5
man\twoman\t7
king\tParis\t1.5
walk\tzebra\t3
go\twent\t7
"""
QUESTIONS = """: capitals
Paris France Rome Italy
rome italy paris france
paris france zebra africa
: family
king queen man woman
man man woman queen
: gram7-past-tense
walk walked go went
"""
DATA = Path(os.environ.get("CONTRAST_DATA", "data"))


def some(words: int = len(WORDS), dim: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(words, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def number(words: Sequence[str] = WORDS) -> dict[str, int]:
    return {word: row for row, word in enumerate(words)}


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def known_file(name: str) -> Path:
    found = [folder / name for folder in (DATA, DATA / "text") if (folder / name).is_file()]
    if not found:
        pytest.skip(f"no {name} in $CONTRAST_DATA ({DATA}) or its folder text")
    return found[0]


# --- the definitions


def cosine(a: list[float], b: list[float]) -> float:
    lengths = [math.sqrt(sum(x * x for x in v)) for v in (a, b)]
    return 0.0 if 0.0 in lengths else sum(x * y for x, y in zip(a, b, strict=True)) / (lengths[0] * lengths[1])


def ranks(values: list[float]) -> list[float]:
    """Average ranks."""
    return [sum(other < x for other in values) + (sum(other == x for other in values) + 1) / 2 for x in values]


def spearman(a: list[float], b: list[float]) -> float:
    """Pearson's correlation of average ranks."""
    centred = [[x - sum(r) / len(r) for x in r] for r in (ranks(a), ranks(b))]
    return cosine(*centred)


def known(words: Sequence[str], restrict: int | None = None) -> dict[str, int]:
    """The first row of each word in small letters."""
    return {word.lower(): row for row, word in reversed(list(enumerate(words[:restrict])))}


def naive_similarity(words: Sequence[str], vectors: Tensor, pairs: list[tuple[str, str, float]]) -> tuple[float, int]:
    v, rows, found, scores = vectors.double().tolist(), known(words), [], []
    for a, b, score in pairs:
        if a in rows and b in rows:
            found.append(round(cosine(v[rows[a]], v[rows[b]]), 12))
            scores.append(score)
    return spearman(found, scores), len(found)


def naive_answer(rows_of: dict[str, int], vectors: list[list[float]], question: Sequence[str]) -> bool | None:
    """Whether b - a + c is nearest to d; None if a word is not known."""
    if not set(question) <= set(rows_of):
        return None
    rows = [rows_of[word] for word in question]
    a, b, c = ([x / math.hypot(*vectors[row]) for x in vectors[row]] for row in rows[:3])
    target = [y - x + z for x, y, z in zip(a, b, c, strict=True)]
    scores = {row: cosine(target, vectors[row]) for row in rows_of.values() if row not in rows[:3]}
    best = max(scores.values())
    return [row for row, score in scores.items() if score >= best - 1e-14] == [rows[3]]


def naive_analogies(
    words: Sequence[str], vectors: Tensor, questions: list[tuple[str, tuple[str, ...]]], restrict: int | None = None
) -> dict[str, tuple[int, int, int]]:
    found: dict[str, list[int]] = {section: [0, 0, 0] for section, _ in questions}
    found |= {"semantic": [0, 0, 0], "syntactic": [0, 0, 0], "total": [0, 0, 0]}
    rows_of, lists = known(words, restrict), vectors.double().tolist()
    for section, question in questions:
        right = naive_answer(rows_of, lists, question)
        for name in (section, "syntactic" if section.startswith("gram") else "semantic", "total"):
            found[name] = [x + y for x, y in zip(found[name], (right is True, right is not None, 1), strict=True)]
    return {section: (right, used, every) for section, (right, used, every) in found.items()}


# --- similarity


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_similarity_is_its_definition(tmp_path: Path, dtype: torch.dtype) -> None:
    file = written(tmp_path / "pairs.tsv", PAIRS)
    pairs = [
        ("king", "queen", 8.5),
        ("man", "woman", 7),
        ("king", "paris", 1.5),
        ("walk", "zebra", 3),
        ("go", "went", 7),
    ]
    assert read_pairs(file) == pairs
    for seed in range(5):
        vectors = some(seed=seed).to(dtype)
        found = similarity_score(vectors, number(), file)
        expected, used = naive_similarity(WORDS, vectors, pairs)
        assert found.spearman == pytest.approx(expected, abs=1e-12)
        assert (found.used, found.all) == (used, 5) == (4, 5)


def test_equal_cosines_share_their_rank(tmp_path: Path) -> None:
    vectors = torch.tensor([[1, 0], [3, 4], [6, 8], [0, 1], [0, 0]]).double()
    file = written(tmp_path / "p.txt", "a b 3\na c 2\na d 1\na e 0.5\n")  # cosines 0.6, 0.6, 0, 0
    found = similarity_score(vectors, number("abcde"), file)
    assert found.spearman == pytest.approx(spearman([2, 2, 1, 1], [3, 2, 1, 0.5]), abs=1e-12)
    assert found.spearman == pytest.approx(2 / math.sqrt(5))  # of ranks 3.5, 3.5, 1.5, 1.5 and 4, 3, 2, 1


def test_vectors_that_differ_in_length_alone_are_equally_similar(tmp_path: Path) -> None:
    """Whatever the last digits of their cosines."""
    base, factors = some(1, 7), torch.tensor([0.1, 0.3, 1.0, 3.0, 7.0, 11.0, 13.0, 0.7, 1e5])
    vectors = torch.cat([some(1, 7, seed=1), base * factors[:, None]])
    file = written(tmp_path / "p.txt", "".join(f"a {word} {score}\n" for score, word in enumerate("bcdefghij")))
    assert len({cosine(vectors[0].tolist(), row.tolist()) for row in vectors[1:]}) > 1
    assert math.isnan(similarity_score(vectors, number("abcdefghij"), file).spearman)


def test_the_most_frequent_of_words_that_differ_in_capitals_stands_for_all(tmp_path: Path) -> None:
    vectors = torch.tensor([[1.0, 0], [0, 1], [1, 0.1], [0.1, 1]])  # for "x" in place of "X" it is -1
    pairs = written(tmp_path / "p.txt", "a x 1\na y 2\n")
    assert similarity_score(vectors, {"a": 0, "x": 2, "X": 1, "y": 3}, pairs).spearman == pytest.approx(1)
    vectors = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [-1, 1, 1], [-1, 1, 1.1]])
    words, questions = number(["a", "b", "c", "D", "d"]), written(tmp_path / "q.txt", "A B C D\n")
    assert analogies(vectors, words, questions)["total"] == Analogy(1, 1, 1)
    assert analogies(vectors, words | {"D": 4, "d": 3}, questions)["total"] == Analogy(1, 1, 1)
    assert analogies(vectors, words | {"e": 3, "D": 4, "d": 4}, questions)["total"] == Analogy(0, 1, 1)


def test_no_correlation_is_nan_and_not_zero(tmp_path: Path) -> None:
    for text, used in (("king queen 1\nx y 2", 1), ("x y 1\ny x 2", 0), ("king queen 1\nman woman 1\n", 2)):
        found = similarity_score(some(), number(), written(tmp_path / "p.txt", text))
        assert math.isnan(found.spearman)
        assert (found.used, found.all) == (used, 2)


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("\ufefftiger\tcat\t7.35\r\n\r\n", [("tiger", "cat", 7.35)]),
        ("word1,word2,score\ntiger,CAT,7.35\n", [("tiger", "cat", 7.35)]),
        ("old\tnew\tA\t1.58\t2.72\n", [("old", "new", 1.58)]),
        ("# a\n# b\nnew york\tcity\t1\n", [("new york", "city", 1.0)]),
        ("tiger cat 7.35\n", [("tiger", "cat", 7.35)]),
        ("tiger  cat\u00a07.35\n", [("tiger", "cat", 7.35)]),
        ("Word 1,Word 2,Human (mean)\nlove,sex,6.77\n", [("love", "sex", 6.77)]),  # as WordSim-353 is published
        ("new york, city ,1\n", [("new york", "city", 1.0)]),
        ("a, b\tc\t1\n", [("a, b", "c", 1.0)]),
    ],
)
def test_forms_of_pairs(tmp_path: Path, text: str, pairs: list[tuple[str, str, float]]) -> None:
    assert read_pairs(written(tmp_path / "pairs", text)) == pairs


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no pairs"),
        ("# only\nWord 1\tWord 2\tHuman\n", "has no pairs"),
        ("a b 1\nc d\n", r"line 2 of .*no two words and a score: c d"),
        ("w1 w2 score\na b\nc d 1\n", r"line 2 of"),
        ("a\tb\t1\n\tb\t1\n", r"line 2 of"),
        ("a b 1\nc d nan\n", r"line 2 of"),
        ("a b 1\nc d 7,35\n", r"line 2 of"),
        ("a,b,1\nnew york,1\n", r"line 2 of .*: new york,1"),
    ],
)
def test_wrong_pairs(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_pairs(written(tmp_path / "pairs", text))


# --- analogies


@pytest.mark.parametrize("block", [1, 2, 512])
@pytest.mark.parametrize("restrict", [None, 12, 4])
def test_analogies_are_their_definition(tmp_path: Path, block: int, restrict: int | None) -> None:
    file = written(tmp_path / "q.txt", QUESTIONS)
    right = 0
    for seed in range(8):
        vectors = some(dim=3, seed=seed)
        if seed % 2:  # Paris is to France as Rome is to Italy
            paris, france, rome = torch.nn.functional.normalize(vectors[4:7], dim=1)
            vectors[7] = france - paris + rome + 0.01 * vectors[7]
        found = analogies(vectors, number(), file, restrict, block)
        assert found == naive_analogies(WORDS, vectors, read_questions(file), restrict)
        right += found["total"].correct
    assert 4 <= right <= 20
    assert found["capitals"][1:] == ((2, 3) if restrict != 4 else (0, 3))
    assert found["gram7-past-tense"].used == (restrict is None)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_many_questions_in_blocks(tmp_path: Path, dtype: torch.dtype) -> None:
    """More candidates than a block holds, with answers that are near the target."""
    words = [f"w{i}" for i in range(150)]
    vectors = some(150, 6).to(dtype)
    unit = torch.nn.functional.normalize(vectors, dim=1)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(1)).view(25, 4).tolist()
    for i, (a, b, c, d) in enumerate(order):
        if i % 2:
            vectors[d] = (unit[b] - unit[a] + unit[c]) + 0.2 * unit[d]
    text = ": gram\n" + "".join(" ".join(words[i] for i in rows) + "\n" for rows in order)
    file = written(tmp_path / "q.txt", text)
    found = analogies(vectors, number(words), file, block=4)
    assert found == naive_analogies(words, vectors, read_questions(file))
    assert 8 <= found["total"].correct < 20


def test_question_words_may_not_answer(tmp_path: Path) -> None:
    vectors = torch.tensor([[1.0, 0], [1, 0.1], [1, 0.2], [0, 1]])  # c itself is nearest to b - a + c
    found = analogies(vectors, number("abcd"), written(tmp_path / "q.txt", "a b c d\na b c c\na b c b\n"))
    assert found["questions"] == Analogy(1, 3, 3)


def test_a_tie_is_no_answer(tmp_path: Path) -> None:
    vectors = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [-3, 1, 2], [-6, 2, 4], [0, 0, 0]])
    file = written(tmp_path / "q.txt", "a b c d\na b c f\n")
    assert analogies(vectors, number("abcdef"), file)["total"] == Analogy(0, 2, 2)
    assert analogies(torch.zeros(6, 3), number("abcdef"), file)["total"] == Analogy(0, 2, 2)


def test_no_question_is_known(tmp_path: Path) -> None:
    found = analogies(some(2), number("xy"), written(tmp_path / "q.txt", QUESTIONS))
    assert found["total"] == Analogy(0, 0, 6)
    assert math.isnan(found["total"].accuracy)


def test_errors_of_questions(tmp_path: Path) -> None:
    file = written(tmp_path / "q.txt", ": s\na b c d\na b c\n")
    with pytest.raises(InputError, match=r"line 3 of .*q\.txt has 3 words, not 4: a b c"):
        read_questions(file)
    with pytest.raises(InputError, match="has no questions"):
        read_questions(written(file, ": s\n\n"))
    with pytest.raises(InputError, match="absent cannot be read"):
        read_questions(tmp_path / "absent")
    file.write_bytes(b"a b c \xff\n")
    with pytest.raises(InputError, match="cannot be read"):
        read_questions(file)
    with pytest.raises(InputError, match=r"restrict \(0\)"):
        analogies(some(), number(), file, restrict=0)
    with pytest.raises(InputError, match=r"block \(0\)"):
        analogies(some(), number(), file, block=0)


def test_errors_of_vectors(tmp_path: Path) -> None:
    file, broken = written(tmp_path / "p.txt", PAIRS), some()
    broken[3, 1] = math.nan
    with pytest.raises(InputError, match="1 of 13 vectors are not finite"):
        similarity_score(broken, number(), file)
    with pytest.raises(InputError, match=r"vectors \[V, D\] wanted for 13 words, got \[12, 4\]"):
        similarity_score(some(12), number(), file)
    with pytest.raises(InputError, match=r"for 0 words"):
        analogies(some(), {}, file)


# --- nearest words


def test_neighbours_are_their_definition() -> None:
    vectors = some(dim=3)
    for own, word in enumerate(WORDS):
        scores = {other: cosine(vectors[own].tolist(), vectors[row].tolist()) for row, other in enumerate(WORDS)}
        expected = sorted((other for other in WORDS if other != word), key=lambda other: -scores[other])
        for k in (1, 3, 100):
            found = nearest_words(vectors, WORDS, word, k)
            assert [other for other, _ in found] == expected[:k]
            assert [value for _, value in found] == pytest.approx([scores[other] for other in expected[:k]])
    with pytest.raises(InputError, match="'zebra' is none of the 13 words"):
        nearest_words(vectors, WORDS, "zebra")
    with pytest.raises(InputError, match="k must be 1 or more, not 0"):
        nearest_words(vectors, WORDS, "king", 0)
    with pytest.raises(InputError, match="13 words have vectors"):
        nearest_words(vectors[:4], WORDS, "king")


# --- the figures together


def test_figures(tmp_path: Path) -> None:
    files = [written(tmp_path / f"{name}.x.tsv", PAIRS) for name in ("one", "two")]
    written(files[1], "zebra lion 3\n")
    questions = written(tmp_path / "q.txt", QUESTIONS + ": unknown\na b c d\n")
    vectors = some(dim=2, seed=1)
    found = word_scores(WORDS, vectors, files, questions)
    right = {
        name: Analogy(*counts) for name, counts in naive_analogies(WORDS, vectors, read_questions(questions)).items()
    }
    rho = naive_similarity(WORDS, vectors, read_pairs(files[0]))[0]
    expected = {"one_spearman": rho, "one_coverage": 0.8, "two_coverage": 0.0, "analogies_coverage": 5 / 7}
    expected |= {"analogies": right.pop("total").accuracy}
    expected |= {f"analogies_{name}": each.accuracy for name, each in right.items() if each.used}
    expected |= {"mean": (rho + expected["analogies"]) / 2}
    assert found == pytest.approx(expected)
    assert word_scores(WORDS, vectors, files)["mean"] == pytest.approx(rho)
    with pytest.raises(InputError, match="need different names, and these are one, one"):
        word_scores(WORDS, vectors, [files[0], files[0]])
    with pytest.raises(InputError, match="a file of word pairs, one of analogies, or both"):
        word_scores(WORDS, vectors)
    assert word_scores(WORDS, vectors, files[1:]) == {"two_coverage": 0.0}


@pytest.mark.parametrize(("name", "every"), [("wordsim353.tsv", 353), ("simlex999.txt", 999)])
def test_usual_pairs(name: str, every: int) -> None:
    pairs = read_pairs(known_file(name))
    assert len(pairs) == every
    assert all(0 <= score <= 10 for *_, score in pairs)
    words = sorted({word for a, b, _ in pairs for word in (a, b)})[::2]
    vectors = some(len(words))
    found = similarity_score(vectors, number(words), known_file(name))
    expected, used = naive_similarity(words, vectors, pairs)
    assert (found.used, found.all) == (used, every)
    assert found.spearman == pytest.approx(expected, abs=1e-12)


def test_usual_questions() -> None:
    file = known_file("questions-words.txt")
    questions = read_questions(file)
    sections = list(dict.fromkeys(section for section, _ in questions))
    assert len(questions) == 19544
    assert len(sections) == 14
    words = sorted({word for _, question in questions for word in question})
    found = analogies(some(len(words)), number(words), file)
    assert (found["semantic"].all, found["syntactic"].all, found["total"].used) == (8869, 10675, 19544)
    some_words = words[::9]
    few = analogies(some(len(some_words)), number(some_words), file)
    assert few == naive_analogies(some_words, some(len(some_words)), questions)


# --- the command


@pytest.fixture
def files(workplace: Path) -> list[str]:
    """Vectors, pairs and questions in the working folder; the words that name the latter on the command line."""
    save_vectors("v.bin", WORDS, some(dim=2, seed=1))
    written(Path("pairs.tsv"), PAIRS)
    written(Path("q.txt"), QUESTIONS)
    written(Path("unknown.tsv"), "zebra lion 3\n")
    return ["data.pairs=pairs.tsv", "data.analogies=q.txt", "trainer.accelerator=cpu"]


def test_command(evaluate: Command, files: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    words = ["checkpoint=v.bin", "protocol=words", *files, "protocol.neighbours=[king]", "+protocol.k=2"]
    assert evaluate(*words, "hydra.run.dir=a") == 0
    vectors = some(dim=2, seed=1).float()
    expected = word_scores(WORDS, vectors, ["pairs.tsv"], "q.txt")
    assert figures("a") == pytest.approx(expected)
    out = capfd.readouterr().out
    assert "v.bin on 13 words, vectors of 2 numbers" in out
    near = ", ".join(f"{word} {value:.2f}" for word, value in nearest_words(vectors, WORDS, "king", 2))
    assert f"king: {near}" in out
    rows = dict(line.split() for line in out.splitlines() if line.startswith(("pairs_", "analogies", "mean")))
    assert {name: float(value) for name, value in rows.items()} == pytest.approx(expected, rel=1e-3)
    assert Path("a/environment.json").is_file()
    assert Path("a/config.yaml").is_file()


def test_nearest_words_need_no_files(workplace: Path, evaluate: Command, capfd: pytest.CaptureFixture[str]) -> None:
    """Words beyond ASCII need no quotes, and neither does a path below ~. An unknown word is passed over."""
    save_vectors("größe.bin", ["größe", "länge", *WORDS], torch.cat([some(), some()[:2]]))
    words = ["protocol=words", "trainer.accelerator=cpu", "evaluation.neighbours=[größe,zebra,king]"]
    assert evaluate("checkpoint=größe.bin", *words, "hydra.run.dir=a") == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[1:4]] == ["größe", "zebra", "king"]
    assert "none of the 15 words" in lines[2]
    assert figures("a") == {}


def test_how_vectors_are_printed() -> None:
    many = tuple(f"word{i}" for i in range(1300))
    assert repr(WordEmbeddings(many, torch.zeros(1300, 5))) == "WordEmbeddings(1,300 words, 5 dimensions)"


def test_sums_and_differences_of_words() -> None:
    vectors = some(dim=3)
    found = WordEmbeddings(WORDS, vectors.float())
    unit = torch.nn.functional.normalize(vectors, dim=1)
    number = {word: row for row, word in enumerate(WORDS)}
    positive, negative = ["king", "paris"], ["queen"]
    target = torch.nn.functional.normalize(sum(unit[number[word]] for word in positive) - unit[number["queen"]], dim=0)
    scores = {word: float(unit[row] @ target) for word, row in number.items() if word not in (*positive, *negative)}
    near = found.most_similar(positive, negative, k=4)
    assert [word for word, _ in near] == sorted(scores, key=lambda word: -scores[word])[:4]
    assert dict(near) == pytest.approx({word: scores[word] for word, _ in near}, abs=1e-6)
    assert found.similarity("king", "queen") == pytest.approx(float(unit[number["king"]] @ unit[number["queen"]]))
    with pytest.raises(InputError, match="neither a positive nor a negative word"):
        found.most_similar([])


def test_command_on_a_run_and_lists(evaluate: Command, files: list[str]) -> None:
    run = Path("run")
    run.mkdir()
    save_vectors(run / "vectors.safetensors", WORDS, some(dim=2, seed=1))
    written(Path("more.tsv"), "king queen 3\nrome paris 4\n")
    lists = ["data.pairs=[pairs.tsv,more.tsv]", "protocol=words", "trainer.accelerator=cpu"]
    assert evaluate("checkpoint=run", *lists, "hydra.run.dir=a") == 0
    assert set(figures("a")) == {"pairs_spearman", "pairs_coverage", "more_spearman", "more_coverage", "mean"}
    assert evaluate("checkpoint=run", *files, "protocol=words", "protocol.restrict=8", "hydra.run.dir=b") == 0
    assert figures("b")["analogies_coverage"] == pytest.approx(4 / 6)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["checkpoint=v.bin"], ["measured on a file of word pairs"]),
        (["checkpoint=none.bin", "data.pairs=pairs.tsv"], ["none.bin does not exist"]),
        (["checkpoint=none.ckpt", "data.pairs=pairs.tsv"], ["none.ckpt does not exist"]),
        (["checkpoint=pairs.tsv", "data.pairs=pairs.tsv"], ["are files of .txt", "not 'pairs.tsv'"]),
        (["checkpoint=.", "data.pairs=pairs.tsv"], ["has no vectors.safetensors"]),
        (["checkpoint=q.txt", "data.pairs=pairs.tsv"], ["q.txt holds no word vectors"]),
        (["checkpoint=v.bin", "data.pairs=none.tsv"], ["none.tsv cannot be read"]),
        (["checkpoint=v.bin", "data.pairs=pairs.tsv", "metric=analogies"], ["none of the metrics", "pairs_spearman"]),
        (["checkpoint=v.bin", "data.pairs=unknown.tsv"], ["too few of the words", "among these 13"]),
        (["checkpoint=v.bin", "data=digits"], ["data.pairs and data.analogies, not data._target_"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_errors_of_the_command(
    evaluate: Command, files: list[str], capfd: pytest.CaptureFixture[str], words: list[str], parts: list[str]
) -> None:
    assert evaluate("protocol=words", *words, "trainer.accelerator=cpu", "hydra.run.dir=a") == 2
    err = capfd.readouterr().err
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert all(part in line for part in parts)


def test_vectors_of_a_run_or_a_file(tmp_path: Path) -> None:
    vectors = some().float()
    for name in ("vectors.safetensors", "v.txt", "v.vec", "v.bin"):
        save_vectors(tmp_path / name, WORDS, vectors)
        words, found = word_vectors(tmp_path / name)
        assert words == WORDS
        assert torch.equal(found, vectors)
    assert torch.equal(word_vectors(tmp_path)[1], vectors)
