"""The linear probe against scikit-learn, and its protocol."""

import math
import warnings

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

from contrast.data.images.image_set import Images, Splits
from contrast.data.images.subset import labelled_subset
from contrast.errors import InputError
from contrast.evaluation import linear_probe as module
from contrast.evaluation.features import EvaluationData
from contrast.evaluation.knn import knn_score
from contrast.evaluation.linear_probe import Setting, choose, few_labels, fit_linear, linear_probe, measure
from contrast.evaluation.report import frozen_data, frozen_metrics


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, ...]:
    x, y = load_digits(return_X_y=True)
    parts = train_test_split(x.astype(np.float32) / 16, y, test_size=360, random_state=0, stratify=y)
    train, test, train_labels, test_labels = map(torch.from_numpy, parts)
    return train, train_labels, test, test_labels


def clusters(n: int, f: int = 5, classes: int = 3, seed: int = 0, spread: float = 1.0) -> tuple[torch.Tensor, ...]:
    random = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, f, generator=random, dtype=torch.float64)
    labels = torch.arange(n) % classes
    return centres[labels] + spread * torch.randn(n, f, generator=random, dtype=torch.float64), labels


def objective(scores: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, decay: float) -> float:
    """mean cross entropy + decay / 2 ||weight||^2, in loops."""
    loss = 0.0
    for row, label in zip(scores.double().tolist(), labels.tolist(), strict=True):
        highest = max(row)
        loss += highest + math.log(sum(math.exp(s - highest) for s in row)) - row[label]
    return loss / len(labels) + decay / 2 * float(weight.double().square().sum())


@pytest.mark.parametrize("decay", [1e-1, 1e-2, 1e-3])
def test_converges_to_the_logistic_regression_of_scikit_learn(digits, decay):
    train, labels, test, test_labels = digits
    mine = fit_linear(train, labels, 10, [1.0], [decay], steps=200)
    mean, scale = train.double().mean(0), train.double().std(0, correction=0)
    scale[scale == 0] = 1
    theirs = LogisticRegression(C=1 / (decay * len(train)), tol=1e-8, max_iter=10000)
    theirs.fit((train - mean) / scale, labels)
    their_scores = torch.from_numpy(theirs.decision_function((train - mean) / scale))
    wanted = objective(their_scores, torch.from_numpy(theirs.coef_), labels, decay)
    assert objective(mine(train)[0].T, mine.weight, labels, decay) == pytest.approx(wanted, rel=1e-3)
    my_accuracy = (mine(test)[0].argmax(0) == test_labels).double().mean().item()
    assert my_accuracy == pytest.approx(theirs.score((test - mean) / scale, test_labels), abs=0.005)


@pytest.mark.parametrize(("n", "f"), [(60, 4), (12, 40)])  # more rows than features, and fewer
def test_the_optimum_has_no_gradient(n, f):
    x, labels = clusters(n, f)
    linear = fit_linear(x, labels, 3, [1.0], [0.02], steps=3000)
    weight, bias = linear.weight[0].T.requires_grad_(), linear.bias[0].requires_grad_()
    standard = (x - x.mean(0)) / x.std(0, correction=0)
    loss = torch.nn.functional.cross_entropy(standard @ weight + bias, labels) + 0.01 * weight.square().sum()
    loss.backward()
    assert weight.grad.abs().max() < 1e-9
    assert bias.grad.abs().max() < 1e-9


@pytest.mark.parametrize("scores", [1 << 19, 1])  # all rows at once, and 256 at a time
def test_the_grid_equals_each_setting_alone(monkeypatch, scores):
    x, labels = clusters(500)
    rates, decays = [0.1, 1.0, 1.0, 3.0], [0.0, 1e-3, 1e-1, 10.0]
    monkeypatch.setattr(module, "SCORES_PER_BLOCK", {"cpu": scores})
    together = fit_linear(x, labels, 3, rates, decays, steps=30)
    for g, (rate, decay) in enumerate(zip(rates, decays, strict=True)):
        alone = fit_linear(x, labels, 3, [rate], [decay], steps=30)
        torch.testing.assert_close(together.weight[g], alone.weight[0])
        torch.testing.assert_close(together(x)[g], alone(x)[0])
        hits, loss = measure(together, x, labels)
        assert hits[g].item() == (alone(x)[0].argmax(0) == labels).double().mean().item()
        assert loss[g].item() == pytest.approx(objective(alone(x)[0].T, alone.weight, labels, 0))


