"""A trained next-word model, without its training: log probabilities of words, and the perplexity of a text.

Q predicted words, D features, V classes: the end of a line, and then the words of the vocabulary.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from contrast.config.facts import complete
from contrast.config.trust import Trust, from_file
from contrast.encoders.weights import Checkpoint
from contrast.errors import InputError
from contrast.evaluation.encoder import architecture, loaded
from contrast.evaluation.features import evaluating
from contrast.evaluation.perplexity import PerWord, normalised, over_text, perplexity
from contrast.heads import NCE, AdaptiveSoftmax
from contrast.heads.head import Head
from contrast.losses.similarity import similarity
from contrast.negatives import Table, Targets, Tree
from contrast.samplers import HuffmanTree, Sampler

PARTS = ("encoder", "negatives", "head")
FEWEST = 1000  # the fewest words of a stream, because its first words have little context


class NextWord(nn.Module):
    """An encoder of the preceding words and an output layer: what a `contrast.words.LanguageModel` has trained.

    log_p  [V], log frequencies of the classes in the training text
    """

    log_p: Tensor

    def __init__(
        self, encoder: nn.Module, negatives: Table | Tree | Targets, head: Head | AdaptiveSoftmax, log_p: Tensor
    ) -> None:
        super().__init__()
        self.encoder, self.negatives, self.head = encoder, negatives, head
        self.register_buffer("log_p", log_p)

    def log_probs(self, query: Tensor, ids: Tensor) -> PerWord:
        """Log probabilities of the classes `ids` [Q] after the contexts `query` [Q, D], by name, [Q] float64 each.

        log_prob             normalised exactly over all classes
        log_z                NCE: the log normaliser of the scores, 0 where the model is normalised already
        log_prob_with_log_q  negative sampling: with log q added to the scores, whose optimum is log p - log(K q), so
                             that this is log p, unlike log_prob; for Poisson samples log pi takes the place of log q

        The probabilities of a tree and of an adaptive softmax sum to 1 by construction: their loss is -log p.
        """
        if not isinstance(self.negatives, Table):
            ((query, candidates),) = self.negatives(query[None], None, ids)
            return {"log_prob": -self.head(query, candidates)[0].double()}
        log_q = self.missing_log_q()
        offsets = [torch.zeros_like(self.log_p, dtype=torch.float64), *([] if log_q is None else [log_q])]
        log_prob, log_z = normalised(self.score, query, ids, self.negatives.vectors, torch.stack(offsets))
        values = {"log_prob": log_prob[0]} | ({"log_z": log_z[0]} if isinstance(self.head, NCE) else {})
        return values | ({"log_prob_with_log_q": log_prob[1]} if len(offsets) > 1 else {})

    def all_log_probs(self, query: Tensor) -> Tensor:
        """Log probabilities of every class, [Q, D] -> [Q, V]; of negative sampling with log q added to the scores."""
        if isinstance(self.head, AdaptiveSoftmax):
            return self.head.log_prob(query)
        if isinstance(self.negatives, Tree):
            return self.negatives.log_prob(query, self.head.temperature(), self.head.cosine)
        assert isinstance(self.negatives, Table)
        scores, log_q = self.score(query, self.negatives.vectors), self.missing_log_q()
        return (scores if log_q is None else scores + log_q).log_softmax(dim=1)

    def missing_log_q(self) -> Tensor | None:
        """log q or log pi of every class [V] float64, where the scores lack it: in negative sampling."""
        sampler = self.negatives.sampler if isinstance(self.negatives, Table) else None
        if sampler is None or not isinstance(self.head, NCE) or self.head.correction:
            return None
        log_q = sampler.log_prob if isinstance(sampler, Sampler) else sampler.log_inclusion
        return log_q(torch.arange(len(self.log_p), device=self.log_p.device)).double()

    def score(self, query: Tensor, vectors: Tensor) -> Tensor:
        """Scores of rows of a table without the correction, [Q, D] x [C, D] -> [Q, C]."""
        assert isinstance(self.head, Head)
        values = similarity(query, vectors, self.head.cosine) / self.head.temperature()
        return values + self.head.bias() if isinstance(self.head, NCE) else values

    def over_text(self, classes: Tensor, streams: int = 1, most: int | None = None) -> PerWord:
        """`log_probs` and the log frequency, `unigram`, of the words of a text, [N] each.

        classes  [N], the words of the text; the class before the first one is the end of a line
        streams, most  as `count` and `most` of `contrast.evaluation.perplexity.over_text`
        """

        def log_probs(query: Tensor, ids: Tensor) -> PerWord:
            return self.log_probs(query, ids) | {"unigram": self.log_p[ids].double()}

        with evaluating(self):
            return over_text(self.encoder, log_probs, classes.to(self.log_p.device), 0, streams, most)

    def metrics(self, classes: Tensor, streams: int = 1, most: int | None = None) -> dict[str, float]:
        """Metrics of a text; arguments as `over_text`.

        perplexity             exp of the mean of -log p over words and ends of lines, normalised exactly
        perplexity_with_log_q  negative sampling: with log q added to the scores
        log_z, log_z_std       NCE, negative sampling: mean and standard deviation of the log normaliser of the scores
        unigram_perplexity     that of the classes' frequencies
        words                  how many words and ends of lines were predicted
        """
        values = self.over_text(classes, streams, most)
        metrics = {"perplexity": perplexity(values["log_prob"])}
        if "log_prob_with_log_q" in values:
            metrics["perplexity_with_log_q"] = perplexity(values["log_prob_with_log_q"])
        if "log_z" in values:
            metrics |= {"log_z": float(values["log_z"].mean()), "log_z_std": float(values["log_z"].std(correction=0))}
        metrics["unigram_perplexity"] = perplexity(values["unigram"])
        return metrics | {"words": len(values["log_prob"])}

    def metric_names(self) -> set[str]:
        """Names of the metrics that `metrics` may return."""
        of_nce = {"log_z", "log_z_std", "perplexity_with_log_q"} if isinstance(self.head, NCE) else set()
        return {"perplexity", "unigram_perplexity", "words"} | of_nce


class TextData(NamedTuple):
    """A next-word model and the text that it is evaluated on.

    ids            [N], of a corpus with the vocabulary of the model: -1 between lines
    unknown_share  of the words of the text that the vocabulary does not have
    """

    model: NextWord
    ids: Tensor
    unknown_share: float


def text_perplexity(data: TextData, streams: int = 32) -> dict[str, float]:
    """The protocol: `NextWord.metrics` of a text, and the share of its words that are unknown.

    streams  parts of the text that are read in parallel, each without the context before it. A short text has fewer
             of them, so that each has at least 1,000 words
    """
    if streams < 1:
        raise InputError(f"a text is read in 1 stream or more, not {streams}")
    classes = data.ids.long() + 1
    metrics = data.model.metrics(classes, min(streams, max(1, len(classes) // FEWEST)))
    return metrics | {"unknown_share": data.unknown_share}


def next_word(saved: Checkpoint, trust: Trust = False) -> NextWord:
    """The language model in a checkpoint, in eval mode, built from the configuration inside it.

    trust  what the configuration may call besides the parts of this library: see `contrast.config.trust`
    """
    config = from_file({name: saved["config"].get(name) for name in PARTS}, "the checkpoint", trust)
    state, log_p = saved["state_dict"], saved["state_dict"].get("log_p")
    if not isinstance(log_p, Tensor) or log_p.ndim != 1 or any(not isinstance(config[name], Mapping) for name in PARTS):
        raise InputError("the checkpoint does not hold what a language model is built from")
    facts: dict[str, object] = {"num_ids": len(log_p), "counts": log_p.double().exp()}
    if "negatives.path" in state:  # its shape depends on the counts, of which the checkpoint has rounded frequencies
        path, sign = state["negatives.path"].long(), state["negatives.sign"]
        facts["counts"] = HuffmanTree(path, sign < 0, (path >= 0).sum(dim=1))

    def part(name: str) -> Any:
        make = architecture(config[name], _partial_=True)
        return loaded(lambda: complete(make, facts), saved, f"{name}.")

    encoder = part("encoder")
    facts["dim"] = encoder.num_features
    return NextWord(encoder, part("negatives"), part("head"), log_p).eval()
