"""The linear probe: the setting is chosen on a part of the training set, the test set is read once."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from contrast.data.images.subset import hold_out
from contrast.errors import InputError
from contrast.evaluation.check import check_labelled
from contrast.evaluation.linear import fit_linear, top_k, validate

LEARNING_RATES = (0.1, 0.3, 1.0, 3.0)
WEIGHT_DECAYS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
HELD_OUT = 0.2  # of the training rows
FEW = 1000  # below so many training rows one part held out says little: the mean of five is taken


@dataclass(frozen=True)
class Setting:
    """One point of the grid and what it reached on the rows held out."""

    learning_rate: float
    weight_decay: float
    val_top1: float
    val_loss: float


@dataclass(frozen=True)
class LinearProbe:
    """Shares of rows, 0 to 1. val_top1 is NaN where nothing could be held out; test_top5 None below six classes."""

    val_top1: float
    test_top1: float
    test_top5: float | None
    learning_rate: float
    weight_decay: float
    table: tuple[Setting, ...]


def linear_probe(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    learning_rates: Sequence[float] = LEARNING_RATES,
    weight_decays: Sequence[float] = WEIGHT_DECAYS,
    steps: int = 100,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> LinearProbe:
    """Logistic regression on train [N, F], N labels, read out on test [M, F], M labels; see `linear` for the units.

    Every pair of a learning rate and a weight decay is fitted in one pass to 80 % of each class of the training rows
    and measured on the rest, drawn from seed. Among the settings whose top-1 is within one standard error of the best
    (Breiman et al. 1984, section 3.4.3) the lowest cross entropy wins, since a few rows held out hardly tell top-1s
    apart. That setting is fitted again to all training rows, and only then is the test set read, once. Below 1,000
    training rows the choice is by the mean over five such draws. A class with a single row always stays in the fitted
    part; where no class has two, nothing can be held out: the middle of the grid is taken, with a warning and
    val_top1 = NaN.

    Warns when the setting lies at an end of the grid and no inner value comes within one standard error of it.
    InputError for unlabelled rows (-1), features that are not finite and shapes that do not fit. device: by default
    where the features are.
    """
    check_labelled(train, train_labels, "linear probe, training set")
    check_labelled(test, test_labels, "linear probe, test set")
    rates, decays = sorted(learning_rates), sorted(weight_decays)
    if train.shape[1] != test.shape[1]:
        raise InputError(f"linear probe: training features {list(train.shape)} do not fit {list(test.shape)}")
    if steps < 1 or not rates or not decays or rates[0] <= 0 or decays[0] < 0:
        raise InputError(
            f"linear probe: at least one step ({steps}), learning rates above 0 ({rates}) "
            f"and weight decays not below 0 ({decays}) wanted"
        )
    train, train_labels, test, test_labels = (
        value.to(device or train.device) for value in (train, train_labels, test, test_labels)
    )
    classes = int(torch.cat([train_labels, test_labels]).max()) + 1
    grid = list(product(rates, decays))

    table, held = validated(train, train_labels, classes, grid, steps, seed, progress)
    if held:
        best, error = choose(table, held)
        warn_of_border(table, best, error)
    else:
        best = Setting(rates[len(rates) // 2], decays[len(decays) // 2], math.nan, math.nan)
        warnings.warn(
            f"linear probe: no class has two of the {len(train)} training rows, so none were held out and "
            f"learning rate {best.learning_rate:g}, weight decay {best.weight_decay:g} were taken unseen",
            stacklevel=2,
        )

    linear = fit_linear(
        train, train_labels, classes, [best.learning_rate], [best.weight_decay], steps, "refit", progress
    )
    return LinearProbe(
        best.val_top1,
        top_k(linear, test, test_labels, 1),
        top_k(linear, test, test_labels, 5) if classes > 5 else None,
        best.learning_rate,
        best.weight_decay,
        table,
    )


def validated(
    x: Tensor,
    y: Tensor,
    classes: int,
    grid: list[tuple[float, float]],
    steps: int,
    seed: int,
    progress: bool,
) -> tuple[tuple[Setting, ...], int]:
    """The grid measured on rows held out, in its order, and their number: 0 where no class has two rows."""
    several = torch.bincount(y, minlength=classes)[y] > 1  # [N]
    pool, alone = several.nonzero().squeeze(1), (~several).nonzero().squeeze(1)
    if len(pool) == 0:
        return (), 0
    draws, count = 1 if len(y) >= FEW else 5, 0
    top1, loss = torch.zeros(2, len(grid), dtype=torch.float64, device=x.device)
    rates, decays = zip(*grid, strict=True)
    for draw in range(draws):
        fit, held = (pool[rows.to(pool.device)] for rows in hold_out(y[pool].cpu(), HELD_OUT, seed + draw))
        fit = torch.cat([fit, alone])
        desc = f"linear probe, draw {draw + 1}/{draws}"
        linear = fit_linear(x[fit], y[fit], classes, rates, decays, steps, desc, progress)
        found = validate(linear, x[held], y[held])
        top1, loss = top1 + found[0] / draws, loss + found[1] / draws
        count += len(held)
    values = zip(grid, top1.tolist(), loss.tolist(), strict=True)
    return tuple(Setting(lr, wd, t, v) for (lr, wd), t, v in values), count


def choose(table: Sequence[Setting], held: int) -> tuple[Setting, float]:
    """The lowest cross entropy within one standard error of the best top-1, and that error."""
    top1 = max(setting.val_top1 for setting in table)
    error = math.sqrt(top1 * (1 - top1) / held)
    near = [setting for setting in table if setting.val_top1 >= top1 - error]
    return min(near, key=lambda setting: setting.val_loss), error


def warn_of_border(table: Sequence[Setting], best: Setting, error: float) -> None:
    """Warn where a value of `best` is the first or last of the grid and no inner one comes within `error`."""
    for name in ("learning_rate", "weight_decay"):
        values = sorted({getattr(setting, name) for setting in table})
        inner = [setting.val_top1 for setting in table if getattr(setting, name) in values[1:-1]]
        if inner and getattr(best, name) in (values[0], values[-1]) and best.val_top1 > max(inner) + error:
            warnings.warn(
                f"linear probe: the best {name} {getattr(best, name):g} lies on the border of the grid "
                f"({values[0]:g} to {values[-1]:g}): widen it",
                stacklevel=3,
            )