@pytest.mark.parametrize("rate", [0.01, 0.3, 1.0])
def test_a_learning_rate_up_to_one_goes_down_on_badly_scaled_features(rate):
    x, labels = clusters(80, f=30)
    x = x @ torch.diag(torch.logspace(-4, 4, 30, dtype=torch.float64)) + 1e3  # and nearly equal columns
    x = torch.cat([x, x[:, -1:] + 1e-3 * x[:, :1], torch.ones(80, 1, dtype=torch.float64)], dim=1)
    losses = []
    for steps in (1, 5, 25, 125):
        linear = fit_linear(x, labels, 3, [rate], [1e-3], steps)
        losses.append(objective(linear(x)[0].T, linear.weight, labels, 1e-3))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] < math.log(3)


def test_the_probe_reaches_what_logistic_regression_reaches_on_raw_digits(digits):
    train, labels, test, test_labels = digits
    probe = linear_probe(train, labels, test, test_labels)
    assert probe.top1 == pytest.approx(0.964, abs=0.01)
    assert probe.val_top1 == pytest.approx(0.964, abs=0.02)
    assert probe.top5 > 0.99
    assert len(probe.table) == 28
    assert probe == linear_probe(train, labels, test, test_labels)


def test_the_choice_never_sees_the_test_set():
    x, labels = clusters(300)
    test, test_labels = clusters(60, seed=1)
    one = linear_probe(x, labels, test, test_labels)
    two = linear_probe(x, labels, test, test_labels.flip(0))
    assert (one.table, one.val_top1) == (two.table, two.val_top1)
    assert one.top5 is None


def test_the_lowest_loss_wins_within_one_standard_error_of_the_best_top1():
    table = [Setting(1, 0, 0.90, 0.5), Setting(1, 1, 0.88, 0.3), Setting(1, 2, 0.86, 0.2), Setting(1, 3, 0.1, 0.1)]
    assert choose(table, held=100)[0] == table[1]  # sqrt(0.9 * 0.1 / 100) = 0.03
    assert choose(table, held=50)[0] == table[2]  # 0.042
    assert choose(table, held=900)[0] == table[0]  # 0.01


