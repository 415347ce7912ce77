"""The linear probe: logistic regression on the features of an encoder, its settings chosen without the test set.

N rows, F features, K classes, G settings of the grid, R principal axes of the standardised features (R <= min(N, F)).

Multinomial logistic regression on features standardised by the mean and standard deviation of the rows fitted:

    mean cross entropy + weight_decay / 2 * ||weight||^2        (the bias is not decayed)

so weight_decay = 1 / (C * N) in terms of scikit-learn's C.

The whole grid of learning rates x weight decays is fitted in one pass: all settings share every product with the
features, [G K, R] x [R, N]. The features are rotated onto their principal axes, which leaves the objective as it is,
and each axis has its own step. Along an axis of variance v the cross entropy curves by at most v / 2 (Boehning 1992):

    step = learning_rate / (v / 2 + learning_rate * weight_decay)

where the decay is taken implicitly, so that no decay is too large for a learning rate. A learning rate thus means the
same for every encoder: up to 1 it converges for sure, well below 1 it stops early, which regularises too, and above 1
it is faster as long as the curvature stays below the bound (with few classes it may not). Each step reads all rows,
so nothing is drawn at random, and has Nesterov's momentum (1983), which starts anew for a setting whose step turns
against its gradient (O'Donoghue and Candes 2015).
"""

import math
import warnings
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor
from tqdm import tqdm

from contrast.data.images.subset import hold_out_test, labelled_subset
from contrast.errors import InputError
from contrast.evaluation.by_class import by_class
from contrast.evaluation.features import EvaluationData, check_labelled, labelled_sets, with_float64

LEARNING_RATES = (0.1, 0.3, 1.0, 3.0)
WEIGHT_DECAYS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
HELD_OUT = 0.2  # of the training rows
MIN_ROWS_ONE_DRAW = 1000  # with fewer training rows one held-out part is too small: the mean over five draws is taken
SCORES_PER_BLOCK = {"cpu": 1 << 19, "cuda": 1 << 25}  # what a CPU's cache holds; what keeps a GPU busy
MIN_RELATIVE_DEVIATION = 1e-6  # a feature whose deviation is a smaller share of the largest is constant up to rounding
MIN_RELATIVE_VARIANCE = 1e-10  # a principal axis whose variance is a smaller share of the largest is rounding noise


class Setting(NamedTuple):
    """One point of the grid and its results on the held-out rows."""

    learning_rate: float
    weight_decay: float
    val_top1: float
    val_loss: float


class LinearProbe(NamedTuple):
    """Shares of rows, 0 to 1, of the test set, and of held-out rows (val_top1, NaN where nothing could be held out)."""

    top1: float
    val_top1: float
    learning_rate: float
    weight_decay: float
    top5: float | None  # None below six classes
    table: tuple[Setting, ...]  # the results of every setting on held-out rows; empty where none could be held out
    predicted: tuple[int, ...]  # classes of the M test rows


class LinearClassifiers(NamedTuple):
    """G linear classifiers of standardised features."""

    mean: Tensor  # [F]
    scale: Tensor  # [F]
    weight: Tensor  # [G, K, F]
    bias: Tensor  # [G, K]

    def __call__(self, features: Tensor) -> Tensor:
        """Scores [G, K, n] of features [n, F], in the precision of the weights whatever autocast says."""
        x = (features.to(self.mean.dtype) - self.mean) / self.scale
        with torch.autocast(x.device.type, enabled=False):
            scores = self.weight.flatten(0, 1) @ x.T  # [G K, F] x [F, n] -> [G K, n]
        return scores.unflatten(0, self.bias.shape) + self.bias[:, :, None]


