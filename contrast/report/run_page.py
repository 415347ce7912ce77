"""The page of a run on images: what it learned, seen by its metrics, by a map, by neighbours and by mistakes.

N images on the page, F features, K classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor

from contrast.config.trust import Config
from contrast.data.images.image_set import ImageFiles, Images, Splits
from contrast.data.images.subset import stratified
from contrast.deploy.card import shown_command, training
from contrast.deploy.table import nearest_neighbours
from contrast.evaluation.by_class import per_class
from contrast.evaluation.encoder import Frozen, Towers
from contrast.evaluation.features import EvaluationData, features
from contrast.evaluation.geometry import effective_rank
from contrast.evaluation.knn import knn, nearest
from contrast.evaluation.linear_probe import linear
from contrast.evaluation.report import frozen_data, has_labels, metric_rows, recall_rows, wilson
from contrast.evaluation.retrieval import distinct, in_common_space
from contrast.losses.similarity import unit
from contrast.network import without_secrets
from contrast.report.curves import panels
from contrast.report.maps import maps
from contrast.report.page import Page, Section, picture, table, write_page
from contrast.report.pictures import sprite
from contrast.report.probe import Predictions, predictions, worst
from contrast.run.folder import record, title

MISTAKES, QUERIES, NEIGHBOURS, CAPTIONS = 24, 10, 8, 3  # how many of each are shown
PER_CLASS = "Of the linear probe, on all test images. A click on a heading sorts."
MOST = 2000  # images on the page by default


@dataclass(frozen=True, eq=False)
class RunReport:
    """What the page of a run is made of.

    encoder  of the run; `Towers` if it was trained on captions
    config   of the run, in plain values
    metrics  of the run; if those of a linear probe are absent, they are measured here
    folder   of the run, for its curves and views; None: there is none
    most     images on the page; of a larger test set a sample, drawn from `seed`
    evaluated  what the run was evaluated on just now, whose features are not computed again
    """

    encoder: Frozen
    splits: Splits
    config: Config
    metrics: Mapping[str, float]
    folder: Path | None
    device: torch.device
    most: int = MOST
    workers: int = 0
    seed: int = 0
    evaluated: EvaluationData | None = None

    def write(self, out: Path) -> None:
        """Computes and writes the page."""
        write_page(out, self.page())

    @cached_property
    def data(self) -> EvaluationData | None:
        """The labelled images that the run was evaluated on; None if there are none."""
        if self.splits.test is None or not has_labels(self.splits):
            return None
        limits = self.config.get("evaluation") or {}
        return self.evaluated or frozen_data(limits, self.encoder, self.splits, self.device, self.workers)

    @cached_property
    def images(self) -> Images | ImageFiles:
        """The images from which those of the page are taken: test images, or else those of the training."""
        if self.data is not None:
            return self.data.test
        return self.splits.train if self.splits.test is None else self.splits.test

    @property
    def kind(self) -> str:
        return "training" if self.splits.test is None else "test"

    @cached_property
    def measured(self) -> dict[str, float]:
        """The metrics of the run, or those of the encoder as it is."""
        if self.data is None or {"linear_learning_rate", "linear_weight_decay"} <= self.metrics.keys():
            return dict(self.metrics)
        given = self.config.get("evaluation") or {}
        vote = {key: given[key] for key in ("k", "temperature") if key in given}
        found = {f"knn_{name}": value for name, value in knn(self.data, **vote).items()}
        return {**self.metrics, **found, **{f"linear_{name}": value for name, value in linear(self.data).items()}}

    @cached_property
    def found(self) -> Predictions | None:
        """What the linear probe predicts; None without labels."""
        if self.data is None:
            return None
        setting = self.measured["linear_learning_rate"], self.measured["linear_weight_decay"]
        return predictions(self.data, *setting)

    @cached_property
    def sample(self) -> Tensor:
        """The rows [N] of `images` on the map, ascending, drawn in equal shares of the classes."""
        return stratified(classes_of(self.images.labels), self.most, self.seed)

    @cached_property
    def embedded(self) -> Tensor:
        """The features [N, F] of the images on the map."""
        if self.data is not None:
            return self.data.test_features[self.sample]
        chosen = self.images.select(self.sample)
        return features(self.encoder.to(self.device), chosen, device=self.device, workers=self.workers)

    def page(self) -> Page:
        mistakes = torch.empty(0, dtype=torch.int64) if self.found is None else worst(self.found, MISTAKES)
        # mistakes that the sample left out come behind it
        rows = torch.cat([self.sample, mistakes[~torch.isin(mistakes, self.sample)]])
        numbers = [rows.tolist().index(row) for row in mistakes.tolist()]
        return {
            "title": title(self.config),
            "subtitle": str(self.folder or ""),
            "sprite": sprite(self.images, rows),
            "items": self.items(rows),
            "sections": [
                self.summary(),
                self.scores(),
                None if self.folder is None else panels(self.folder),
                None if self.folder is None else picture(self.folder / "views.png", "Views"),
                self.map(),
                self.neighbours(),
                self.captions(),
                *self.classes(),
                {"kind": "mistakes", "title": "Worst mistakes", "images": numbers} if numbers else None,
                self.configuration(),
                {"kind": "metrics", "title": "All metrics", "values": self.measured, "closed": True},
            ],
        }

    def items(self, rows: Tensor) -> dict[str, object]:
        """Columns of values, one for each image on the page; of a class its number in "classes"."""
        images, found = self.images, self.found
        of_file = images.names.__getitem__ if isinstance(images, ImageFiles) else "row {}".format
        columns: dict[str, object] = {"name": [of_file(row) for row in rows.tolist()], "classes": list(images.classes)}
        if (images.labels[rows] >= 0).any():
            columns["label"] = images.labels[rows].tolist()
        if found is not None:
            columns["predicted"] = found.classes[rows].tolist()
            columns["probability"] = rounded(found.probability[rows])
        if images.text is not None and self.splits.tokenizer is not None:
            columns["caption"] = self.splits.tokenizer.decode(images.text[rows])
        return columns

    def summary(self) -> Section:
        """What was trained on what, in a few lines."""
        count, channels = f"{len(self.splits.pretrain):,} images to train on", self.images.channels
        facts = [
            ("data", f"{self.splits.name}: {count}, {len(self.images):,} {self.kind} images here"),
            ("images", f"{self.images.size} pixels a side, {channels} channel{'s' * (channels > 1)}"),
            ("features", f"{self.encoder.num_features:,}"),
            ("effective rank", f"{effective_rank(self.embedded).item():.1f} of at most {min(self.embedded.shape):,}"),
        ]
        return {"kind": "facts", "title": "Summary", "facts": facts}

    def scores(self) -> Section | None:
        """The metrics beside those of the untrained encoder and of raw pixels."""
        metrics, (heads, rows) = self.measured, metric_rows(self.measured)
        cells: list[list[object]] = []
        for key, label in rows.items():
            cells.append([label, *(shown(prefix + key, metrics, len(self.images)) for prefix in heads)])
        for label, recalls in recall_rows(metrics).items():
            best = ", ".join(f"recall@{k} {value:.4f}" for k, value in recalls.items())
            cells.append([label, *[""] * (max(1, len(heads)) - 1), best])
        note = f"Of {len(self.images):,} test images; 95 % intervals of shares leave out the choice of the seed."
        return table("Metrics", ["", *(heads.values() or ["trained"])], cells, note) if cells else None

    def map(self) -> Section | None:
        points, count, everything = maps(self.embedded, self.seed), len(self.sample), len(self.images)
        note = f"A sample of {count:,} of the {everything:,} {self.kind} images, drawn with seed {self.seed}."
        note = note if count < everything else f"All {count:,} {self.kind} images."
        return {"kind": "map", "title": "Map of the embeddings", "note": note, "points": points} if points else None

    def neighbours(self) -> Section | None:
        """The nearest other images of each image on the map, by the cosine of their features."""
        if len(self.embedded) < 2:
            return None
        with TemporaryDirectory() as scratch:
            near = nearest_neighbours(self.embedded.numpy(), NEIGHBOURS, Path(scratch) / "unit.npy", self.device)
        columns = {"rows": near.rows.tolist(), "cosines": rounded(torch.from_numpy(near.cosines))}
        return {"kind": "neighbours", "title": "Nearest neighbours", "queries": self.queries.tolist(), **columns}

    @cached_property
    def queries(self) -> Tensor:
        """Some images on the map, drawn from all classes."""
        return stratified(classes_of(self.images.labels[self.sample]), QUERIES, self.seed)

    def captions(self) -> Section | None:
        """The captions that are most similar to some images, of an encoder that was trained on captions."""
        text, tokenizer, towers = self.images.text, self.splits.tokenizer, self.encoder
        if not isinstance(towers, Towers) or text is None or tokenizer is None:
            return None
        first, number = distinct(text[self.sample].numpy())
        texts, chosen = text[self.sample[first]], self.images.select(self.sample[self.queries])
        data = EvaluationData(towers, chosen, chosen, self.device, workers=self.workers)
        pictures, keys = in_common_space(data, chosen, texts)
        cosines, found = nearest(unit(pictures), unit(keys), CAPTIONS, 32768)
        return {
            "kind": "captions",
            "title": "Captions for images",
            "queries": self.queries.tolist(),
            "texts": tokenizer.decode(texts),
            "own": number[self.queries].tolist(),
            "found": found.tolist(),
            "cosines": rounded(cosines),
        }

    def classes(self) -> list[Section]:
        """The confusion of the probe, and metrics of each class."""
        if self.found is None:
            return []
        names = list(self.images.classes)
        pairs, counts = torch.stack([self.found.labels, self.found.classes], dim=1).unique(dim=0, return_counts=True)
        number, *shares = (values.tolist() for values in per_class(self.found.classes, self.found.labels, len(names)))
        columns = [names, number, *([f"{share:.4f}" for share in column] for column in shares)]
        heads = ["class", "test images", "precision", "recall", "F1"]
        return [
            {"kind": "confusion", "title": "Confusion", "pairs": torch.cat([pairs, counts[:, None]], dim=1).tolist()},
            table("Classes", heads, list(zip(*columns, strict=True)), PER_CLASS),
        ]

    def configuration(self) -> Section:
        run, text = record(self.folder), {key: value for key, value in self.config.items() if key != "text"}
        return {
            "kind": "configuration",
            "title": "Configuration",
            "facts": [*training(self.config), *sorted(run.get("packages", {}).items())],
            "command": shown_command(run.get("overrides", ())),
            "text": without_secrets(OmegaConf.to_yaml(OmegaConf.create(text))),
        }


def classes_of(labels: Tensor) -> Tensor:
    """The labels, unlabelled images as a class of their own."""
    return labels + 1


def shown(name: str, metrics: Mapping[str, float], count: int) -> str:
    """A metric; if it is a share of `count` images, with its interval."""
    if name not in metrics or not name.endswith("top1"):
        return f"{metrics[name]:.4f}" if name in metrics else "-"
    low, high = wilson(metrics[name], count)
    return f"{metrics[name]:.4f}\n{low:.3f} to {high:.3f}"


def rounded(values: Tensor) -> list[object]:
    return np.round(values.cpu().double().numpy(), 4).tolist()
