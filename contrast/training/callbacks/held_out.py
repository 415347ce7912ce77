"""Perplexity of held-out text at growing intervals while a language model trains."""

from time import perf_counter
from typing import cast

import pytorch_lightning as pl
from tqdm import tqdm

from contrast.data.text.corpus import Corpus
from contrast.errors import InputError
from contrast.training.callbacks.progress import Throughput, throughput_of
from contrast.words import LanguageModel


class HeldOut(pl.Callback):
    """Logs `held_out/perplexity` and the like, with the `train/seconds` and `train/words` of training until then.

    corpus       whose `held_out` is read; where there is none, nothing is measured
    first        seconds of training until the first measure
    growth       factor by which the seconds grow between two measures: evenly spaced on a logarithmic axis
    most         held-out words of a measure, the same ones every time
    max_seconds  of training, after which the run ends; None: it ends with its epochs

    Seconds are those of `Throughput` on the first rank, whose clock stops while the held-out text is read. The first
    rank reads all of it, and the others wait.
    """

    def __init__(
        self,
        corpus: Corpus,
        first: float = 2.0,
        growth: float = 1.5,
        most: int = 4000,
        max_seconds: float | None = None,
    ) -> None:
        if not first > 0 or not growth > 1 or most < 1 or (max_seconds is not None and not max_seconds > 0):
            raise InputError(
                "measures come after first > 0 seconds and then at growth > 1 times as many, of 1 word or more, within "
                f"max_seconds > 0: {first}, {growth}, {most}, {max_seconds}"
            )
        self.ids, self.first, self.growth, self.most = corpus.held_out, first, growth, most
        self.max_seconds = max_seconds
        self.due = first

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.due = self.first
        while self.due <= throughput_of(trainer).seconds:  # of a run that continues
            self.due *= self.growth

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *unused: object) -> None:
        throughput = throughput_of(trainer)
        seconds = trainer.strategy.broadcast(throughput.seconds)  # so that all ranks end after the same step
        over = self.max_seconds is not None and seconds >= self.max_seconds
        if self.ids is not None and (seconds >= self.due or over):
            began = perf_counter()
            while self.due <= seconds:
                self.due *= self.growth
            if trainer.is_global_zero:
                self.log_metrics(trainer, throughput, cast(LanguageModel, pl_module).held_out(self.ids, self.most))
            throughput.started += perf_counter() - began
        if over and not trainer.should_stop:
            tqdm.write(f"{seconds:.0f} seconds of training are over: callbacks.held_out.max_seconds={self.max_seconds}")
        trainer.should_stop = trainer.should_stop or over

    def log_metrics(self, trainer: pl.Trainer, throughput: Throughput, result: dict[str, float]) -> None:
        metrics = {f"held_out/{name}": value for name, value in result.items() if name != "held_out_words"}
        metrics |= {"train/seconds": throughput.seconds, f"train/{throughput.unit}": float(throughput.total)}
        for logger in trainer.loggers:
            logger.log_metrics(metrics, trainer.global_step - 1)  # the row of this step