@torch.no_grad()
def fit_linear(
    features: Tensor,
    labels: Tensor | ArrayLike,
    classes: int,
    learning_rates: Sequence[float],
    weight_decays: Sequence[float],
    steps: int = 100,
    desc: str = "linear probe",
) -> LinearClassifiers:
    """Fit G classifiers at once: setting g has learning_rates[g] and weight_decays[g], both of length G.

    features [N, F], labels [N] in 0..classes-1, on one device. float32 (float64 stays), whatever autocast says.
    """
    labels = check_labelled(features, labels, desc)
    if int(labels.max()) >= classes:
        raise InputError(f"{desc}: labels of {classes} classes must be below {classes}, but one is {int(labels.max())}")
    x = features if features.dtype == torch.float64 else features.float()
    mean, scale = x.mean(dim=0), x.std(dim=0, correction=0)
    scale = torch.where(scale > MIN_RELATIVE_DEVIATION * scale.max(), scale, 1)
    x = (x - mean) / scale
    lr, decay = x.new_tensor(learning_rates), x.new_tensor(weight_decays)  # [G]
    n, settings = len(x), len(lr)

    with torch.autocast(x.device.type, enabled=False):
        variance, axes = principal_axes(x)
        x = F.pad(x @ axes, (0, 1), value=1.0)  # [N, R + 1]: the last column carries the bias
        half = F.pad(variance, (0, 1), value=1.0) / 2  # [R + 1]
        decay = F.pad(decay[:, None].expand(-1, len(variance)), (0, 1))[:, None]  # [G, 1, R + 1], 0 for the bias
        step = lr[:, None, None] / (half + lr[:, None, None] * decay)  # [G, 1, R + 1]

        target = F.one_hot(labels, classes).to(x.dtype).T @ x / n  # [K, N] x [N, R + 1] -> [K, R + 1]
        weight = x.new_zeros(settings, classes, x.shape[1])
        ahead, t = weight, lr.new_ones(settings)
        for _ in tqdm(range(steps), desc=desc, unit="step", delay=1, leave=False):
            gradient = (decay * ahead - target).flatten(0, 1)  # [G K, R + 1]
            for rows in x.split(rows_per_block(x, settings * classes)):
                scores = ahead.flatten(0, 1) @ rows.T  # [G K, R + 1] x [R + 1, n] -> [G K, n]
                p = scores.unflatten(0, (settings, classes)).softmax(dim=1)
                gradient.addmm_(p.flatten(0, 1), rows, alpha=1 / n)  # [G K, n] x [n, R + 1]
            gradient = gradient.view_as(weight)
            moved = ahead - step * gradient
            change = moved - weight
            t = torch.where((gradient * change).sum(dim=(1, 2)) > 0, 1, t)  # momentum 0 and a new start
            t_next = (1 + (1 + 4 * t * t).sqrt()) / 2
            ahead = moved + ((t - 1) / t_next)[:, None, None] * change
            weight, t = moved, t_next
        weight, bias = weight[:, :, :-1] @ axes.T, weight[:, :, -1]  # [G, K, R] x [R, F] -> [G, K, F]
    return LinearClassifiers(mean, scale, weight, bias)


