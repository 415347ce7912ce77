"""Fine-tuning: the encoder and a linear classifier trained together on labelled images.

B images, K classes.
"""

import copy
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from typing_extensions import Self

from contrast.atomic import replacing, rewrite_csv
from contrast.config.trust import Config
from contrast.data.images.image_set import Batch, ImageFiles, Images
from contrast.data.images.subset import hold_out
from contrast.errors import InputError
from contrast.evaluation.by_class import by_class
from contrast.evaluation.encoder import Frozen
from contrast.evaluation.features import EvaluationData, features
from contrast.optim.groups import parameter_groups
from contrast.optim.schedule import warmup_cosine
from contrast.optim.stages import freeze, layer_wise
from contrast.run.metrics import MetricsLog
from contrast.training.callbacks.progress import RunProgress
from contrast.training.data import PretrainData
from contrast.views import SimCLRViews


class Classifier(pl.LightningModule):
    """An encoder and a linear layer under cross entropy; SGD with Nesterov momentum, warm-up and cosine.

    A norm whose parameters are frozen keeps its running statistics, too.
    """

    def __init__(
        self,
        encoder: Frozen,
        classes: int,
        views: SimCLRViews,
        lr: float,
        weight_decay: float,
        seed: int,
        frozen_stages: int = 0,
        layer_decay: float = 1.0,
    ) -> None:
        super().__init__()
        freeze(encoder, frozen_stages)
        self.encoder = encoder
        self.classifier = nn.Linear(encoder.num_features, classes)
        nn.init.zeros_(self.classifier.weight)  # the first gradient of the encoder is zero, not noise
        nn.init.zeros_(self.classifier.bias)
        self.views, self.lr, self.weight_decay, self.layer_decay = views, lr, weight_decay, layer_decay
        self.generator = torch.Generator().manual_seed(seed)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for part in self.encoder.modules():
            parameters = list(part.parameters())
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                part.eval()
        return self

    def forward(self, pixels: Tensor) -> Tensor:
        return self.classifier(self.encoder(pixels))  # [B, C, H, W] -> [B, K]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        uniforms = self.views.draw(len(batch.pixels), self.generator).to(self.device)
        (view,) = self.views(batch.pixels, uniforms)
        loss = F.cross_entropy(self(view), batch.labels)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        groups = layer_wise(parameter_groups(self, self.weight_decay), self.encoder, self.lr, self.layer_decay)
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
    frozen_stages: int = 0,
    layer_decay: float = 1.0,
) -> dict[str, float]:
    """Fine-tune on `data.train`, read the test set once.

    epochs          of each training
    batch_size      images of a step
    weight_decay    of the weights
    held_out        the share of the training images on which learning rates are compared
    views           called with `size`, gives one augmented view of each image
    learning_rates  with several, each is tried on 1 - held_out of the training images, and the one with the best top-1
                    on the rest is used to train again on all of them. Where a class has a single image, none are held
                    out, and the middle rate is used, with a warning
    frozen_stages   how many stages of the encoder, from its input, are not trained: `contrast.optim.stages`
    layer_decay     the learning rate of stage i of n is layer_decay^(n - i) times that of the classifier

    `data.folder` gets the model as checkpoints/last.ckpt, which `contrast.load` reads, the loss of every step that is
    logged, in metrics.jsonl, and for the test set predictions.csv and confusion.csv.
    """
    rates = learning_rates or [0.03]
    if min(rates) <= 0 or min(epochs, batch_size) < 1 or weight_decay < 0 or not 0 < held_out < 1:
        raise InputError(
            f"fine-tuning needs learning rates above 0 ({rates}), at least 1 epoch ({epochs}) and 1 image in a batch "
            f"({batch_size}), a weight decay not below 0 ({weight_decay}), held_out between 0 and 1 ({held_out})"
        )
    if len(views(size=data.train.size).sizes) != 1:
        raise InputError("fine-tuning takes one view of each image: protocol.views.views=1")
    classes, given = len(data.train.classes), cast(Frozen, data.encoder)
    encoder = Frozen(given.normalize, given.encoder)  # without an encoder of captions, which would count as a stage

    def train(images: Images | ImageFiles, lr: float, logger: MetricsLog | bool = False) -> Classifier:
        pl.seed_everything(data.seed, verbose=False)
        view = views(size=images.size)
        own = copy.deepcopy(encoder).requires_grad_(True)  # also of an encoder that was frozen in pretraining
        model = Classifier(own, classes, view, lr, weight_decay, data.seed, frozen_stages, layer_decay)
        model.train()  # the encoder of `data` is in eval mode, and Lightning leaves it so
        batches = PretrainData(images, min(batch_size, len(images)), data.seed, data.workers)
        trainer = instantiate(
            data.trainer,
            max_epochs=epochs,
            logger=logger,
            enable_checkpointing=False,
            callbacks=[RunProgress(f"fine-tuning at learning rate {lr:g}")],
            use_distributed_sampler=False,
        )
        trainer.fit(model, batches)
        return model

    def logits(model: Classifier, images: Images | ImageFiles) -> Tensor:
        return features(model.to(data.device), images, device=data.device, desc="test", workers=data.workers)

    val = {}
    if len(rates) > 1 and int(data.train.labels.unique(return_counts=True)[1].min()) > 1:
        fit_rows, held_rows = hold_out(data.train.labels, held_out, data.seed)
        fit, held = data.train.select(fit_rows), data.train.select(held_rows)
        val = {lr: top1(logits(train(fit, lr), held), held) for lr in rates}
    elif len(rates) > 1:
        warnings.warn(
            "fine-tuning: a class has a single image, so none are held out and the middle learning rate is used",
            stacklevel=2,
        )
    best = max(val, key=lambda lr: val[lr]) if val else sorted(rates)[len(rates) // 2]
    model = train(data.train, best, data.folder is not None and MetricsLog(data.folder))
    scores = logits(model, data.test)
    classwise = by_class(scores.argmax(dim=1), data.test.labels, data.test.classes)
    data.details.update(class_accuracy=classwise.class_accuracy, confusion=classwise.confusion)
    if data.folder is not None:
        save(model, data.train.classes, data.config, data.folder)
        save_predictions(scores, data.test, classwise.confusion, data.folder)
    metrics = {"top1": top1(scores, data.test), "learning_rate": best, **classwise.means}
    return metrics | ({"val_top1": val[best]} if val else {})


def top1(scores: Tensor, images: Images | ImageFiles) -> float:
    return (scores.argmax(1) == images.labels).float().mean().item()


def save(model: Classifier, classes: Sequence[str], config: Config, folder: Path) -> None:
    """Writes a checkpoint of the encoder and its classifier to the place where a run has its own."""
    encoder = {key: value.cpu() for key, value in model.encoder.state_dict().items()}
    state = encoder | {f"classifier.{key}": value.cpu() for key, value in model.classifier.state_dict().items()}
    plain = {key: value for key, value in config.items() if key != "text"}  # the captions' encoder was not trained on
    with replacing(folder / "checkpoints" / "last.ckpt") as file:
        torch.save({"config": {**plain, "classes": list(classes)}, "state_dict": state}, file)


def save_predictions(scores: Tensor, images: Images | ImageFiles, confusion: list[list[int]], folder: Path) -> None:
    """predictions.csv, a row for each test image; confusion.csv, [class, predicted class], numbers of test images.

    An image has the name of its file or, if it comes from none, its number in the test set.
    """
    classes = images.classes
    probability, predicted = scores.softmax(dim=1).max(dim=1)
    names = range(len(images)) if images.names is None else images.names
    rows = zip(names, images.labels.tolist(), predicted.tolist(), probability.tolist(), strict=True)
    guesses = ([name, classes[label], classes[guess], f"{share:.4f}"] for name, label, guess, share in rows)
    rewrite_csv(folder / "predictions.csv", [["file", "label", "predicted", "probability"], *guesses])
    counted = ([name, *counts] for name, counts in zip(classes, confusion, strict=True))
    rewrite_csv(folder / "confusion.csv", [["label", *classes], *counted])
