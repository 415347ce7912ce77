"""Exact perplexity against a loop over the words and classes of a text in float64."""

import math

import pytest
import torch
from torch import Tensor

from contrast.data.text.vocabulary import BORDER
from contrast.encoders import GRU
from contrast.errors import InputError
from contrast.evaluation.perplexity import normalised, over_text, perplexity, streams
from contrast.heads import NCE, AdaptiveSoftmax, InfoNCE
from contrast.negatives import Table, Targets, Tree
from contrast.samplers import Poisson, Unigram
from contrast.words import LanguageModel

V, HIDDEN = 11, 5
COUNTS = torch.tensor([12, 40, 30, 20, 15, 10, 8, 6, 5, 3, 1])  # the first is the end of a line


def model(negatives: object, head: object, **options: object) -> LanguageModel:
    torch.manual_seed(0)
    made = LanguageModel(GRU(V, 4, HIDDEN), negatives, head, COUNTS, torch.optim.Adagrad, frequencies=False, **options)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return made.double()


def outputs() -> dict[str, tuple[object, object]]:
    dim, noise = HIDDEN + 1, Unigram(COUNTS, power=0.75)
    return {
        "full_softmax": (Table(V, dim), InfoNCE(1.0, cosine=False)),
        "cosine": (Table(V, dim), InfoNCE(0.2)),
        "sampled_softmax": (Table(V, dim, noise, 4, sparse=True), InfoNCE(1.0, cosine=False)),
        "nce": (Table(V, dim, noise, 4), NCE(1.0, cosine=False, bias=-0.5)),
        "negative_sampling": (Table(V, dim, noise, 4), NCE(1.0, cosine=False, correction=False)),
        "poisson": (Table(V, dim, Poisson(COUNTS / 50)), NCE(1.0, cosine=False, correction=False)),
        "hierarchical_softmax": (Tree(COUNTS, dim), NCE(1.0, cosine=False)),
        "adaptive_softmax": (Targets(), AdaptiveSoftmax(dim, V, [3, 7], div_value=2.0)),
    }


