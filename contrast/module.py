"""The main path: batch -> views -> encoder -> projector -> negatives -> head -> loss -> log.

V views, P of them that ask, B images of this rank, F features, D dimensions of the projection.
"""

from collections.abc import Callable
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from contrast.data.images.image_set import Batch
from contrast.distributed import mean_counted
from contrast.encoders.normalize import Normalize
from contrast.errors import InputError
from contrast.evaluation.geometry import alignment, effective_rank, uniformity
from contrast.grad_cache import Embedded, cached_gradients
from contrast.keys import Shared
from contrast.optim.groups import parameter_groups
from contrast.rng import generator

OBSERVED = 512  # rows whose singular values are logged: those of a whole large batch would take longer than its step


class Contrastive(pl.LightningModule):
    """A contrastive model: what it is made of, and the step that trains it.

    views       `draw(batch, generator) -> [V, B, P]`, `views(pixels, uniforms) -> V tensors [B, C, H, W]`
    encoder     [B, C, H, W] -> [B, F]
    projector   [B, F] -> [B, D]
    predictor   [B, D] -> [B, D], on the queries alone; None: there is none
    key         `key(views, projection [P, B, D], batch, generator) -> [P, B, D]`, what answers the queries
    negatives   `negatives(query [P, B, D], key, ids [B], groups, generator) -> [(query [Q, D], Candidates), ...]`
    head        `head(query [Q, D], candidates) -> losses [Q], counted [Q]`
    same_label  what other images with a query's label are to it: "negative" (labels are not looked at), "positive"
                (supervised: ids are labels) or "ignored" (no false negatives). Unlabelled images are classes of
                their own
    optimizer   called with parameter groups; scheduler called with the optimizer and `total_steps`
    seed        of the augmentations: a pure function of (seed, batch number), the same whatever the number of ranks
    micro_batch images of this rank that are embedded at a time, with the loss and the gradients of the whole batch
                (contrast.grad_cache); None: all. Batch norm takes its statistics from each micro-batch
    one_forward_pass  all views of one size pass through the encoder and the projector at once, and the statistics
                of batch norm are of all of them; False: a pass for each view, with its own statistics, as in MoCo, lightly
                and solo-learn: less memory traffic on a CPU, more launches on a GPU
    """

    views: Any
    encoder: Any
    key: Any
    negatives: Any
    head: Any

    def __init__(
        self,
        normalize: Normalize,
        views: nn.Module,
        encoder: nn.Module,
        projector: nn.Module,
        negatives: nn.Module,
        head: nn.Module,
        optimizer: Callable[..., torch.optim.Optimizer],
        scheduler: Callable[..., Any],
        key: nn.Module | None = None,
        predictor: nn.Module | None = None,
        same_label: Literal["negative", "positive", "ignored"] = "negative",
        seed: int = 0,
        one_forward_pass: bool = True,
        micro_batch: int | None = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if seed < 0:
            raise InputError(f"the seed must not be negative, but is {seed}")
        if same_label not in ("negative", "positive", "ignored"):
            raise InputError(f"same_label is negative, positive or ignored, not {same_label!r}")
        self.normalize, self.views = normalize, views
        self.encoder, self.projector = encoder, projector
        self.predictor, self.key, self.same_label = predictor, key or Shared(), same_label
        self.negatives, self.head = negatives, head
        self.optimizer, self.scheduler = optimizer, scheduler
        self.seed, self.one_forward_pass, self.micro_batch, self.config = seed, one_forward_pass, micro_batch, config
        if micro_batch is not None and micro_batch < 1:
            raise InputError(f"a micro-batch has 1 image or more, got {micro_batch}")
        self.seen: list[tuple[Any, ...]] = []  # what the sources of negatives take in after the step
        # every rank writes the same into these, so DDP need not send them round in every step
        self._ddp_params_and_buffers_to_ignore = [
            f"{part}.{name}"
            for part in ("negatives", "key")
            for name, _ in getattr(self, part).named_buffers()
            if "num_batches" not in name and "running_" not in name
        ]
        self.batch_number = 0  # of the current batch, from 1, since the start of the run; in the checkpoint
        self.logged = False  # whether the current batch is

    def forward(self, pixels: Tensor) -> Tensor:
        """Embeddings of images, [B, C, H, W] uint8 or float in 0..1 -> [B, F]: what is evaluated and shipped."""
        return self.encoder(self.normalize(pixels))

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        uniforms = self.uniforms(len(batch.pixels))  # [V, B, P]
        if self.micro_batch is None:
            embedding, query, key = self.encode(batch, uniforms)
            loss, asked = self.contrast(batch, query, key)
        else:
            loss, asked, (embedding, query, key) = self.cached(batch, uniforms, self.micro_batch)
        self.seen.append((query.detach(), None if key is None else key.detach(), *self.identities(batch)))
        if self.logged:
            self.observe(loss, embedding.detach(), query.detach(), key, asked)
        return {"loss": loss, "embedding": embedding.detach()}  # the embedding is there for online probes

    def encode(self, batch: Batch, uniforms: Tensor, keys: bool = True) -> Embedded:
        """Embeddings, queries and, if wanted, keys of the images of `batch`."""
        views = self.views(batch.pixels, uniforms)  # V x [B, C, H, W]
        embedding = self.embed(views[: self.key.num_queries])  # [P, B, F]
        projection = self.project(embedding)  # [P, B, D]
        query = projection if self.predictor is None else self.each(self.predictor, projection)  # [P, B, D]
        return Embedded(embedding, query, self.key(views, projection, batch, self.generator(1)) if keys else None)

    def contrast(self, batch: Batch, query: Tensor, key: Tensor | None) -> tuple[Tensor, Any]:
        """The loss, this rank's share of the mean over all queries, and who was asked against whom."""
        ids, groups = self.identities(batch)  # [B], [B]
        asked = self.negatives(query, key, ids, groups, self.generator(2))
        losses, counted = map(torch.cat, zip(*(self.head(q, candidates) for q, candidates in asked), strict=True))
        return mean_counted(losses, counted), asked

    def cached(self, batch: Batch, uniforms: Tensor, size: int) -> tuple[Tensor, Any, Embedded]:
        """As `encode` and `contrast`, `size` images at a time."""
        parts = [slice(start, start + size) for start in range(0, len(batch.pixels), size)]

        def embed(i: int, again: bool) -> Embedded:
            return self.encode(batch.part(parts[i]), uniforms[:, parts[i]], keys=not again or self.key.differentiable)

        modules = [each for each in (self.encoder, self.projector, self.predictor, self.key) if each is not None]
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return cached_gradients(
            embed, len(parts), lambda query, key: self.contrast(batch, query, key), modules, parameters
        )

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.head.advance()
        self.key.advance(self.encoder, self.projector)
        for seen in self.seen:  # one for each accumulated batch
            self.negatives.update(*seen)
        self.seen = []

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self.batch_number += 1
        self.logged = is_logged(self.trainer, batch_idx)

    def uniforms(self, images: int) -> Tensor:
        """This rank's part of the random numbers behind the views of the whole batch, [V, B, P].

        Drawn on the CPU from (seed, number of the batch) alone: nothing to save but that number, and the same views
        on every device and for one process or many.
        """
        uniforms = self.views.draw(images * self.trainer.world_size, self.generator())  # [V, W B, P]
        uniforms = uniforms[:, images * self.global_rank :][:, :images]
        if self.device.type == "cuda":
            uniforms = uniforms.pin_memory()  # from pageable memory the copy would wait for the device
        return uniforms.to(self.device, non_blocking=True)

    def generator(self, *stream: int) -> torch.Generator:
        """Random numbers of this batch, on the CPU: the same on every rank, others for every stream."""
        return generator(self.seed, self.batch_number, *stream)

    def identities(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """What an image is to the negatives: its id and, where that is not all, its group; [B] int64 each."""
        if self.same_label == "negative":
            return batch.index, None
        labels = torch.where(batch.labels >= 0, batch.labels, -2 - batch.index)
        return (labels, None) if self.same_label == "positive" else (batch.index, labels)

    def embed(self, views: list[Tensor]) -> Tensor:
        """Embeddings of all views, [V, B, F]."""
        if not self.one_forward_pass:
            return torch.stack([self(view) for view in views])
        sizes = [view.shape[-2:] for view in views]
        parts: dict[int, Tensor] = {}
        for size in dict.fromkeys(sizes):
            same = [v for v in range(len(views)) if sizes[v] == size]
            out = self(torch.cat([views[v] for v in same]))  # [V' B, F]
            parts.update(zip(same, out.chunk(len(same)), strict=True))
        return torch.stack([parts[v] for v in range(len(views))])

    def project(self, embedding: Tensor) -> Tensor:
        """Projections of the embeddings of all views, [V, B, F] -> [V, B, D]."""
        return self.each(self.projector, embedding)

    def each(self, net: nn.Module, rows: Tensor) -> Tensor:
        """`net` on the rows of all views, [V, B, F] -> [V, B, D]."""
        if not self.one_forward_pass:
            return torch.stack([net(view) for view in rows])
        return net(rows.flatten(0, 1)).unflatten(0, rows.shape[:2])

    @torch.no_grad()
    def observe(self, loss: Tensor, embedding: Tensor, query: Tensor, key: Tensor | None, asked: Any) -> None:
        """Log what the loss does not tell: the scores, the geometry of the embedding, the temperature."""
        told = self.head.describe(*asked[0])
        if key is not None:
            told["alignment"] = alignment(query[0], key[0])
        if len(query[0]) > 1:
            told["uniformity"] = uniformity(query[0])
        told["rank_embedding"] = effective_rank(embedding[0, :OBSERVED])
        told["rank_projection"] = effective_rank(query[0, :OBSERVED])
        self.log_dict({f"train/{name}": value.float() for name, value in told.items()}, sync_dist=True)
        self.log("train/loss", loss, prog_bar=True, sync_dist=True)  # of all ranks: each holds its share of the mean

    def on_fit_start(self) -> None:
        self.seen = []  # what a step that was cut short left there
        if self.micro_batch is not None and self.trainer.precision == "16-mixed":
            raise InputError("micro_batch computes gradients before 16-mixed scales the loss: take bf16-mixed")
        for part in (self.head, self.key):
            part.plan(int(self.trainer.estimated_stepping_batches))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.logged:
            grads = [p.grad for p in self.parameters() if p.grad is not None]
            self.log("train/grad_norm", torch.nn.utils.get_total_norm(grads))
            self.log("train/lr", optimizer.param_groups[0]["lr"])

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(parameter_groups(self))
        schedule = self.scheduler(optimizer, total_steps=int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["batch_number"] = self.batch_number
        checkpoint["config"] = self.config

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.batch_number = checkpoint["batch_number"]


def is_logged(trainer: Any, batch_idx: int) -> bool:
    """Whether Lightning writes a row after this batch, of a run with one optimiser: asked before its step.

    It does so after each `log_every_n_steps` optimiser steps, which with accumulated gradients are fewer than batches.
    """
    every = trainer.log_every_n_steps
    steps = (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch
    return bool(every > 0 and steps and (trainer.global_step + 1) % every == 0)