def principal_axes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Variances [R] and unit axes [F, R] of centred x [N, F], by the smaller of its two Gram matrices, in float64."""
    n, f = x.shape
    if f <= n:
        gram = torch.zeros(f, f, dtype=torch.float64, device=x.device)
        for rows in x.split(1 << 15):
            gram.addmm_(rows.double().T, rows.double())  # [F, n] x [n, F] -> [F, F]
        variance, axes = torch.linalg.eigh(gram / n)
    else:
        wide = x.double()
        variance, left = torch.linalg.eigh(wide @ wide.T / n)  # [N, F] x [F, N] -> [N, N]
        axes = wide.T @ left / (n * variance.clamp(min=torch.finfo(torch.float64).tiny)).sqrt()
    keep = variance > max(MIN_RELATIVE_VARIANCE * variance[-1].item(), 0.0)
    return variance[keep].to(x.dtype), axes[:, keep].to(x.dtype)


def rows_per_block(rows: Tensor, width: int) -> int:
    """How many rows at a time, so that `width` scores of each of them fit into the budget of their device."""
    return max(256, SCORES_PER_BLOCK.get(rows.device.type, 1 << 22) // width)


@torch.no_grad()
def measure(classifiers: LinearClassifiers, features: Tensor, labels: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
    """Top-k and mean cross entropy, [G] float64 each; a setting that diverged has 0 and infinity."""
    hits, loss = torch.zeros(2, len(classifiers.bias), dtype=torch.float64, device=features.device)
    block = rows_per_block(features, classifiers.bias.numel())
    for rows, target in zip(features.split(block), labels.split(block), strict=True):
        scores = classifiers(rows)  # [G, K, n]
        hits += (scores.topk(k, dim=1).indices == target).any(dim=1).sum(dim=1)
        truth = scores.gather(1, target.expand(len(scores), 1, -1)).squeeze(1)  # [G, n]
        loss += (scores.logsumexp(dim=1) - truth).sum(dim=1)
    diverged = ~torch.isfinite(loss)
    return (hits / len(labels)).masked_fill(diverged, 0), (loss / len(labels)).masked_fill(diverged, torch.inf)


def linear_probe(
    train: Tensor,
    train_labels: Tensor | ArrayLike,
    test: Tensor,
    test_labels: Tensor | ArrayLike,
    learning_rates: Sequence[float] = LEARNING_RATES,
    weight_decays: Sequence[float] = WEIGHT_DECAYS,
    steps: int = 100,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> LinearProbe:
    """Logistic regression on train [N, F] with N labels, measured on test [M, F] with M labels.

    Every pair of a learning rate and a weight decay is fitted in one pass to 80 % of each class of the training rows
    and measured on the rest, drawn from seed. Among the settings whose top-1 is within one standard error of the best
    (Breiman et al. 1984, section 3.4.3) the lowest cross entropy wins, since a few held-out rows hardly tell top-1s
    apart. That setting is fitted again to all training rows, and only then is the test set read, once. Below 1,000
    training rows the choice is by the mean over five such draws. A class with a single row always stays in the fitted
    part; where no class has two, nothing can be held out: the middle of the grid is taken, with a warning and
    val_top1 = NaN.

    Warns when the setting is at an end of the grid and no inner value comes within one standard error of it.
    InputError for unlabelled rows (-1), features that are not finite and shapes that do not fit. device: by default
    where the features are.
    """
    sets = (train, train_labels), (test, test_labels)
    train, labels, test, target, classes = labelled_sets("linear probe", *sets, with_float64(device or train.device))
    rates, decays = checked_grid(learning_rates, weight_decays, steps)
    table, held = validated(train, labels, classes, list(product(rates, decays)), steps, seed)
    if held:
        best, error = choose(table, held)
        warn_of_border(table, best, error)
    else:
        best = Setting(rates[len(rates) // 2], decays[len(decays) // 2], math.nan, math.nan)
        warnings.warn(
            f"linear probe: no class has two of the {len(train)} training rows, so none were held out and "
            f"learning rate {best.learning_rate:g}, weight decay {best.weight_decay:g} are used without a comparison",
            stacklevel=2,
        )
    chosen = [best.learning_rate], [best.weight_decay]
    classifier = fit_linear(train, labels, classes, *chosen, steps, "linear probe, final fit")
    top1 = measure(classifier, test, target)[0].item()
    top5 = measure(classifier, test, target, k=5)[0].item() if classes > 5 else None
    predicted = torch.cat([classifier(part)[0].argmax(dim=0) for part in test.split(rows_per_block(test, classes))])
    classes_of_rows = tuple(predicted.tolist())
    return LinearProbe(top1, best.val_top1, best.learning_rate, best.weight_decay, top5, table, classes_of_rows)


def checked_grid(
    learning_rates: Sequence[float], weight_decays: Sequence[float], steps: int
) -> tuple[list[float], list[float]]:
    """Rates and decays in order; InputError for values out of range."""
    rates, decays = sorted(learning_rates), sorted(weight_decays)
    if steps < 1 or not rates or not decays or rates[0] <= 0 or decays[0] < 0:
        raise InputError(
            f"linear probe: it needs at least one step ({steps}), learning rates above 0 ({rates}) "
            f"and weight decays not below 0 ({decays})"
        )
    return rates, decays


def validated(
    x: Tensor, y: Tensor, classes: int, grid: list[tuple[float, float]], steps: int, seed: int
) -> tuple[tuple[Setting, ...], int]:
    """The grid measured on held-out rows, in its order, and their number: 0 where no class has two rows."""
    draws, count = 1 if len(y) >= MIN_ROWS_ONE_DRAW else 5, 0
    total = torch.zeros(2, len(grid), dtype=torch.float64, device=x.device)
    rates, decays = zip(*grid, strict=True)
    for draw in range(draws):
        fit, held = (rows.to(y.device) for rows in hold_out_test(y, HELD_OUT, seed + draw))
        if not len(held):
            return (), 0
        desc = f"linear probe, draw {draw + 1}/{draws}"
        classifiers = fit_linear(x[fit], y[fit], classes, rates, decays, steps, desc)
        total += torch.stack(measure(classifiers, x[held], y[held])) / draws
        count += len(held)
    return tuple(Setting(*point, *values) for point, values in zip(grid, total.T.tolist(), strict=True)), count


def choose(table: Sequence[Setting], held: int) -> tuple[Setting, float]:
    """The lowest cross entropy within one standard error of the best top-1 on `held` rows, and that error."""
    top1 = max(setting.val_top1 for setting in table)
    error = math.sqrt(top1 * (1 - top1) / held)
    near = [setting for setting in table if setting.val_top1 >= top1 - error]
    return min(near, key=lambda setting: setting.val_loss), error


def warn_of_border(table: Sequence[Setting], best: Setting, error: float) -> None:
    """Warn where a value of `best` is the first or last of the grid and no inner one comes within `error`."""
    for place, name in enumerate(("learning_rate", "weight_decay")):
        values = sorted({setting[place] for setting in table})
        inner = [setting.val_top1 for setting in table if setting[place] in values[1:-1]]
        if inner and best[place] in (values[0], values[-1]) and best.val_top1 > max(inner) + error:
            warnings.warn(
                f"linear probe: the best {name} {best[place]:g} is on the border of the grid "
                f"({values[0]:g} to {values[-1]:g}): widen it",
                stacklevel=3,
            )


def linear(
    data: EvaluationData,
    learning_rates: Sequence[float] = LEARNING_RATES,
    weight_decays: Sequence[float] = WEIGHT_DECAYS,
    steps: int = 100,
) -> dict[str, float]:
    """The protocol: top1, val_top1, the setting, and top5 with more than five classes, of `linear_probe` on `data`.

    learning_rates, weight_decays  of which every pair is tried
    steps  of each fit
    There is no val_top1 where no class has two images. The means over the classes are those of `by_class`, whose
    accuracies by class and confusion matrix are added to `data.details`.
    """
    checked_grid(learning_rates, weight_decays, steps)  # before features are computed
    train, test = (data.train_features, data.train.labels), (data.test_features, data.test.labels)
    probe = linear_probe(*train, *test, learning_rates, weight_decays, steps, data.seed, data.device)
    classwise = by_class(torch.tensor(probe.predicted), data.test.labels, data.test.classes)
    data.details.update(class_accuracy=classwise.class_accuracy, confusion=classwise.confusion)
    numbers = {name: value for name, value in probe._asdict().items() if isinstance(value, float) and value == value}
    return numbers | classwise.means


def few_labels(data: EvaluationData, per_class: int, draws: int = 5) -> float | None:
    """Mean test top-1 of probes on `draws` random sets of `per_class` labelled rows of each class that has rows.

    None where a class has fewer rows.
    """
    labels = data.train.labels
    if per_class > int(labels[labels >= 0].unique(return_counts=True)[1].min()):
        return None
    total, test = 0.0, (data.test_features, data.test.labels)
    with warnings.catch_warnings():
        # with so few rows any setting may win: the border of the grid says nothing
        warnings.filterwarnings("ignore", message=".*border of the grid.*")
        for seed in range(data.seed, data.seed + draws):
            rows = labelled_subset(labels, per_class=per_class, seed=seed)
            train = data.train_features[rows], labels[rows]
            total += linear_probe(*train, *test, seed=seed, device=data.device).top1
    return total / draws
