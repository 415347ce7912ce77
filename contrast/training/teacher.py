"""Distillation: the features of a frozen encoder are the keys.

V views, P of them queries, B images of this rank, D dimensions of the teacher's features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from contrast.config.trust import Config
from contrast.data.images.image_set import ImageFiles, Images
from contrast.data.store import digest
from contrast.encoders.pretrained import weights_of
from contrast.errors import InputError
from contrast.evaluation.encoder import from_source
from contrast.keys import Separate
from contrast.losses.similarity import unit


class FrozenTeacher(Separate):
    """The key of a view is the teacher's feature vector of the same view, divided by its length.

    images       of the run: the teacher is built for their channels and size
    dim          D, of the student's projections; the teacher has no projection head
    weights      a run, a file, torchvision:NAME, timm:NAME or hf:OWNER/NAME: `contrast.encoders.pretrained`
    encoder      the configuration of its architecture, which a file of plain weights does not hold; else None
    size         pixels a side to which views are resized for the teacher; None: they are not resized
    prefix       of the teacher's keys in a file of plain weights
    num_queries  how many views are queries; None: all
    num_keys     how many views the teacher embeds, from the first on: 2 with multi-crop. View v has the key of view
                 v modulo this number. None: all views that are queries

    Pixels are normalised by the teacher's own mean and standard deviation. The teacher is always in eval mode. It is in
    neither the optimiser nor the state dict: a resumed run reads its weights again and compares their digest.

    Raises InputError if D differs from the width of the features, and in `plan` if the weights have changed since the
    run began.
    """

    digest: Tensor

    def __init__(
        self,
        images: Images | ImageFiles,
        dim: int,
        weights: str,
        encoder: Config | None = None,
        size: int | None = None,
        prefix: str | None = None,
        num_queries: int | None = None,
        num_keys: int | None = None,
    ) -> None:
        super().__init__(num_queries, num_keys)
        try:
            net = from_source(weights_of(weights), encoder, images, prefix, size).eval().requires_grad_(False)
        except InputError as error:
            raise InputError(f"key.weights={weights}: {error}") from error
        if net.num_features != dim:
            raise InputError(
                f"the teacher's features have {net.num_features} dimensions and the student's projections {dim}: "
                f"projector.out_features={net.num_features}"
            )
        self.nets = (net,)  # in a tuple, so that it is no part of this module
        self.size, self.own_digest = size, torch.tensor(list(bytes.fromhex(digest(net))), dtype=torch.uint8)
        self.register_buffer("digest", self.own_digest.clone())  # that of the checkpoint, in a run that is resumed

    def partners(self, queries: int, views: int) -> list[int]:
        return [v % min(self.num_keys or queries, views) for v in range(queries)]

    def embed_view(self, view: Tensor, generator: torch.Generator) -> Tensor:
        """Keys [B, D] of length 1."""
        if self.size is not None:
            view = F.interpolate(view, (self.size, self.size), mode="bilinear", antialias=True)
        return unit(self.nets[0].to(view.device)(view))

    def plan(self, steps: int) -> None:
        if not torch.equal(self.digest.cpu(), self.own_digest):
            raise InputError("the teacher's weights (key.weights) are not those with which the run began")
