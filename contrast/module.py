"""The main path: batch -> views -> encoder -> projector -> key -> negatives -> head -> loss -> log.

V views, P of them queries, B images of this rank, F features, D dimensions of the projection.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, Protocol

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from contrast.candidates import linked
from contrast.data.images.image_set import Batch
from contrast.distributed import gather, mean_counted, sum_over_ranks
from contrast.encoders.blocks import checkpoint_activations, shard
from contrast.encoders.normalize import Normalize
from contrast.errors import InputError, making
from contrast.evaluation.geometry import alignment, effective_rank, uniformity
from contrast.grad_cache import Embedded, cached_gradients, equal_parts
from contrast.heads.head import LossHead
from contrast.keys import Second, Shared
from contrast.negatives.source import Queries, Source
from contrast.optim.groups import parameter_groups
from contrast.rng import generator

MAX_RANK_ROWS = 512  # of the effective rank: singular values of a whole large batch would take longer than its step


class Contrastive(pl.LightningModule):
    """A contrastive model: its parts, and the step that trains it.

    views       `draw(batch, generator) -> [V, B, P]`, `views(pixels, uniforms) -> V tensors [B, C, H, W]`
    encoder     [B, C, H, W] -> [B, F]
    projector   the projection head, [B, F] -> [B, D]
    predictor   [B, D] -> [B, D], applied to the queries alone, or None
    key         `key(views, projection [P, B, D], batch, generator) -> [P, B, D]`, the keys of the queries
    negatives   `negatives(query [P, B, D], key, ids [B], groups, generator) -> [(query [Q, D], Candidates), ...]`
    head        `head(query [Q, D], candidates) -> losses [Q], counted [Q]`
    same_label  how images that share the query's label are treated: as negatives ("negative": labels are ignored), as
                positives ("positive": SupCon), or left out of the denominator ("ignored"). Every unlabelled image is
                a class of its own
    shared      [N, K] int64, numbers of the image and the caption of each row of the data set: rows of a batch that
                share one, or that other rows connect, are no negatives of each other. None: every row is its own
    optimizer   called with parameter groups; scheduler: called with the optimizer and `total_steps`
    seed        of the augmentations, which are a pure function of (seed, batch number), whatever the number of ranks
    micro_batch at most so many images of this rank are embedded at a time, with the loss and the gradients of the
                whole batch (GradCache, contrast.grad_cache). Batch norm takes its statistics from each part. None: all
    activation_checkpointing  the blocks of the encoders that are trained keep their inputs alone and compute their
                activations again in the backward pass, with the same loss and gradients (contrast.encoders.blocks)
    one_forward_pass  all views of one size pass through the encoder and the projector together, and batch norm takes
                its statistics from all of them. False: a pass for each view, with its own statistics, as in MoCo,
                lightly and solo-learn: less memory traffic on a CPU, more launches on a GPU
    """

    shared: Tensor | None
    views: "Views"
    encoder: nn.Module
    projector: nn.Module
    predictor: nn.Module | None
    key: Shared
    negatives: Source
    head: LossHead

    def __init__(
        self,
        normalize: Normalize,
        views: nn.Module,
        encoder: nn.Module,
        projector: nn.Module,
        negatives: nn.Module,
        head: nn.Module,
        optimizer: Callable[..., torch.optim.Optimizer],
        scheduler: Callable[..., torch.optim.lr_scheduler.LRScheduler],
        key: nn.Module | None = None,
        predictor: nn.Module | None = None,
        same_label: Literal["negative", "positive", "ignored"] = "negative",
        seed: int = 0,
        one_forward_pass: bool = True,
        micro_batch: int | None = None,
        activation_checkpointing: bool = False,
        shared: Tensor | None = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if seed < 0:
            raise InputError(f"the seed must not be negative, but is {seed}")
        if same_label not in ("negative", "positive", "ignored"):
            raise InputError(f"same_label is negative, positive or ignored, not {same_label!r}")
        if micro_batch is not None and micro_batch < 1:
            raise InputError(f"a micro-batch has 1 image or more, got {micro_batch}")
        if same_label == "positive" and getattr(negatives, "ring", False):
            raise InputError(
                "ring=true does not find positives on other ranks: it needs same_label=negative or ignored"
            )
        self.normalize, self.views = normalize, views  # type: ignore[assignment]
        self.encoder, self.projector, self.predictor = encoder, projector, predictor
        self.key, self.negatives, self.head = key or Shared(), negatives, head  # type: ignore[assignment]
        if activation_checkpointing:
            for net in (encoder, self.key) if isinstance(self.key, Second) else (encoder,):
                checkpoint_activations(net)
        self.same_label = same_label
        self.register_buffer("shared", shared, persistent=False)
        self.remembers = overrides(negatives, Source, "update")
        self.optimizer, self.scheduler = optimizer, scheduler
        self.seed, self.one_forward_pass, self.micro_batch, self.config = seed, one_forward_pass, micro_batch, config
        self.pending: list[tuple[Tensor, Tensor | None, Tensor, Tensor | None]] = []  # of `negatives.update`
        self.unchecked: list[tuple[Batch, int, Tensor]] = []  # since the last step: batch, number, loss on the host
        self.copied: torch.cuda.Event | None = None  # on a GPU: the last of these losses is on the host
        self.batch_number = 0  # of the current batch, from 1, since the start of the run; in the checkpoint
        self.no_decay: set[str] = set()  # names of the parameters that have the attribute `no_decay`
        self.logged = False  # whether the current batch is logged

    def configure_model(self) -> None:
        """Shards what is trained, if the strategy has a mesh of devices; Lightning calls this before the optimiser."""
        self.no_decay = {name for name, each in self.named_parameters() if getattr(each, "no_decay", False)}
        if self.device_mesh is not None and not isinstance(self.encoder, FSDPModule):
            for net in self.shardable():
                shard(net, self.device_mesh["data_parallel"])

    def shardable(self) -> list[nn.Module]:
        """The networks with weights; InputError if anything else is trained, or if a step needs whole weights."""
        nets = [net for net in (self.encoder, self.projector, self.predictor) if net and list(net.parameters())]
        inside = {parameter for net in nets for parameter in net.parameters()}
        others = [name for name, each in self.named_parameters() if each.requires_grad and each not in inside]
        if type(self.key) is not Shared:
            raise InputError(f"trainer.strategy=fsdp2 shards one encoder: key={type(self.key).__name__} holds another")
        if others:
            raise InputError(f"trainer.strategy=fsdp2 shards encoder, projector and predictor, and not {others[0]}")
        if self.micro_batch is not None:
            raise InputError("trainer.strategy=fsdp2 has no micro_batch: activation_checkpointing=true saves memory")
        return nets

    def forward(self, pixels: Tensor) -> Tensor:
        """Embeddings of images, [B, C, H, W] uint8 or float in 0..1 -> [B, F]: the evaluated and exported features."""
        return self.encoder(self.normalize(pixels))

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        uniforms = self.uniforms(len(batch.pixels))  # [V, B, P]
        if self.micro_batch is None:
            embedding, query, key = self.encode(batch, uniforms)
            loss, queries = self.contrast(batch, query, key)
        else:
            loss, queries, (embedding, query, key) = self.cached(batch, uniforms, self.micro_batch)
        if self.remembers:
            self.pending.append((query.detach(), None if key is None else key.detach(), *self.identities(batch)))
        self.unchecked.append((batch, self.batch_number, loss.detach().to("cpu", non_blocking=True)))
        if loss.is_cuda:
            self.copied = torch.cuda.Event()
            self.copied.record()
        if self.logged:
            self.observe(loss, embedding.detach(), query.detach(), key, queries)
        return {"loss": loss, "embedding": embedding.detach()}  # the embedding is for online probes

    def encode(self, batch: Batch, uniforms: Tensor, keys: bool = True) -> Embedded:
        """Embeddings, queries and, if requested, keys of the images of `batch`."""
        views = self.views(batch.pixels, uniforms)  # V x [B, C, H, W]
        embedding = self.embed(views[: self.key.num_queries])  # [P, B, F]
        projection = self.each(self.projector, embedding)  # [P, B, D]
        query = projection if self.predictor is None else self.each(self.predictor, projection)  # [P, B, D]
        return Embedded(embedding, query, self.key(views, projection, batch, self.generator(1)) if keys else None)

    def contrast(self, batch: Batch, query: Tensor, key: Tensor | None) -> tuple[Tensor, Queries]:
        """The loss, this rank's share of the mean over all queries, and the queries with their candidates."""
        ids, groups = self.identities(batch)  # [B], [B]
        queries = self.negatives(query, key, ids, groups, self.generator(2))
        losses, counted = map(torch.cat, zip(*(self.head(q, candidates) for q, candidates in queries), strict=True))
        return mean_counted(losses, counted), queries

    def cached(self, batch: Batch, uniforms: Tensor, size: int) -> tuple[Tensor, Queries, Embedded]:
        """As `encode` and `contrast`, at most `size` images at a time, in parts as equal as they can be."""
        parts = equal_parts(len(batch.pixels), size)

        def embed(i: int, again: bool) -> Embedded:
            return self.encode(batch.part(parts[i]), uniforms[:, parts[i]], keys=not again or self.key.differentiable)

        def contrast(query: Tensor, key: Tensor | None) -> tuple[Tensor, Queries]:
            if key is not None and not self.key.differentiable:
                key = key.detach()  # as without micro-batches: a source of negatives may depend on it
            return self.contrast(batch, query, key)

        modules = [each for each in (self.encoder, self.projector, self.predictor, self.key) if each is not None]
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return cached_gradients(embed, len(parts), contrast, modules, parameters)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.head.advance()
        if overrides(self.key, Shared, "advance"):
            self.key.advance(self.encoder, self.projector)
        for each in self.pending:  # one for each accumulated batch
            self.negatives.update(*each)
        if overrides(self.negatives, Source, "advance"):
            self.negatives.advance()
        self.pending = []

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self.batch_number += 1
        self.logged = is_logged(self.trainer, batch_idx)

    def uniforms(self, images: int) -> Tensor:
        """This rank's part of the random numbers behind the views of the whole batch, [V, B, P].

        They are drawn on the CPU from (seed, number of the batch) alone. So a checkpoint only needs that number, and
        the views are the same on every device, for one process or many.
        """
        uniforms = self.views.draw(images * self.trainer.world_size, self.generator())  # [V, W B, P]
        uniforms = uniforms[:, images * self.global_rank :][:, :images]
        if self.device.type == "cuda":
            uniforms = uniforms.pin_memory()  # from pageable memory the copy would wait for the device
        return uniforms.to(self.device, non_blocking=True)

    def generator(self, *stream: int) -> torch.Generator:
        """Random numbers of this batch, on the CPU: the same on every rank, different for every stream."""
        return generator(self.seed, self.batch_number, *stream)

    def identities(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """The id of every image and, where images are left out of each other's negatives, its group; [B] int64 each."""
        labels = torch.where(batch.labels >= 0, batch.labels, -2 - batch.index)
        if self.same_label == "positive":
            return labels, None
        columns = [labels[:, None]] if self.same_label == "ignored" else []
        columns += [] if self.shared is None else [self.shared[batch.index]]
        if not columns:
            return batch.index, None
        numbers = torch.cat(columns, dim=1)  # [B, K]
        if numbers.shape[1] > 1:
            return batch.index, linked(gather(numbers))[self.global_rank * len(numbers) :][: len(numbers)]
        return batch.index, numbers[:, 0]

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

    def each(self, net: nn.Module, rows: Tensor) -> Tensor:
        """Applies `net` to the rows of all views, [V, B, F] -> [V, B, D]."""
        if not self.one_forward_pass:
            return torch.stack([net(view) for view in rows])
        return net(rows.flatten(0, 1)).unflatten(0, rows.shape[:2])

    @torch.no_grad()
    def observe(self, loss: Tensor, embedding: Tensor, query: Tensor, key: Tensor | None, queries: Queries) -> None:
        """Log what the loss does not show: scores, the geometry of the embedding, the temperature.

        Every metric is the mean over the ranks that measured it. One that no rank measured is left out.
        """
        metrics = self.head.describe(*queries[0])
        if key is not None:
            metrics["alignment"] = alignment(query[0], key[0])
        if len(query[0]) > 1:
            metrics["uniformity"] = uniformity(query[0])
        metrics["rank_embedding"] = effective_rank(embedding[0, :MAX_RANK_ROWS])
        metrics["rank_projection"] = effective_rank(query[0, :MAX_RANK_ROWS])
        metrics["loss"] = loss  # each rank holds its share of the mean
        exact = torch.float32 if self.device.type == "mps" else torch.float64  # which MPS does not have
        values = torch.stack([value.detach().to(self.device, exact) for value in metrics.values()])  # [K]
        total, ranks = sum_over_ranks(torch.stack([values.nan_to_num(nan=0.0), ~values.isnan()]))
        for name, mean, count in zip(metrics, (total / ranks).tolist(), ranks.tolist(), strict=True):
            if count or name == "loss":
                self.log(f"train/{name}", mean, prog_bar=name == "loss")

    def on_fit_start(self) -> None:
        self.pending, self.unchecked = [], []  # of a step that was interrupted
        if self.micro_batch is not None and self.trainer.precision == "16-mixed":
            raise InputError("micro_batch computes gradients before 16-mixed scales the loss: use bf16-mixed")
        steps = self.trainer.estimated_stepping_batches
        for part in (self.head, self.key):
            part.plan(int(steps) if math.isfinite(steps) else 0)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Raises NonFiniteLoss before a step that would spoil the weights.

        On a GPU this waits for the copies of the losses, with the backward pass still queued: the device does not idle.
        """
        if self.copied is not None:
            self.copied.synchronize()
        unchecked, self.unchecked = self.unchecked, []
        for batch, number, loss in unchecked:
            if not loss.isfinite():
                raise NonFiniteLoss(batch, number, loss.item())
        if self.logged:
            grads = [p.grad for p in self.parameters() if p.grad is not None]
            self.log("train/grad_norm", torch.nn.utils.get_total_norm(grads))
            self.log("train/lr", optimizer.param_groups[0]["lr"])

    def configure_optimizers(self) -> OptimizerLRScheduler:
        for name, parameter in self.named_parameters():  # a shard is a new parameter, without the attribute
            if name in self.no_decay:
                parameter.no_decay = True  # type: ignore[attr-defined]
        with making("optimizer"):
            optimizer = self.optimizer(parameter_groups(self))
        with making("scheduler"):
            schedule = self.scheduler(optimizer, total_steps=self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, object]) -> None:
        checkpoint["batch_number"] = self.batch_number
        checkpoint["config"] = self.config

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.batch_number = checkpoint["batch_number"]


class NonFiniteLoss(InputError):
    """The loss of a batch is NaN or infinite."""

    def __init__(self, batch: Batch, number: int, loss: float) -> None:
        super().__init__(f"the loss of batch {number} is {loss}")
        self.batch, self.number = batch, number

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return InputError, self.args  # in another process it is a line, without the batch


class Views(Protocol):
    """Augmentation: a pure function of pixels and uniform random numbers."""

    def draw(self, batch: int, generator: torch.Generator | None = None) -> Tensor: ...

    def __call__(self, pixels: Tensor, uniforms: Tensor) -> list[Tensor]: ...


def overrides(part: nn.Module, base: type, name: str) -> bool:
    """Whether `part` has a method `name` that does something: that of `base` does nothing."""
    nothing = getattr(base, name)
    return getattr(type(part), name, nothing) is not nothing


def is_logged(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether Lightning will log after this batch, in a run with one optimiser. Call it before the batch's step.

    Lightning logs after each `log_every_n_steps` optimiser steps, which with accumulated gradients are fewer than
    batches.
    """
    every = trainer.log_every_n_steps  # type: ignore[attr-defined]
    is_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch
    return bool(every > 0 and is_step and (trainer.global_step + 1) % every == 0)