def text(length: int) -> Tensor:
    ids = torch.randint(V - 1, (length,), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    ids[5::7] = BORDER
    return ids


def naive_scores(made: LanguageModel, name: str, query: Tensor) -> list[float]:
    """Scores of every class, whose softmax is the model."""
    negatives, head = made.negatives, made.head
    if name == "hierarchical_softmax":
        return [float(value) for value in negatives.log_prob(query[None])[0].detach()]
    if name == "adaptive_softmax":
        return [float(value) for value in head.log_prob(query[None])[0].detach()]
    found = []
    for vector in negatives.vectors.detach():
        score = sum(float(a) * float(b) for a, b in zip(query, vector, strict=True))
        if name == "cosine":
            score /= float(query.norm() * vector.norm()) * 0.2
        found.append(score - 0.5 * (name == "nce"))
    return found


def naive(made: LanguageModel, name: str, ids: Tensor, count: int, length: int) -> dict[str, float]:
    """Word after word, each stream by itself."""
    classes = [i + 1 for i in ids.tolist()]  # the end of a line, -1, is class 0
    log_q = [0.0] * V
    if name == "negative_sampling":
        log_q = made.negatives.sampler.log_prob(torch.arange(V)).tolist()
    if name == "poisson":
        log_q = (COUNTS / 50).log().tolist()
    losses, with_log_q, log_zs, unigram = [], [], [], []
    for start in range(0, len(classes), length):
        state, before = None, classes[start - 1] if start else 0
        for word in classes[start : start + length]:
            features, state = made.encoder(torch.tensor([[before]]), state)
            scores = naive_scores(made, name, features[0, 0].detach())
            log_zs.append(math.log(math.fsum(math.exp(score) for score in scores)))
            losses.append(log_zs[-1] - scores[word])
            corrected = [score + q for score, q in zip(scores, log_q, strict=True)]
            log_z = math.log(math.fsum(math.exp(score) for score in corrected))
            with_log_q.append(log_z - corrected[word])
            unigram.append(-math.log(int(COUNTS[word]) / int(COUNTS.sum())))
            before = word
    mean = math.fsum(log_zs) / len(log_zs)
    return {
        "perplexity": math.exp(math.fsum(losses) / len(losses)),
        "perplexity_with_log_q": math.exp(math.fsum(with_log_q) / len(losses)),
        "log_z": mean,
        "log_z_std": math.sqrt(math.fsum((value - mean) ** 2 for value in log_zs) / len(log_zs)),
        "unigram_perplexity": math.exp(math.fsum(unigram) / len(losses)),
        "held_out_words": len(losses),
    }


@pytest.mark.parametrize("name", outputs())
def test_perplexity_is_that_of_the_definition(name: str) -> None:
    made = model(*outputs()[name], streams=3)
    ids = text(47)  # three streams of 16, the last one short of a word
    expected = naive(made, name, ids, 3, 16)
    found = made.held_out(ids, max_words=1000)
    more = {"nce": {"log_z", "log_z_std"}}
    more["negative_sampling"] = more["poisson"] = more["nce"] | {"perplexity_with_log_q"}
    assert set(found) == {"perplexity", "unigram_perplexity", "held_out_words"} | more.get(name, set())
    assert found == pytest.approx({key: expected[key] for key in found}, rel=1e-6)  # log_p and log_q are float32


def test_at_most_so_many_words_of_every_stream() -> None:
    found = model(*outputs()["full_softmax"], streams=3).held_out(text(47), max_words=20)
    assert found["held_out_words"] == 18


def test_the_state_goes_from_chunk_to_chunk() -> None:
    made, ids = model(*outputs()["full_softmax"]), torch.arange(40) % V
    encode = lambda words, state: made.encoder(words, state)  # noqa: E731
    parts = [over_text(encode, made.next_word().log_probs, ids, 0, count=2, chunk=chunk) for chunk in (1, 7, 100)]
    means = [perplexity(part["log_prob"]) for part in parts]
    assert means == pytest.approx([means[0]] * 3, rel=1e-12)


def test_streams_predict_every_word_once() -> None:
    before, there = streams(torch.arange(7), 3, first=9)
    assert before.tolist() == [[9, 0, 1], [2, 3, 4], [5, 9, 9]]
    assert there.tolist() == [[0, 1, 2], [3, 4, 5], [6, -1, -1]]


@pytest.mark.parametrize("block", [1, 4, 100])
def test_blocks_of_classes_do_not_show(block: int) -> None:
    generator = torch.Generator().manual_seed(2)
    query, vectors = (torch.randn(n, 3, generator=generator, dtype=torch.float64) * 5 for n in (6, 13))
    offsets = torch.stack([torch.zeros(13), torch.linspace(-9, 0, 13)]).double()
    ids = torch.tensor([0, 12, 3, 3, 7, 4])
    log_prob, log_z = normalised(lambda q, v: q @ v.T, query, ids, vectors, offsets, block)
    for row, offset in enumerate(offsets):
        scores = query @ vectors.T + offset
        torch.testing.assert_close(log_z[row], scores.logsumexp(1))
        torch.testing.assert_close(log_prob[row], scores.log_softmax(1).gather(1, ids[:, None]).squeeze(1))


def test_text_without_a_word() -> None:
    with pytest.raises(InputError, match="at least 1 word"):
        model(*outputs()["full_softmax"]).held_out(torch.empty(0, dtype=torch.int32), 10)


@pytest.mark.parametrize("wrong", [-1, 13])
def test_a_class_that_is_none_does_not_wrap_around(wrong: int) -> None:
    query, vectors, offsets = torch.randn(3, 4), torch.randn(13, 4), torch.zeros(1, 13)
    with pytest.raises(InputError, match=r"must be in 0\.\.12"):
        normalised(lambda q, v: q @ v.T, query, torch.tensor([0, wrong, 2]), vectors, offsets)


def test_words_of_every_type_of_whole_numbers() -> None:
    made, ids = model(*outputs()["full_softmax"]), torch.arange(40) % V
    expected = over_text(made.encoder, made.next_word().log_probs, ids, 0)["log_prob"]
    for given in (ids.to(torch.uint8), ids.float(), ids.numpy()):
        assert torch.equal(over_text(made.encoder, made.next_word().log_probs, given, 0)["log_prob"], expected)
    with pytest.raises(InputError, match="most=0"):
        over_text(made.encoder, made.next_word().log_probs, ids, 0, most=0)
    with pytest.raises(InputError, match="2 of 40 are below"):
        over_text(made.encoder, made.next_word().log_probs, ids.index_fill(0, torch.tensor([3, 5]), -1), 0)
