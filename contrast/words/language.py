"""A next-word model: an encoder of the words before, and any head and source over words as its output layer.

B sequences, T words, N places of a span, Q predicted words, D features, V classes: the end of a line
and the words.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from contrast.data.text.corpus import Corpus
from contrast.data.text.spans import Span
from contrast.distributed import mean_counted
from contrast.errors import InputError
from contrast.evaluation.features import evaluating
from contrast.evaluation.perplexity import PerWord, normalised, over_text, perplexity
from contrast.heads import NCE, FixedBias
from contrast.losses.similarity import similarity
from contrast.negatives import Table
from contrast.optim import LARS
from contrast.optim.groups import parameter_groups
from contrast.rng import generator
from contrast.samplers import Sampler
from contrast.words.base import TextModel
from contrast.words.frequencies import start_at_frequencies
from contrast.words.output import check_pair


class LanguageModel(TextModel):
    """The words before ask, the next word answers (Bengio et al. 2003), against what `negatives` and `head` make of it.

    encoder      `encoder(ids [B, T], state) -> features [B, T, D], state`, the last feature 1; `contrast.encoders.GRU`
    negatives    `Table`, whole or sampled, under InfoNCE or NCE; `Tree` under NCE; `Targets` under AdaptiveSoftmax
    head         `head(query [Q, D], candidates) -> losses [Q], counted [Q]`
    counts       [V] int64, how often each class occurs: at least once
    optimizer    called with parameter groups; scheduler called with the optimizer and `total_steps`, or None
    length       T, words of a window; each begins without a context. batch: B, windows of a step
    frequencies  the model begins as the unigram model of `counts` (contrast.words.frequencies)
    most         held-out words, evenly spread, on which the final perplexity is measured; streams: S, read in parallel

    words, seed, config  as of every `TextModel`

    A step's loss is the mean over its predicted words; the first word of a window is only read.
    """

    encoder: Any
    negatives: Any
    head: Any
    log_p: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        negatives: nn.Module,
        head: nn.Module,
        counts: Tensor,
        optimizer: Callable[..., torch.optim.Optimizer],
        scheduler: Callable[..., Any] | None = None,
        length: int = 20,
        batch: int = 64,
        frequencies: bool = True,
        most: int = 20_000,
        streams: int = 32,
        words: Sequence[str] | None = None,
        seed: int = 0,
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(words, seed, config)
        if min(length, batch, most, streams) < 1:
            raise InputError(f"length {length}, batch {batch}, most {most}, streams {streams}: 1 or more")
        check_pair(negatives, head)
        self.encoder, self.negatives, self.head = encoder, negatives, head
        self.optimizer, self.scheduler = optimizer, scheduler
        self.length, self.span = length, batch * (length + 1)
        self.most, self.streams = most, streams
        self.register_buffer("log_p", (counts.double() / counts.sum()).log().float())  # [V]
        if frequencies:
            start_at_frequencies(negatives, head, counts)

    @staticmethod
    def counts(corpus: Corpus) -> Tensor:
        """How often each class occurs, [V]: the end of a line, then the words by falling frequency.

        The end of a line is first for the adaptive softmax, in whose head it belongs: it is frequent in most text.

        An <unk> that stands for no word of the text counts as once: it has to be drawn, and to have a place in a tree.
        """
        return torch.cat([corpus.counts.new_tensor([corpus.lines]), corpus.counts]).clamp(min=1)

    def classes(self, ids: Tensor) -> Tensor:
        """Places of a corpus as classes: the end of a line, -1, is class 0, and word n class n + 1."""
        return ids.long() + 1

    def windows(self, ids: Tensor) -> Tensor:
        """A span [N] as windows of text, [B, T + 1], what is left over dropped; a shorter span is one window."""
        width = min(self.length + 1, len(ids))
        rows = len(ids) // width
        return ids[: rows * width].view(rows, width)

    def count(self, batch: Span) -> int:
        """Words that are predicted in a batch."""
        return self.windows(batch.ids)[:, 1:].numel()

    def training_step(self, batch: Span, batch_idx: int) -> dict[str, Tensor]:
        text = self.windows(self.classes(batch.ids))  # [B, T + 1]
        if text.shape[1] == 1:  # a span of one place
            return {"loss": 0 * torch.stack([parameter.sum() for parameter in self.parameters()]).sum()}
        features, _ = self.encoder(text[:, :-1])  # [B, T, D]
        query, ids = features.flatten(0, 1), text[:, 1:].flatten()  # [Q, D], [Q]
        ((query, candidates),) = self.negatives(query[None], None, ids, None, generator(self.seed, self.batch_number))
        loss = mean_counted(*self.head(query, candidates))
        if self.logged:
            self.log("train/loss", loss, prog_bar=True)
            if isinstance(self.head, NCE) and not isinstance(self.head.bias, FixedBias):
                self.log("train/log_z", -self.head.bias())
        return {"loss": loss}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.head.advance()

    def log_probs(self, query: Tensor, ids: Tensor) -> PerWord:
        """What the model gives the classes `ids` [Q] after the contexts `query` [Q, D], by name, [Q] float64 each.

        log_prob             log of the probability, over all classes exactly
        log_z                of NCE's scores, the log normaliser: 0 where the model normalises itself
        log_prob_with_log_q  of negative sampling, after log q was added to the scores: their optimum is
                             log p - log(K q), so these give p back and the scores alone do not; of Poisson draws
                             log pi, their probability

        A tree's and an adaptive softmax's probabilities sum to 1 by construction: their loss is -log p.
        """
        if not isinstance(self.negatives, Table):
            ((query, candidates),) = self.negatives(query[None], None, ids)
            return {"log_prob": -self.head(query, candidates)[0].double()}
        offsets = [torch.zeros_like(self.log_p, dtype=torch.float64)]
        logistic, sampler = isinstance(self.head, NCE), self.negatives.sampler
        if logistic and not self.head.correction and sampler is not None:
            everything = torch.arange(len(self.log_p), device=ids.device)
            drawn = sampler.log_prob(everything) if isinstance(sampler, Sampler) else sampler.log_inclusion(everything)
            offsets.append(drawn.double())
        log_prob, log_z = normalised(self.score, query, ids, self.negatives.vectors, torch.stack(offsets))
        told = {"log_prob": log_prob[0]}
        if logistic:
            told["log_z"] = log_z[0]
        if len(offsets) > 1:
            told["log_prob_with_log_q"] = log_prob[1]
        return told

    def score(self, query: Tensor, vectors: Tensor) -> Tensor:
        """Scores of a table's rows, uncorrected, [Q, D] x [C, D] -> [Q, C]."""
        values = similarity(query, vectors, self.head.cosine) / self.head.temperature()
        return values + self.head.bias() if isinstance(self.head, NCE) else values

    def held_out(self, ids: Tensor, most: int) -> dict[str, float]:
        """Figures of held-out text `ids` [N], on at most `most` words of it: see `figures`."""

        def encode(words: Tensor, state: Any) -> tuple[Tensor, Any]:
            return self.encoder(words.to(self.device), state)

        def told(query: Tensor, ids: Tensor) -> PerWord:
            return self.log_probs(query, ids) | {"unigram": self.log_p[ids].double()}

        with evaluating(self):
            found = over_text(encode, told, self.classes(ids).to(self.device), 0, self.streams, most)
        figures = {"perplexity": perplexity(found["log_prob"])}
        if "log_prob_with_log_q" in found:
            figures["perplexity_with_log_q"] = perplexity(found["log_prob_with_log_q"])
        if "log_z" in found:
            figures |= {"log_z": float(found["log_z"].mean()), "log_z_std": float(found["log_z"].std(correction=0))}
        figures["unigram_perplexity"] = perplexity(found["unigram"])
        return figures | {"held_out_words": len(found["log_prob"])}

    def figures(self, corpus: Corpus, device: torch.device) -> dict[str, float]:
        """What the model is worth on the held-out text; nothing where none is held out.

        perplexity             exp of the mean of -log p over words and ends of lines, normalised exactly
        unigram_perplexity     that of the classes' frequencies
        log_z, log_z_std       NCE, negative sampling: mean and deviation of the log normaliser of the scores
        perplexity_with_log_q  negative sampling: with log q added to the scores
        held_out_words         how many words were predicted
        """
        return {} if corpus.held_out is None else self.to(device).held_out(corpus.held_out, self.most)

    def figure_names(self, corpus: Corpus) -> set[str]:
        """Names of the figures that `figures` may give on this corpus."""
        if corpus.held_out is None:
            return set()
        names = {"perplexity", "unigram_perplexity", "held_out_words"}
        return names | ({"log_z", "log_z_std", "perplexity_with_log_q"} if isinstance(self.head, NCE) else set())

    def table(self, figures: dict[str, float]) -> str:
        """The figures as lines of text."""
        if not figures:
            return "no text was held out (data.held_out=0.05), so there is no perplexity"
        lines = [f"perplexity of {figures['held_out_words']:,.0f} held-out words {figures['perplexity']:12,.2f}"]
        if "perplexity_with_log_q" in figures:
            lines.append(f"  with log q added to the scores      {figures['perplexity_with_log_q']:12,.2f}")
        if "log_z" in figures:
            lines.append(f"  log Z of the scores          {figures['log_z']:8.2f} ± {figures['log_z_std']:.2f}")
        lines.append(f"  of the words' frequencies alone     {figures['unigram_perplexity']:12,.2f}")
        return "\n".join(lines)

    def on_fit_start(self) -> None:
        if self.sparse_parts() and self.trainer.gradient_clip_algorithm == "value":
            raise InputError("clipping by value needs dense gradients: encoder.sparse=false negatives.sparse=false")
        if self.sparse_parts():
            torch.sparse.check_sparse_tensor_invariants.disable()  # as by default: said aloud, or torch warns
        steps = self.trainer.estimated_stepping_batches
        if math.isfinite(steps):
            self.head.plan(int(steps))

    def sparse_parts(self) -> list[str]:
        """Which parts have sparse gradients."""
        embeddings = [module for module in self.encoder.modules() if isinstance(module, nn.Embedding)]
        parts = ["encoder"] if any(module.sparse for module in embeddings) else []
        return [*parts, "negatives"] if getattr(self.negatives, "sparse", False) else parts

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(parameter_groups(self))
        self.check_optimizer(optimizer)
        if self.scheduler is None:
            return optimizer
        schedule = self.scheduler(optimizer, total_steps=self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def check_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """InputError for an optimiser that would stop at the first sparse gradient."""
        parts = self.sparse_parts()
        decay = max((group.get("weight_decay", 0) for group in optimizer.param_groups), default=0)
        dense = isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW | torch.optim.RMSprop | LARS)
        if parts and (dense or decay):
            name = type(optimizer).__name__ + (f" with weight decay {decay}" if decay and not dense else "")
            mend = " ".join(f"{part}.sparse=false" for part in parts)
            less = "" if dense else ", or optimizer.weight_decay=0"
            raise InputError(f"{name} takes no sparse gradients: {mend}{less}; or optimizer=adagrad")

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.logged:
            self.log("train/lr", optimizer.param_groups[0]["lr"])
