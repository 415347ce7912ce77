"""Whether word vectors have learned anything: their loss beside that of an untrained model, on the same pairs."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor

from contrast.errors import InputError
from contrast.heads.scalars import as_temperature
from contrast.rng import generator
from contrast.words.blocks import cut
from contrast.words.descent import Descent
from contrast.words.model import WordVectors

PASSAGES = 8  # updates' worth of text that is measured
LEAST = 0.01  # share by which the loss must have fallen


class Gain(NamedTuple):
    """Mean losses over pairs of words; `error` is the standard error of their difference, over passages of text."""

    loss: float
    untrained: float
    error: float
    pairs: int


def gain(model: WordVectors, ids: Tensor) -> Gain:
    """The gain of a trained model on the beginning of a text, ids [T] with -1 between lines.

    An untrained model gives all pairs the score 0, as a head of infinite temperature does. Both losses have the same
    pairs and the same noise. NaN where there are no pairs.
    """
    size = model.block * model.blocks
    text = cut(
        ids.long().to(model.device), model.keep, model.window, size, generator(model.seed, 0), model.shrink_windows
    )
    trained = copy.deepcopy(model.head).eval()
    untrained = copy.deepcopy(trained)
    untrained.temperature = as_temperature(1e30)
    still = Descent(0.0, None, torch.zeros(0, device=model.device))
    rows = []  # of each passage: loss, untrained loss, pairs
    for n in range(min(text.passages, PASSAGES)):
        losses = []
        for head in (trained, untrained):
            random = generator(model.seed, n + 1)
            drawn = model.negatives.draw(model.blocks, random) if model.has_closed_form else None
            found = model.update(text.passage(n), head, drawn, random, still, with_loss=True)
            assert found is not None
            losses.append(float(found[0]))
            of_pairs = float(found[1])
        rows.append([*losses, of_pairs])
    loss, base, pairs = torch.tensor(rows, dtype=torch.float64).view(-1, 3).unbind(dim=1)
    number, count = pairs.sum(), len(rows)
    difference = base - loss
    residual = difference - difference.sum() / number * pairs  # of a ratio estimate
    error = (residual.square().sum() * count / max(1, count - 1)).sqrt() / number
    return Gain(float(loss.sum() / number), float(base.sum() / number), float(error), int(number))


def check_learned(model: WordVectors, ids: Tensor, words: int, cut_short: bool = False) -> None:
    """InputError if a trained model is no better than an untrained one, or has no pairs to train on.

    ids, words  as `gain`; how many words there are in an epoch
    cut_short   the training was a trial of a few steps, which need not learn
    """
    found, kept = gain(model, ids), model.kept_share
    number = f"{round(kept * words):,} of {words:,} words in an epoch ({kept:.1%})"
    of_words = f"subsample={model.subsample:g} keeps {number}"
    all_of_them = "" if kept > 0.99 else ", model.subsample=0 keeps all"
    if not found.pairs:
        raise InputError(f"no pairs of words were left to train on: {of_words}{all_of_them}")
    if not cut_short and not found.untrained - found.loss >= max(LEAST * found.untrained, 2 * found.error):
        advice = "more epochs or a higher" if found.loss <= found.untrained else "a lower"
        raise InputError(
            f"nothing was learned: the loss is {found.loss:.4f} and that of an untrained model {found.untrained:.4f}, "
            f"over {found.pairs:,} pairs; {of_words}{all_of_them}, and {advice} lr than {model.lr:g} may teach more"
        )
