"""Vectors of all images of a data set, by Lightning's `predict`: on any device and number of ranks, resumable.

N images, B of a batch, F features.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from tqdm import tqdm

from contrast.data.images.image_set import Batch, ImageFiles, Images
from contrast.data.loader import Batches
from contrast.deploy.load import ImageEncoder
from contrast.deploy.parts import Part, Parts

PART_BATCHES = 8  # batches of a part: a killed run loses at most so many on each rank


class Predictor(pl.LightningModule):
    """Writes the missing parts of `parts`, which are whole batches of `splits`; each rank its own."""

    def __init__(
        self,
        encoder: ImageEncoder,
        splits: Mapping[str, Images | ImageFiles],
        parts: Parts,
        batch_size: int,
        workers: int,
    ) -> None:
        super().__init__()
        self.encoder, self.splits, self.parts = encoder, splits, parts
        self.batch_size, self.workers = batch_size, workers
        self.missing: list[Part] = []
        self.rows: list[np.ndarray] = []  # of the first of the missing parts
        self.bar = tqdm(disable=True)

    def predict_dataloader(self) -> "Missing":
        written, self.missing = self.parts.of_rank(self.trainer.global_rank, self.trainer.world_size)
        self.bar = tqdm(
            total=sum(map(len, written + self.missing)),
            initial=sum(map(len, written)),
            desc="embedding",
            unit="image",
            disable=not self.trainer.is_global_zero,
            dynamic_ncols=True,
            mininterval=1.0,  # seconds: a log that is a file gets no line for every batch
        )
        return Missing(self)

    def predict_step(self, batch: Batch) -> None:
        vectors: Tensor = self.encoder(batch.pixels)  # [B, F]
        self.rows.append(vectors.float().cpu().numpy())
        self.bar.update(len(vectors))
        if sum(map(len, self.rows)) == len(self.missing[0]):
            self.parts.write(self.missing.pop(0), np.concatenate(self.rows))
            self.rows = []


class Missing:
    """The batches of the parts that a rank has to write, in their order."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor, self.missing = predictor, list(predictor.missing)

    def __len__(self) -> int:
        return sum(-(-len(part) // self.predictor.batch_size) for part in self.missing)

    def __iter__(self) -> Iterator[Batch]:
        one = self.predictor
        for split, images in one.splits.items():
            rows = [torch.arange(part.start, part.stop) for part in self.missing if part.split == split]
            if not rows:
                continue
            if sum(map(len, rows)) < len(images):
                images = images.select(torch.cat(rows))
            yield from Batches(images, one.batch_size, seed=0, shuffle=False, device=one.device, workers=one.workers)
