"""Online probes: how good the frozen features are, while they are being trained.

Both are measured on held-out rows of the *training* set, so that the test set is read once, at the end.
V views, B images, F features, K classes.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, cast

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from contrast.data.images.image_set import Batch, ImageFiles, Images
from contrast.data.images.subset import hold_out, stratified, without_singles
from contrast.errors import InputError
from contrast.evaluation.features import features
from contrast.evaluation.knn import check_vote, knn_score
from contrast.module import Contrastive
from contrast.training.callbacks.ema import averaged

LinearState = dict[str, dict[str, object]]  # what a checkpoint holds of a linear probe: classifier, optimizer


class OnlineProbe(pl.Callback, ABC):
    """A measurement every `every_n_epochs` epochs and at the end, on features of labelled training images.

    every_n_epochs  a measurement after so many epochs
    held_out        the share of the images that is kept apart and measured on
    max_fit         at most so many images, in equal shares of every class, vote or train
    seed            of the choice of these images
    """

    name: str

    def __init__(
        self,
        images: Images | ImageFiles,
        every_n_epochs: int = 10,
        held_out: float = 0.2,
        max_fit: int = 20_000,
        seed: int = 0,
    ) -> None:
        if every_n_epochs < 1:
            raise InputError(f"an online probe needs every_n_epochs of at least 1, got {every_n_epochs}")
        self.images, self.every_n_epochs = images, every_n_epochs
        fit, held = hold_out(without_singles(images.labels), held_out, seed)
        max_held = max(1, int(max_fit * held_out / (1 - held_out)))
        self.fit_rows = fit[stratified(images.labels[fit], max_fit, seed)]
        self.held_rows = held[stratified(images.labels[held], max_held, seed)]

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epochs = trainer.current_epoch + 1
        if epochs == trainer.max_epochs or epochs % self.every_n_epochs == 0:
            pl_module.log(f"online/{self.name}_top1", self.measure(pl_module), prog_bar=True)

    @abstractmethod
    def measure(self, pl_module: pl.LightningModule) -> float:
        """The share of the held-out images whose class is recognised."""

    def features(self, pl_module: pl.LightningModule, rows: Tensor) -> tuple[Tensor, Tensor]:
        images, what = self.images.select(rows), f"online {self.name}"
        workers = getattr(pl_module.trainer.datamodule, "workers", 0)  # type: ignore[attr-defined]
        return features(pl_module, images, device=pl_module.device, desc=what, workers=workers), images.labels


class OnlineKNN(OnlineProbe):
    """Logs `online/knn_top1`: held-out training images voted on by the others (weighted kNN).

    k            images that vote on one
    temperature  of the weights of their votes
    """

    name = "knn"

    def __init__(self, images: Images | ImageFiles, k: int = 200, temperature: float = 0.07, **kwargs: Any) -> None:
        super().__init__(images, **kwargs)
        check_vote(k, temperature)
        self.k, self.temperature = k, temperature

    def measure(self, pl_module: pl.LightningModule) -> float:
        with averaged(pl_module.trainer, pl_module):
            fit, held = self.features(pl_module, self.fit_rows), self.features(pl_module, self.held_rows)
        return knn_score(*fit, *held, self.k, self.temperature, device=pl_module.device).top1


class OnlineLinear(OnlineProbe):
    """Logs `online/linear_top1`: a linear classifier trained on the detached embeddings as they pass by.

    lr  its learning rate
    Adam on the first view of every labelled training image that is not held out; the encoder gets no gradient. Its
    weights and moments are in the checkpoint.
    """

    name = "linear"

    def __init__(self, images: Images | ImageFiles, lr: float = 1e-2, **kwargs: Any) -> None:
        super().__init__(images, **kwargs)
        if not lr > 0:
            raise InputError(f"an online linear probe needs a learning rate above 0, got lr={lr}")
        self.lr, self.classes = lr, len(images.classes)
        self.held = torch.zeros(len(images), dtype=torch.bool)
        self.held[self.held_rows] = True
        self.trained: tuple[torch.nn.Linear, torch.optim.Adam] | None = None
        self.restored: LinearState = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.held = self.held.to(pl_module.device)
        num_features = int(cast(Contrastive, pl_module).encoder.num_features)  # type: ignore[arg-type]
        classifier = torch.nn.utils.skip_init(torch.nn.Linear, num_features, self.classes, device=pl_module.device)
        for parameter in classifier.parameters():
            torch.nn.init.zeros_(parameter)  # zeros, not noise: nothing is drawn from the run's random state
        self.trained = classifier, torch.optim.Adam(classifier.parameters(), self.lr)
        if self.restored:
            classifier.load_state_dict(self.restored["classifier"])
            self.trained[1].load_state_dict(self.restored["optimizer"])

    def on_train_batch_end(  # type: ignore[override]
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Mapping[str, Tensor],
        batch: Batch,
        *_: object,
    ) -> None:
        assert self.trained is not None
        classifier, optimizer = self.trained
        embedding = outputs["embedding"][0].float()  # [V, B, F] -> [B, F]
        held = self.held[batch.index.clamp(max=len(self.held) - 1)]  # rows beyond are unlabelled
        weight = ((batch.labels >= 0) & ~held).float()  # [B]
        losses = F.cross_entropy(classifier(embedding), batch.labels.clamp(min=0), reduction="none")  # [B]
        optimizer.zero_grad()
        ((losses * weight).sum() / weight.sum().clamp(min=1)).backward()
        optimizer.step()

    @torch.no_grad()
    def measure(self, pl_module: pl.LightningModule) -> float:
        assert self.trained is not None
        held, labels = self.features(pl_module, self.held_rows)
        predicted = self.trained[0](held.to(pl_module.device)).argmax(dim=1).cpu()  # [N, F] -> [N]
        return (predicted == labels).float().mean().item()

    def state_dict(self) -> LinearState:
        if self.trained is None:
            return {}
        return {"classifier": self.trained[0].state_dict(), "optimizer": self.trained[1].state_dict()}

    def load_state_dict(self, state_dict: LinearState) -> None:
        self.restored = state_dict
