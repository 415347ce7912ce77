"""Key encoders: the encoder itself, a momentum copy of it (EMA), or a second encoder for another modality.

V views, B images of this rank, W ranks, D dimensions. key[v] is the key of the query of view v: its positive.
"""

import copy
import math
from abc import ABC, abstractmethod
from typing import Protocol

import torch
from torch import Tensor, nn

from contrast.config.facts import NO_CAPTIONS
from contrast.distributed import gather, rank, world_size
from contrast.errors import InputError


class HasText(Protocol):
    """A batch of images that may have captions, [B, L] int64."""

    @property
    def text(self) -> Tensor | None: ...


class Shared(nn.Module):
    """The encoder's own projections: the key of view v is the projection of view v + 1, modulo the number of keys.

    num_queries  how many views are queries, from the first on; None: all
    num_keys     how many views may be keys, from the first on: 2 with multi-crop in SwAV. None: all views that are
                 queries
    """

    differentiable = True  # the keys have a gradient

    def __init__(self, num_queries: int | None = None, num_keys: int | None = None) -> None:
        super().__init__()
        if num_queries is not None and num_queries < 1:
            raise InputError(f"at least 1 view must be a query, got num_queries={num_queries}")
        if num_keys is not None and num_keys < 2:
            raise InputError(f"at least 2 views must be keys, got num_keys={num_keys}")
        self.num_queries, self.num_keys = num_queries, num_keys

    def forward(
        self, views: list[Tensor], projection: Tensor, batch: HasText, generator: torch.Generator
    ) -> Tensor | None:
        """Keys [V, B, D] for the V views that are queries; None for one view, which has no other view as its key.

        views       all of them, [B, C, H, W]
        projection  [V, B, D], of the views that are queries
        batch       as the loader returns it
        generator   on the CPU, in the same state on every rank
        """
        if len(projection) < 2:
            return None
        return torch.stack([projection[v] for v in self.partners(len(projection), len(projection))])

    def partners(self, queries: int, views: int) -> list[int]:
        """The view that is the key of each of the first views, which are the queries."""
        keys = views if self.num_keys is None else self.num_keys
        if views < keys:
            raise InputError(f"{keys} views must be keys, but there are {views} views")
        return [(v + 1) % keys for v in range(queries)]

    def plan(self, steps: int) -> None:
        """Called once before training with the number of optimiser steps it will take."""

    def advance(self, encoder: nn.Module, projector: nn.Module) -> None:
        """Called once after every optimiser step with the networks that it trains."""


class Separate(Shared, ABC):
    """Keys of another network, without gradient: a subclass embeds one view at a time in `embed_view`."""

    differentiable = False

    @torch.no_grad()
    def forward(self, views: list[Tensor], projection: Tensor, batch: HasText, generator: torch.Generator) -> Tensor:
        """Keys [V, B, D] for the V views that are queries. Every view that is a key is embedded once."""
        partners = self.partners(len(projection), len(views))
        keys = {v: self.embed_view(views[v], generator) for v in sorted(set(partners))}
        return torch.stack([keys[v] for v in partners])

    @abstractmethod
    def embed_view(self, view: Tensor, generator: torch.Generator) -> Tensor:
        """Keys of the images of one view, [B, C, H, W] -> [B, D]."""