def test_half_precision_and_autocast_are_computed_in_float32():
    x, labels = clusters(200)
    x = x.bfloat16()
    wanted = linear_probe(x.float(), labels, x.float(), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear_probe(x, labels, x, labels) == wanted


def test_a_choice_on_the_border_of_the_grid_is_a_warning():
    x, labels = clusters(2000, f=20, classes=10, spread=1.5)
    with pytest.warns(UserWarning, match=r"weight_decay 0\.5 is on the border of the grid \(0\.5 to 500\)"):
        linear_probe(x, labels, x, labels, learning_rates=[1], weight_decays=[0.5, 50, 500])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        linear_probe(x, labels, x, labels, learning_rates=[1], weight_decays=[1e-6, 1e-3, 1e-2, 10])


@pytest.mark.parametrize("per_class", [2, 3, 10])
def test_few_labels(per_class):
    x, labels = clusters(3 * per_class, f=20, spread=0.3)
    test, test_labels = clusters(90, f=20, spread=0.3)
    probe = linear_probe(x, labels, test, test_labels)
    assert probe.top1 > 0.9
    assert 0 <= probe.val_top1 <= 1


def test_one_label_a_class_takes_the_middle_of_the_grid_and_says_so():
    x, labels = clusters(3, f=20, spread=0.3)
    test, test_labels = clusters(90, f=20, spread=0.3)
    with pytest.warns(UserWarning, match="no class has two of the 3 training rows"):
        probe = linear_probe(x, labels, test, test_labels)
    assert math.isnan(probe.val_top1)
    assert probe.table == ()
    assert probe.top1 > 0.7
    x, labels = clusters(4, f=20, spread=0.3)  # class 0 has two rows, the others one
    assert len(linear_probe(x, labels, test, test_labels).table) == 28


def test_bad_input_is_refused_with_its_numbers():
    x, labels = clusters(20)
    hidden = labels.clone()
    hidden[:3] = -1
    with pytest.raises(InputError, match="training set: 3 of 20 rows have no label"):
        linear_probe(x, hidden, x, labels)
    with pytest.raises(InputError, match="test set: 3 of 20 rows have no label"):
        linear_probe(x, labels, x, hidden)
    with pytest.raises(InputError, match=r"\[20, 4\] do not fit training features \[N, 5\]"):
        linear_probe(x, labels, x[:, :4], labels)
    with pytest.raises(InputError, match="20 of 20 rows are not finite"):
        linear_probe(x / 0, labels, x, labels)
    with pytest.raises(InputError, match=r"learning rates above 0 \(\[0, 1\]\)"):
        linear_probe(x, labels, x, labels, learning_rates=[1, 0])


def data_of(train: torch.Tensor, train_labels: torch.Tensor, test: torch.Tensor, test_labels: torch.Tensor):
    """Images of one pixel that holds the number of its row, and an encoder that gives the features of that row."""
    rows = torch.arange(len(train) + len(test), dtype=torch.uint8).view(-1, 1, 1, 1)
    classes = tuple(map(str, range(10)))
    first, second = Images(rows[: len(train)], train_labels, classes), Images(rows[len(train) :], test_labels, classes)
    table = torch.cat([train, test])
    return EvaluationData(lambda pixels: table[pixels.flatten().long()], first, second, torch.device("cpu"))


def test_all_metrics_of_an_encoder_in_one_call():
    x, labels = clusters(120, f=8, classes=6, spread=0.5)
    test, test_labels = clusters(60, f=8, classes=6, spread=0.5)
    data = data_of(x, labels, test, test_labels)
    cfg = OmegaConf.create({"k": 200, "temperature": 0.07, "per_class": [5, 10, 21]})
    data = frozen_data(cfg, data.encoder, Splits("rows", data.train, data.test), data.device)
    scores = frozen_metrics(cfg, data, "untrained_")
    assert set(scores) == {
        "untrained_knn_top1",
        "untrained_knn_top5",
        "untrained_linear_top1",
        "untrained_linear_top5",
        "untrained_linear_val_top1",
        "untrained_linear_learning_rate",
        "untrained_linear_weight_decay",
        "untrained_linear_macro_f1",
        "untrained_linear_class_mean_accuracy",
        "untrained_linear_5_per_class_top1",
        "untrained_linear_10_per_class_top1",  # 21 of a class that has 20 cannot be drawn
    }
    x, test = x.float(), test.float()
    assert scores["untrained_linear_top1"] == linear_probe(x, labels, test, test_labels).top1
    assert scores["untrained_knn_top5"] == knn_score(x, labels, test, test_labels).top5
    probes = []
    for seed in range(5):
        rows = labelled_subset(labels, per_class=5, seed=seed)
        probes.append(linear_probe(x[rows], labels[rows], test, test_labels, seed=seed).top1)
    assert scores["untrained_linear_5_per_class_top1"] == pytest.approx(sum(probes) / 5)
    assert sum(probes) / 5 <= scores["untrained_linear_top1"] + 0.05


def test_few_labels_of_classes_of_which_one_has_no_row():
    x, labels = clusters(60, classes=3)
    data = data_of(x, 2 * labels, x, 2 * labels)  # classes 0, 2, 4
    assert 0 < few_labels(data, per_class=20, draws=2) <= 1
    assert few_labels(data, per_class=21) is None


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.float32, "numpy"])
def test_labels_of_every_type_of_whole_numbers(dtype: torch.dtype | str):
    x, labels = clusters(120)
    given = labels.numpy().astype(np.uint16) if dtype == "numpy" else labels.to(dtype)
    assert linear_probe(x, given, x, given) == linear_probe(x, labels, x, labels)
    weight = fit_linear(x, labels, 3, [1.0], [0.1]).weight
    assert torch.equal(fit_linear(x, given, 3, [1.0], [0.1]).weight, weight)


def test_labels_that_are_not_whole_or_of_no_class_are_refused():
    x, labels = clusters(20)
    with pytest.raises(InputError, match="training set: labels must be whole numbers"):
        linear_probe(x, labels + 0.5, x, labels)
    with pytest.raises(InputError, match="20 of 20 rows have no label"):
        fit_linear(x, torch.full((20,), -1), 3, [1.0], [0.1])
    with pytest.raises(InputError, match="below 2, but one is 2"):
        fit_linear(x, labels, 2, [1.0], [0.1])
