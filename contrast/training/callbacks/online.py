"""Online probes: how good the frozen features are, while they are being trained.

Both are measured on held-out rows of the *training* set, so that the test set is read once, at the end.
V views, B images, F features, K classes.
"""

from typing import Any, TypedDict, cast

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from contrast.data.images.image_set import Batch, ImageFiles, Images
from contrast.data.images.subset import hold_out, stratified
from contrast.errors import InputError
from contrast.evaluation.features import features
from contrast.evaluation.knn import knn_score
from contrast.module import Contrastive


class LinearState(TypedDict, total=False):
    """What a checkpoint holds of a linear probe."""

    classifier: dict[str, Any]
    optimizer: dict[str, Any]


class OnlineProbe(pl.Callback):
    """A measurement every `every_n_epochs` epochs and at the end, on features of labelled training images.

    At most `max_fit` images, in equal shares of every class, vote or train; the share `held_out` of the images is kept
    apart and measured on.
    """

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

    def due(self, trainer: pl.Trainer) -> bool:
        last = trainer.max_epochs is not None and trainer.current_epoch + 1 == trainer.max_epochs
        return last or (trainer.current_epoch + 1) % self.every_n_epochs == 0

    def features(self, pl_module: pl.LightningModule, rows: Tensor, what: str) -> tuple[Tensor, Tensor]:
        images = self.images.select(rows)
        workers = getattr(pl_module.trainer.datamodule, "workers", 0)  # type: ignore[attr-defined]
        return features(pl_module, images, device=pl_module.device, desc=what, workers=workers), images.labels


class OnlineKNN(OnlineProbe):
    """Logs `online/knn_top1`: held-out training images voted on by the others (weighted kNN)."""

    def __init__(self, images: Images | ImageFiles, k: int = 200, temperature: float = 0.07, **kwargs: Any) -> None:
        super().__init__(images, **kwargs)
        self.k, self.temperature = k, temperature

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.due(trainer):
            fit, fit_labels = self.features(pl_module, self.fit_rows, "online kNN")
            held, held_labels = self.features(pl_module, self.held_rows, "online kNN")
            result = knn_score(fit, fit_labels, held, held_labels, self.k, self.temperature, device=pl_module.device)
            pl_module.log("online/knn_top1", result.top1, prog_bar=True)


class OnlineLinear(OnlineProbe):
    """Logs `online/linear_top1`: a linear classifier trained on the detached embeddings as they pass by.

    Adam on the first view of every labelled training image that is not held out; the encoder gets no gradient. Its
    weights and moments are in the checkpoint.
    """

    def __init__(self, images: Images | ImageFiles, lr: float = 1e-2, **kwargs: Any) -> None:
        super().__init__(images, **kwargs)
        self.lr, self.classes = lr, len(images.classes)
        self.held = torch.zeros(len(images), dtype=torch.bool)
        self.held[self.held_rows] = True
        self.classifier: torch.nn.Linear | None = None
        self.optimizer: torch.optim.Adam | None = None
        self.restored: LinearState | None = None

    def _build(self, num_features: int, device: torch.device) -> None:
        self.classifier = torch.nn.utils.skip_init(torch.nn.Linear, num_features, self.classes, device=device)
        torch.nn.init.zeros_(self.classifier.weight)  # zeros, not noise: the run's random state stays its own
        torch.nn.init.zeros_(self.classifier.bias)
        self.optimizer = torch.optim.Adam(self.classifier.parameters(), self.lr)
        if self.restored is not None:
            self.classifier.load_state_dict(self.restored["classifier"])
            self.optimizer.load_state_dict(self.restored["optimizer"])

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.held = self.held.to(pl_module.device)
        self._build(int(cast(Contrastive, pl_module).encoder.num_features), pl_module.device)  # type: ignore[arg-type]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        assert self.classifier is not None
        assert self.optimizer is not None
        embedding: Tensor = outputs["embedding"][0].float()  # [V, B, F] -> [B, F]
        held = self.held[batch.index.clamp(max=len(self.held) - 1)]  # rows beyond are unlabelled
        weight = ((batch.labels >= 0) & ~held).float()  # [B]
        losses = F.cross_entropy(self.classifier(embedding), batch.labels.clamp(min=0), reduction="none")  # [B]
        self.optimizer.zero_grad()
        ((losses * weight).sum() / weight.sum().clamp(min=1)).backward()
        self.optimizer.step()

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.due(trainer):
            assert self.classifier is not None
            held, labels = self.features(pl_module, self.held_rows, "online linear")
            predicted = self.classifier(held.to(pl_module.device)).argmax(dim=1).cpu()  # [N, F] -> [N]
            pl_module.log("online/linear_top1", (predicted == labels).float().mean(), prog_bar=True)

    def state_dict(self) -> LinearState:  # type: ignore[override]
        if self.classifier is None or self.optimizer is None:
            return {}
        return {"classifier": self.classifier.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: LinearState) -> None:  # type: ignore[override]
        self.restored = state_dict or None


def without_singles(labels: Tensor) -> Tensor:
    """The labels [N], -1 for the only image of a class: it can be held out from nothing."""
    counts = torch.bincount(labels[labels >= 0], minlength=1)
    return torch.where((labels >= 0) & (counts[labels.clamp(min=0)] < 2), -1, labels)
