"""A trained language model of a run: probabilities of the words of a text, its perplexity, and words that may follow.

N words of a text, V classes: the end of a line, and then the words of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from torch import Tensor, nn

from contrast.config.old_names import current
from contrast.config.trust import Config, Trust, from_file
from contrast.data.text.corpus import Corpus, corpus
from contrast.data.text.split import END
from contrast.data.text.tokenizer import splitter
from contrast.data.text.vocabulary import UNKNOWN, ids_of
from contrast.encoders.pretrained import Checkpoint
from contrast.errors import InputError
from contrast.evaluation.language import NextWord, next_word
from contrast.evaluation.perplexity import perplexity

END_OF_LINE = "\n"
SPLITTING = {"tokenizer": None, "keep_case": False, "apostrophes": False}
READING = {**SPLITTING, "unknown": "drop", "unit": "line"}  # arguments of `corpus` that hold for every text of a run


class NextWordModel(nn.Module):
    """A trained language model, in eval mode: it reads text as its training did.

    words    the vocabulary, the most frequent first; "\\n", the end of a line, is predicted too
    model    the network: a `contrast.evaluation.language.NextWord`
    reading  arguments of `contrast.data.text.corpus.corpus`, with which the training text was read: those of `READING`

    A text is a string of lines. The first word is predicted from the end of a line, and each following one from all
    words before it. Unknown words are <unk>, or left out where the training left them out.

    Of an output layer under negative sampling, which has no probabilities, log q is added to the scores before they are
    normalised, as in the metric `perplexity_with_log_q`.
    """

    def __init__(self, model: NextWord, words: tuple[str, ...], reading: Config) -> None:
        super().__init__()
        if len(model.log_p) != 1 + len(words):
            raise InputError(f"a model of {len(model.log_p):,} classes has {len(words):,} words and the end of a line")
        self.model, self.words, self.reading = model, words, {**READING, **reading}
        self.number = {word: i for i, word in enumerate(words)}
        self.unknown = self.number[UNKNOWN] if self.reading["unknown"] == "keep" else None
        self.splitter = splitter(**{name: self.reading[name] for name in SPLITTING})
        self.eval()

    def corpus(self, path: str | Path, **options: Any) -> Corpus:
        """The text of files as ids of the vocabulary; `path` and other options as in `corpus`."""
        return corpus(path, words=self.words, **{**self.reading, **options})

    def log_probs(self, text: str) -> list[tuple[str, float]]:
        """The words of the text and the ends of its lines, N, and the log probability of each (base e).

        The last line ends, whether or not the string has a line feed there. Raises InputError for a text without words.
        """
        classes, values = self._measured(text)
        return list(zip(self._names(classes), values.tolist(), strict=True))

    def perplexity(self, text: str) -> float:
        """exp of the mean of -log p over the words of the text and the ends of its lines."""
        if not isinstance(text, str):
            raise InputError(f"the perplexity is that of a string, not of a {type(text).__name__}")
        return perplexity(self._measured(text)[1])

    @torch.inference_mode()
    def next_words(self, text: str = "", k: int = 10) -> list[tuple[str, float]]:
        """The k most probable next words after a text, and their probabilities; the most probable first.

        A line feed at the end of the text ends its last line. k above V is cut.
        """
        if k < 1:
            raise InputError(f"next words: k must be 1 or more, not {k}")
        classes = torch.cat([torch.zeros(1, dtype=torch.int64), self._classes(text)])
        features, _ = self.model.encoder(classes[None].to(self.model.log_p.device))  # [1, T, D]
        probabilities = self.model.all_log_probs(features[:, -1])[0].exp()  # [V]
        best = probabilities.topk(min(k, len(probabilities)))
        return list(zip(self._names(best.indices), best.values.tolist(), strict=True))

    def _measured(self, text: str) -> tuple[Tensor, Tensor]:
        """The classes of a text and their log probabilities, [N] each."""
        classes = self._classes(text.replace(END, " ") + END)
        if not len(classes):
            raise InputError("the text has no word of the vocabulary")
        values = self.model.over_text(classes)
        return classes, values.get("log_prob_with_log_q", values["log_prob"])

    def _classes(self, text: str) -> Tensor:
        return ids_of(text, self.splitter, self.number, self.unknown, self.reading["unit"]) + 1

    def _names(self, classes: Tensor) -> list[str]:
        return [self.words[i - 1] if i else END_OF_LINE for i in classes.tolist()]


def is_language_model(saved: Checkpoint) -> bool:
    """Whether a checkpoint of this library is of a language model."""
    return "LanguageModel" in str(saved["config"].get("model"))


def language_model(saved: Checkpoint, trust: Trust = False) -> NextWordModel:
    """The language model of a checkpoint; `trust` as in `contrast.evaluation.language.next_word`."""
    if saved.get("words") is None:
        raise InputError("the checkpoint of the language model does not hold its vocabulary")
    data = current({"data": saved["config"].get("data") or {}})["data"]
    reading = from_file({"data": {key: data[key] for key in READING if key in data}}, "the checkpoint", trust)["data"]
    if isinstance(reading.get("tokenizer"), Mapping):
        reading["tokenizer"] = instantiate(reading["tokenizer"])
    return NextWordModel(next_word(saved, trust), tuple(saved["words"]), reading)