class Momentum(Separate):
    """A copy of normalisation, encoder and projection head that follows the trained ones (EMA, He et al. 2020, eq. 2).

    momentum    of every parameter and every floating-point buffer: key <- m key + (1 - m) trained. Integer buffers are
                copied
    final       the momentum at the end of training, reached along half a cosine (Grill et al. 2020, section 3.2);
                None: constant
    num_queries how many views are queries: 1 for MoCo v1 and v2; None, all, for MoCo v3, whose loss is symmetric
    num_keys    how many views may be keys, from the first on: 2 with multi-crop. The key of view v is view v + 1,
                modulo this number
    shuffle_bn  images are shuffled across ranks before the copy embeds them, so that batch norm cannot reveal which
                query a key belongs to (He et al. 2020, section 3.3). One rank has nothing to shuffle. Synchronised
                batch norm is the alternative
    steps       of the training, for `final`; None: `plan` is called with them

    Every view that is a key takes a forward pass of its own, without gradient.
    """

    step: Tensor
    steps: Tensor

    def __init__(
        self,
        normalize: nn.Module,
        encoder: nn.Module,
        projector: nn.Module,
        momentum: float = 0.99,
        final: float | None = None,
        num_queries: int | None = None,
        num_keys: int = 2,
        shuffle_bn: bool = False,
        steps: int | None = None,
    ) -> None:
        super().__init__(num_queries, num_keys)
        if not 0 <= momentum <= 1 or not momentum <= (final if final is not None else 1) <= 1:
            raise InputError(f"a key encoder needs 0 <= momentum <= final <= 1, got {momentum} and {final}")
        self.momentum, self.final, self.shuffle_bn = momentum, final, shuffle_bn
        self.normalize, self.encoder, self.projector = map(copy.deepcopy, (normalize, encoder, projector))
        self.requires_grad_(False)
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        if steps is not None and steps < 1:
            raise InputError(f"the momentum rises over at least 1 step, got {steps}")
        self.register_buffer("steps", torch.tensor(steps or 0))
        self.spans_training = steps is None

    def embed_view(self, view: Tensor, generator: torch.Generator) -> Tensor:
        if not self.shuffle_bn or world_size() == 1:
            return self._net(view)
        images = len(view)
        all_views = gather(view)  # [W B, C, H, W]
        order = torch.randperm(len(all_views), generator=generator).to(view.device)
        shuffled = gather(self._net(all_views[order.chunk(world_size())[rank()]]))  # [W B, D], in this order
        return shuffled[order.argsort()][rank() * images :][:images]

    def _net(self, pixels: Tensor) -> Tensor:
        return self.projector(self.encoder(self.normalize(pixels)))

    def current(self) -> Tensor:
        """The present momentum, a scalar tensor."""
        if self.final is None:
            return torch.tensor(self.momentum)
        progress = (self.step / self.steps.clamp(min=1)).clamp(max=1)
        return self.final - (self.final - self.momentum) * (1 + torch.cos(math.pi * progress)) / 2

    def plan(self, steps: int) -> None:
        if self.spans_training:
            self.steps.fill_(steps)

    @torch.no_grad()
    def advance(self, encoder: nn.Module, projector: nn.Module) -> None:
        if self.final is not None and not self.steps:
            raise InputError("the momentum rises to `final` over the training: it needs steps=N, or plan(N) before it")
        weight = 1 - self.current()
        for copied_part, part in ((self.encoder, encoder), (self.projector, projector)):
            # in the same order; tied weights, which have two names, once
            copied, trained = ([*net.parameters(), *net.buffers()] for net in (copied_part, part))
            for value, source in zip(copied, trained, strict=True):
                if value.is_floating_point():
                    value.lerp_(source, weight.to(value))  # value + (1 - m) (source - value)
                else:
                    value.copy_(source)
        self.step += 1


class Second(Shared):
    """An encoder of another modality, the captions of the images, with a linear projection into the common space.

    encoder  [B, L] int64 -> [B, F], with the attribute `num_features`
    dim      D, of the projections of the images
    project  False: no projection, for towers that were trained together (with projector=identity); F must then be D,
             or InputError is raised

    One view of each image is a query.
    """

    def __init__(self, encoder: nn.Module, dim: int, project: bool = True) -> None:
        super().__init__(num_queries=1)
        self.encoder, width = encoder, int(encoder.num_features)  # type: ignore[arg-type]
        if not project and width != dim:
            raise InputError(f"texts have {width} dimensions and images {dim}: key.project=false needs equal ones")
        self.projector = nn.Linear(width, dim, bias=False) if project else nn.Identity()

    def forward(self, views: list[Tensor], projection: Tensor, batch: HasText, generator: torch.Generator) -> Tensor:
        """Keys [1, B, D]; InputError where the data set has no captions."""
        if batch.text is None:
            raise InputError(f"a second encoder {NO_CAPTIONS}")
        return self.embed(batch.text)[None]

    def embed(self, text: Tensor) -> Tensor:
        """Captions in the space of the images' projections, [B, L] -> [B, D]."""
        return self.projector(self.encoder(text))
