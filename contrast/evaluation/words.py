"""Evaluation of word vectors: agreement with human judgements of similarity, analogies, nearest words.

V words, D dimensions, P pairs, Q questions. `number` maps a word to its row of the vectors; lower rows are the more
frequent words. Questions and vocabulary are compared in small letters; of words that differ only in case, the most
frequent one represents all (as gensim's `case_insensitive`).
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from contrast.encoders.subwords import Subwords
from contrast.errors import InputError
from contrast.evaluation.features import check_finite
from contrast.evaluation.retrieval import rounding
from contrast.evaluation.word_files import read_pairs, read_questions


class Similarity(NamedTuple):
    """Rank correlation with human scores, -1 to 1, over the `used` of `all` pairs whose two words are known.

    nan where it is not defined: with fewer than two pairs, or if all of their scores are equal.
    """

    spearman: float
    used: int
    all: int


class Analogy(NamedTuple):
    """Questions answered correctly, among the `used` of `all` whose four words are known."""

    correct: int
    used: int
    all: int

    @property
    def accuracy(self) -> float:
        """Share of the questions used, 0 to 1; nan if there are none."""
        return self.correct / self.used if self.used else math.nan


@torch.no_grad()
def similarity_score(vectors: Tensor, number: Mapping[str, int], file: str | Path) -> Similarity:
    """Spearman's correlation, with average ranks, of the cosines of word pairs with the scores in `file`.

    vectors [V, D]. The file has a pair a line, `read_pairs`: WordSim-353 (Finkelstein et al. 2002), SimLex-999 (Hill
    et al. 2015). Pairs with an unknown word are left out and counted. The cosine of a vector of zeros is 0.

    Raises InputError as `read_pairs`, and for vectors that are not [V, D] or not finite.
    """
    from scipy.stats import spearmanr  # imported here: it takes a second, and encoders of images never need it

    _check(vectors, number, "similarity")
    pairs, known = read_pairs(file), _lowercase(number)
    used = [(known[a], known[b], score) for a, b, score in pairs if a in known and b in known]
    undefined = Similarity(math.nan, len(used), len(pairs))
    if len(used) < 2:
        return undefined
    *rows, score = torch.tensor(used, dtype=torch.float64).T  # [P] each
    first, second = (F.normalize(vectors[row.long().to(vectors.device)].double(), dim=1) for row in rows)  # [P, D]
    # rounded, so that equal cosines have equal ranks whatever their last digits
    cosine = (first * second).sum(dim=1).cpu().round(decimals=12)
    if len(cosine.unique()) == 1 or len(score.unique()) == 1:
        return undefined
    return undefined._replace(spearman=float(spearmanr(cosine.numpy(), score.numpy()).statistic))


@torch.no_grad()
def analogies(
    vectors: Tensor,
    number: Mapping[str, int],
    file: str | Path,
    restrict: int | None = None,
    block: int = 512,
) -> dict[str, Analogy]:
    """Questions "a is to b as c is to d" of each section of `file`, and of "semantic", "syntactic" and "total".

    vectors [V, D]. The answer is the word whose vector has the largest cosine with b - a + c, all of length 1, other
    than a, b and c (3CosAdd: Mikolov et al. 2013, "Linguistic regularities", section 4; Levy and Goldberg 2014, eq. 1).
    An answer that ties with another word is wrong. Sections are syntactic if their name begins with "gram", as in
    questions-words.txt, and semantic if not.

    restrict  only the first so many words take part, as word2vec's compute-accuracy does by default with 30,000;
              None: all. Results with and without are not comparable
    block     questions at a time; no tensor has more than [block, 16 block] numbers, or D rows of these

    Raises InputError as `read_questions`, for vectors that are not [V, D] or not finite, and for restrict or block
    below 1.
    """
    _check(vectors, number, "analogies")
    if block < 1 or (restrict is not None and restrict < 1):
        raise InputError(f"analogies: restrict ({restrict}) and block ({block}) must be 1 or more")
    known, questions = _lowercase(number, restrict), read_questions(file)
    rows = torch.tensor([[known.get(word, -1) for word in words] for _, words in questions])  # [Q, 4]
    used = (rows >= 0).all(dim=1)
    correct = torch.zeros_like(used)
    candidates = torch.tensor(sorted(known.values()), device=vectors.device)  # [C]
    bar = tqdm(total=int(used.sum()), desc="analogies", unit="question", delay=1, leave=False)
    with bar:
        for part in used.nonzero().squeeze(1).split(block) if used.any() else ():
            correct[part] = _solved(vectors, candidates, rows[part].to(vectors.device), 16 * block).cpu()
            bar.update(len(part))
    names = [*(section for section, _ in questions), "semantic", "syntactic", "total"]
    counts = {name: torch.zeros(3, dtype=torch.int64) for name in names}
    for (section, _), one in zip(questions, torch.stack([correct, used, torch.ones_like(used)], dim=1), strict=True):
        for name in {section, "syntactic" if section.startswith("gram") else "semantic", "total"}:
            counts[name] += one
    return {name: Analogy(*count.tolist()) for name, count in counts.items()}


def word_scores(
    words: Sequence[str],
    vectors: Tensor,
    pairs: Sequence[str | Path] = (),
    questions: str | Path | None = None,
    restrict: int | None = None,
    undefined: bool = False,
    subwords: Subwords | None = None,
) -> dict[str, float]:
    """Metrics of the vectors [V, D] of `words` [V], the most frequent first, on files of pairs and one of questions.

    FILE_spearman, FILE_coverage   of each file of pairs, FILE.tsv: `similarity_score`; the share of its pairs used
    FILE_unknown                   with `subwords`: the share of its pairs that have a word which is none of `words`,
                                   and whose vector is that of its n-grams
    analogies, analogies_coverage  `analogies` with `restrict`: accuracy over all questions used; the share used
    analogies_SECTION              accuracy of each section, and of "semantic" and "syntactic"
    mean                           of the Spearman correlations and the accuracy over all questions

    A metric that is not defined, such as the accuracy of a section of which no question can be used, is left out, or
    nan with `undefined`.
    Raises InputError for no files, two files of pairs with one name, and as `similarity_score` and `analogies`.
    """
    if not pairs and questions is None:
        raise InputError("word vectors are measured on a file of word pairs, one of analogies, or both")
    number = {word: row for row, word in enumerate(words)}
    names = [Path(file).name.split(".")[0] for file in pairs]
    if len(set(names)) < len(names):
        raise InputError(f"files of pairs need different names, and these are {', '.join(names)}")
    scores, unknown, known = {}, {}, {word.lower() for word in words}
    for name, file in zip(names, pairs, strict=True):
        scores[name] = similarity_score(vectors, number, file)
        if subwords is not None:
            unknown_words = [word for pair in read_pairs(file) for word in pair[:2] if word not in known]
            more, of_all = subwords.extend(words, vectors, unknown_words)
            with_unknown = similarity_score(of_all, {word: row for row, word in enumerate(more)}, file)
            unknown[f"{name}_unknown"] = (with_unknown.used - scores[name].used) / with_unknown.all
            scores[name] = with_unknown
    metrics = {f"{name}_spearman": score.spearman for name, score in scores.items()}
    main = list(metrics.values())
    metrics |= {f"{name}_coverage": score.used / score.all for name, score in scores.items()} | unknown
    if questions is not None:
        sections = analogies(vectors, number, questions, restrict)
        total = sections.pop("total")
        metrics |= {"analogies": total.accuracy, "analogies_coverage": total.used / total.all}
        metrics |= {f"analogies_{name}": section.accuracy for name, section in sections.items()}
        main.append(total.accuracy)
    defined = [value for value in main if not math.isnan(value)]
    metrics["mean"] = sum(defined) / len(defined) if defined else math.nan
    return {name: value for name, value in metrics.items() if undefined or not math.isnan(value)}


def score_names(pairs: Sequence[str | Path] = (), questions: str | Path | None = None) -> set[str]:
    """Names of the metrics that `word_scores` gives on these files, as far as they are defined.

    Reads the files: raises InputError for one that cannot be read, and for two files of pairs with one name.
    """
    if not pairs and questions is None:
        return set()
    return set(word_scores([""], torch.zeros(1, 1), pairs, questions, undefined=True))


@torch.no_grad()
def nearest_words(
    vectors: Tensor,
    words: Sequence[str],
    positive: str | Sequence[str],
    k: int = 10,
    negative: str | Sequence[str] = (),
) -> list[tuple[str, float]]:
    """The k words whose vectors have the largest cosine with a target, and these cosines.

    vectors [V, D] are those of `words` [V].

    The target is the sum of the vectors of `positive` less those of `negative`, all of length 1; these words are no
    answers (3CosAdd, as in `analogies`). k above the number of answers is cut.

    Raises InputError for a word that is not in `words`, no words, and k below 1.
    """
    added, subtracted = as_list(positive), as_list(negative)
    if len(words) != len(vectors) or vectors.ndim != 2:
        raise InputError(f"nearest words: {len(words)} words have vectors {list(vectors.shape)}, not [V, D]")
    if k < 1:
        raise InputError(f"nearest words: k must be 1 or more, not {k}")
    if not added and not subtracted:
        raise InputError("nearest words: neither a positive nor a negative word")
    for word in (*added, *subtracted):
        if word not in words:
            raise InputError(f"'{word}' is none of the {len(words):,} words")
    rows = [words.index(word) for word in (*added, *subtracted)]
    sign = torch.tensor([1.0] * len(added) + [-1.0] * len(subtracted), dtype=torch.float64, device=vectors.device)
    target = sign @ F.normalize(vectors[rows].double(), dim=1)  # [n] x [n, D] -> [D]
    unit = F.normalize(vectors if vectors.dtype == torch.float64 else vectors.float(), dim=1)
    cosine = unit @ F.normalize(target, dim=0).to(unit)  # [V, D] x [D] -> [V]
    cosine[rows] = -math.inf
    best, rows_of_best = cosine.topk(min(k, len(words) - len(set(rows))))
    return [(words[row], value) for row, value in zip(rows_of_best.tolist(), best.tolist(), strict=True)]


def neighbour_lines(
    vectors: Tensor, words: Sequence[str], queries: Sequence[str | int], k: int, subwords: Subwords | None = None
) -> list[str]:
    """For each word of `queries` a line of its k nearest words; an unknown word has a line that says so."""
    known = set(words)
    lines = []
    for word in map(str, queries):  # a configuration has 150 as a number
        more, of_all = (words, vectors) if subwords is None else subwords.extend(words, vectors, [word])
        is_known = word in known or len(more) > len(words)
        near = nearest_words(of_all, more, word, k) if is_known else ()
        listed = ", ".join(f"{other} {cosine:.2f}" for other, cosine in near)
        lines.append(f"{word}: {listed}" if is_known else f"{word}: none of the {len(words):,} words")
    return lines


class WordData(NamedTuple):
    """Word vectors [V, D], the words of their rows, the most frequent first, and the files to evaluate them on."""

    words: Sequence[str]
    vectors: Tensor
    pairs: str | Sequence[str] | None = None
    analogies: str | None = None
    subwords: Subwords | None = None


def as_list(files: str | Sequence[str] | None) -> list[str]:
    """The names of files that a configuration gives as one name, as a list of names or not at all."""
    return [files] if isinstance(files, str) else list(files or ())


def words(
    data: WordData, restrict: int | None = None, neighbours: Sequence[str | int] = (), k: int = 10
) -> dict[str, float]:
    """The protocol: `word_scores` of `data`; prints the k nearest words of each of `neighbours`.

    k  nearest words that are printed
    """
    pairs = as_list(data.pairs)
    if restrict is not None and restrict < 1:
        raise InputError(f"analogies: restrict ({restrict}) must be 1 or more")
    near = neighbour_lines(data.vectors, data.words, neighbours, k, data.subwords)
    metrics: dict[str, float] = {}
    if pairs or data.analogies is not None or not near:
        metrics = word_scores(data.words, data.vectors, pairs, data.analogies, restrict, subwords=data.subwords)
        if "mean" not in metrics:
            raise InputError(f"too few of the words to measure are among these {len(data.words):,}: nothing is defined")
    print("\n".join(near))
    return metrics


def _solved(vectors: Tensor, candidates: Tensor, words: Tensor, block: int) -> Tensor:
    """Whether the fourth of the words [q, 4] of a question is nearer than all other candidates [C], [q] bool."""
    a, b, c, d = F.normalize(vectors[words].double(), dim=2).unbind(dim=1)  # [q, D] each
    target = F.normalize(b - a + c, dim=1)
    best = (target * d).sum(dim=1) - rounding(vectors.shape[1])  # [q]
    wrong = (words[:, :3] == words[:, 3:]).any(dim=1)  # a, b and c may not answer
    for rows in candidates.split(block):
        cosine = target @ F.normalize(vectors[rows].double(), dim=1).T  # [q, D] x [c, D] -> [q, c]
        place = torch.searchsorted(rows, words).clamp(max=len(rows) - 1)  # [q, 4], where these words would be
        present = rows[place] == words
        cosine[present.nonzero()[:, 0], place[present]] = -math.inf
        wrong |= cosine.amax(dim=1) >= best
    return ~wrong


def _lowercase(number: Mapping[str, int], restrict: int | None = None) -> dict[str, int]:
    """The row of each word in small letters, among the rows below `restrict`; the lowest of words that become equal."""
    rows = sorted(((row, word) for word, row in number.items() if restrict is None or row < restrict), reverse=True)
    return {word.lower(): row for row, word in rows}


def _check(vectors: Tensor, number: Mapping[str, int], what: str) -> None:
    if vectors.ndim != 2 or not number or not 0 <= max(number.values()) < len(vectors):
        raise InputError(f"{what}: vectors [V, D] wanted for {len(number)} words, got {list(vectors.shape)}")
    check_finite(vectors, what, "vectors")
