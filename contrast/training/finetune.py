"""Fine-tuning: the encoder and a linear classifier trained together on labelled images.

B images, K classes.
"""

import copy
import warnings
from collections.abc import Callable
from typing import cast

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from contrast.data.images.image_set import Batch, ImageFiles, Images
from contrast.data.images.subset import hold_out
from contrast.data.loader import PretrainData
from contrast.errors import InputError
from contrast.evaluation.encoder import Frozen
from contrast.evaluation.features import EvaluationData, features
from contrast.optim.groups import parameter_groups
from contrast.optim.schedule import warmup_cosine
from contrast.training.callbacks.progress import RunProgress
from contrast.views import SimCLRViews


class Classifier(pl.LightningModule):
    """An encoder and a linear layer under cross entropy; SGD with Nesterov momentum, warm-up and cosine."""

    def __init__(
        self, encoder: Frozen, classes: int, views: SimCLRViews, lr: float, weight_decay: float, seed: int
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.classifier = nn.Linear(encoder.num_features, classes)
        nn.init.zeros_(self.classifier.weight)  # the first gradient of the encoder is zero, not noise
        nn.init.zeros_(self.classifier.bias)
        self.views, self.lr, self.weight_decay = views, lr, weight_decay
        self.generator = torch.Generator().manual_seed(seed)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.classifier(self.encoder(pixels))  # [B, C, H, W] -> [B, K]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        uniforms = self.views.draw(len(batch.pixels), self.generator).to(self.device)
        (view,) = self.views(batch.pixels, uniforms)
        loss = F.cross_entropy(self(view), batch.labels)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        groups = parameter_groups(self, self.weight_decay)
        optimizer = torch.optim.SGD(groups, self.lr, momentum=0.9, nesterov=True)
        schedule = warmup_cosine(optimizer, total_steps=int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def finetune(
    data: EvaluationData,
    views: Callable[..., SimCLRViews],
    epochs: int = 50,
    batch_size: int = 128,
    learning_rates: list[float] | None = None,
    weight_decay: float = 1e-4,
    held_out: float = 0.2,
) -> dict[str, float]:
    """Fine-tune on `data.train`, read the test set once.

    views           called with `size`, gives one augmented view of each image
    learning_rates  with several, each is tried on 1 - held_out of the training images and the best on the rest wins;
                    it is then trained again on all of them. Where a class has a single image none can be held out,
                    and the middle rate is taken, with a warning
    """
    rates = learning_rates or [0.03]
    if min(rates) <= 0 or epochs < 1:
        raise InputError(f"fine-tuning needs learning rates above 0 and at least 1 epoch, got {rates} and {epochs}")
    classes, encoder = len(data.train.classes), cast(Frozen, data.encoder)

    def train(images: Images | ImageFiles, lr: float) -> Classifier:
        pl.seed_everything(data.seed, verbose=False)
        model = Classifier(copy.deepcopy(encoder), classes, views(size=images.size), lr, weight_decay, data.seed)
        model.train()  # the encoder of `data` is in eval mode, and Lightning leaves it so
        batches = PretrainData(images, min(batch_size, len(images)), data.seed, data.workers)
        trainer = instantiate(
            data.trainer,
            max_epochs=epochs,
            logger=False,
            enable_checkpointing=False,
            callbacks=[RunProgress(f"fine-tuning at learning rate {lr:g}")],
            use_distributed_sampler=False,
        )
        trainer.fit(model, batches)
        return model

    def top1(model: Classifier, images: Images | ImageFiles) -> float:
        scores = features(model.to(data.device), images, device=data.device, desc="test", workers=data.workers)
        return (scores.argmax(1) == images.labels).float().mean().item()

    val = {}
    if len(rates) > 1 and int(data.train.labels.unique(return_counts=True)[1].min()) > 1:
        fit_rows, held_rows = hold_out(data.train.labels, held_out, data.seed)
        fit, held = data.train.select(fit_rows), data.train.select(held_rows)
        val = {lr: top1(train(fit, lr), held) for lr in rates}
    elif len(rates) > 1:
        warnings.warn("fine-tuning: a class has a single image, so the learning rate was chosen unseen", stacklevel=2)
    best = max(val, key=lambda lr: val[lr]) if val else sorted(rates)[len(rates) // 2]
    metrics = {"top1": top1(train(data.train, best), data.test), "learning_rate": best}
    return metrics | ({"val_top1": val[best]} if val else {})
