"""Whether word vectors have learned anything: their loss beside that of an untrained model, and on shuffled text."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor

from contrast.errors import InputError
from contrast.heads.scalars import as_temperature
from contrast.rng import generator
from contrast.words.blocks import Passages, cut
from contrast.words.descent import Descent
from contrast.words.model import WordVectors

PASSAGES = 8  # updates' worth of text that is measured
LEAST = 0.01  # share of an untrained model's loss by which the loss must be lower


class Gain(NamedTuple):
    """Mean losses over pairs of words, and the standard errors of their differences from `loss`, over passages of text.

    loss       of the model
    untrained  of a model that gives every pair the score 0
    shuffled   of the model on the same words in a random order: it has learned how often words occur, and no more, if
               this is as low
    """

    loss: float
    untrained: float
    untrained_error: float
    shuffled: float
    shuffled_error: float
    pairs: int

    def is_lower(self, than: float, error: float) -> bool:
        return than - self.loss >= max(LEAST * self.untrained, 2 * error)


def gain(model: WordVectors, ids: Tensor) -> Gain:
    """The gain of a trained model on the beginning of a text, ids [T] with -1 between lines.

    An untrained model gives all pairs the score 0, as a head of infinite temperature does. All losses have the same
    number of pairs and the same noise. NaN where there are no pairs.
    """
    size = model.block * model.blocks
    text = cut(
        ids.long().to(model.device), model.keep, model.window, size, generator(model.seed, 0), model.shrink_windows
    )
    trained = copy.deepcopy(model.head).eval()
    untrained = copy.deepcopy(trained)
    untrained.temperature = as_temperature(1e30)
    still = Descent(0.0, None, torch.zeros(0, device=model.device))
    in_disorder = shuffled(text, min(text.passages, PASSAGES), generator(model.seed, PASSAGES + 1))
    rows = []  # of each passage: loss, untrained loss, loss in disorder, pairs
    for n in range(min(text.passages, PASSAGES)):
        losses = []
        for head, words in ((trained, text), (untrained, text), (trained, in_disorder)):
            random = generator(model.seed, n + 1)
            drawn = model.negatives.draw(model.blocks, random) if model.has_closed_form else None
            found = model.update(words.passage(n), head, drawn, random, still, with_loss=True)
            assert found is not None
            losses.append(float(found[0]))
            of_pairs = float(found[1])
        rows.append([*losses, of_pairs])
    *sums, pairs = torch.tensor(rows, dtype=torch.float64).view(-1, 4).unbind(dim=1)
    number, count = pairs.sum(), len(rows)

    def beside(other: Tensor) -> tuple[float, float]:
        """The mean of another loss, and the standard error of its difference."""
        difference = other - sums[0]
        residual = difference - difference.sum() / number * pairs  # of a ratio estimate
        error = (residual.square().sum() * count / max(1, count - 1)).sqrt() / number
        return float(other.sum() / number), float(error)

    return Gain(float(sums[0].sum() / number), *beside(sums[1]), *beside(sums[2]), int(number))


def shuffled(text: Passages, passages: int, random: torch.Generator) -> Passages:
    """The text with the words of its first passages in a random order. Lines and contexts have the same lengths."""
    places = text.reach[: 2 * text.window + passages * text.size].nonzero().flatten()
    ids = text.ids.clone()
    ids[places] = ids[places[torch.randperm(len(places), generator=random).to(places.device)]]
    return text._replace(ids=ids)


def check_learned(model: WordVectors, ids: Tensor, words: int, cut_short: bool = False) -> str:
    """InputError if a trained model is no better than an untrained one, or has no pairs to train on.

    Returns a warning where the model has learned hardly more than how often words occur, and "" elsewhere.

    ids, words  as `gain`; how many words there are in an epoch
    cut_short   the training was a trial of a few steps, which need not learn
    """
    found, kept = gain(model, ids), model.kept_share
    number = f"{round(kept * words):,} of {words:,} words in an epoch ({kept:.1%})"
    of_words = f"subsample={model.subsample:g} keeps {number}"
    all_of_them = "" if kept > 0.99 else ", model.subsample=0 keeps all"
    if not found.pairs:
        raise InputError(f"no pairs of words were left to train on: {of_words}{all_of_them}")
    if cut_short:
        return ""
    if not found.is_lower(found.untrained, found.untrained_error):
        advice = "more epochs or a higher" if found.loss <= found.untrained else "a lower"
        raise InputError(
            f"nothing was learned: the loss is {found.loss:.4f} and that of an untrained model {found.untrained:.4f}, "
            f"over {found.pairs:,} pairs; {of_words}{all_of_them}, and {advice} lr than {model.lr:g} may teach more"
        )
    if not found.is_lower(found.shuffled, found.shuffled_error):
        return (
            "warning: the vectors say hardly more than how often words occur: the loss is "
            f"{found.loss:.4f}, and on the same words in a random order {found.shuffled:.4f}; more text or more epochs "
            "may teach more, unless the order is random"
        )
    return ""
