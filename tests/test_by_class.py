"""What a classifier does on classes of unequal size."""

import torch
from sklearn import metrics

from contrast.evaluation.by_class import by_class


def test_each_class_counts_alike_and_an_absent_one_not_at_all() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.multinomial(torch.tensor([0.9, 0.07, 0.03]), 400, replacement=True, generator=generator)
    predicted = torch.where(torch.rand(400, generator=generator) < 0.7, labels, torch.zeros_like(labels))
    found = by_class(predicted, labels, ("common", "rare", "rarer", "absent"))
    truth, guess = labels.tolist(), predicted.tolist()
    confusion = [[0] * 4 for _ in range(4)]
    for label, each in zip(truth, guess, strict=True):
        confusion[label][each] += 1
    assert found.confusion == confusion
    shares = {name: confusion[k][k] / sum(confusion[k]) for k, name in enumerate(("common", "rare", "rarer"))}
    assert found.class_accuracy == {name: torch.tensor(share).item() for name, share in shares.items()}
    assert abs(found.means["class_mean_accuracy"] - sum(shares.values()) / 3) < 1e-6
    assert abs(found.means["macro_f1"] - metrics.f1_score(truth, guess, average="macro")) < 1e-6


def test_all_taken_for_the_common_class() -> None:
    found = by_class(torch.zeros(10, dtype=torch.int64), torch.tensor([0] * 9 + [1]), ("a", "b"))
    assert found.means["class_mean_accuracy"] == 0.5  # though nine of ten are right
    assert abs(found.means["macro_f1"] - (18 / 19) / 2) < 1e-6
