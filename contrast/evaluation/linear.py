"""Linear classifiers on frozen features: a whole grid of learning rates x weight decays in one pass.

N rows, F features, K classes, G settings of the grid, R principal axes of the standardised features (R <= min(N, F)).

Multinomial logistic regression on features standardised by the mean and standard deviation of the rows fitted:

    mean cross entropy + weight_decay / 2 * ||weight||^2        (the bias is not decayed)

so weight_decay = 1 / (C * N) in terms of scikit-learn's C.

All settings share every product with the features, [G K, R] x [R, N]. The features are rotated onto their principal
axes, which leaves the objective as it is, and each axis has its own step. The cross entropy curves along an axis of
variance v by at most v / 2 (Boehning 1992), so

    step = learning_rate / (v / 2 + learning_rate * weight_decay)

where the decay is taken implicitly, so that no decay is too large for a learning rate. A learning rate thus means the
same for every encoder: up to 1 it converges for sure, well below 1 it stops early, which regularises too, and above 1
it is faster as long as the curvature stays below the bound (with few classes it may not). Each step reads all rows,
so nothing is drawn at random, and has Nesterov's momentum (1983), which starts anew for a setting whose step turns
against its gradient (O'Donoghue and Candes 2015).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

SCORES = {"cpu": 1 << 19, "cuda": 1 << 25}  # at a time: what a cache holds, what keeps a GPU busy
FLAT = 1e-6  # a feature whose deviation is below this share of the largest is constant up to rounding
THIN = 1e-10  # a principal axis whose variance is below this share of the largest is rounding noise


@dataclass(frozen=True)
class Linear:
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


def blocks(*rows: Tensor, width: int) -> list[tuple[Tensor, ...]]:
    """The rows of tensors [N, ...] in pieces small enough that each row may have `width` scores."""
    size = max(256, SCORES.get(rows[0].device.type, 1 << 22) // width)
    return list(zip(*(value.split(size) for value in rows), strict=True))


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
    keep = variance > max(THIN * variance[-1].item(), 0.0)
    return variance[keep].to(x.dtype), axes[:, keep].to(x.dtype)


@torch.no_grad()
def fit_linear(
    features: Tensor,
    labels: Tensor,
    classes: int,
    learning_rates: Sequence[float],
    weight_decays: Sequence[float],
    steps: int = 100,
    desc: str = "linear probe",
    progress: bool = True,
) -> Linear:
    """Fit G classifiers at once: setting g has learning_rates[g] and weight_decays[g], both of length G.

    features [N, F], labels [N] in 0..classes-1, on one device. float32 (float64 stays), whatever autocast says.
    """
    x = features if features.dtype == torch.float64 else features.float()
    mean, scale = x.mean(dim=0), x.std(dim=0, correction=0)
    scale = torch.where(scale > FLAT * scale.max(), scale, 1)
    x = (x - mean) / scale
    lr, decay = x.new_tensor(learning_rates), x.new_tensor(weight_decays)  # [G]
    n, settings = len(x), len(lr)

    with torch.autocast(x.device.type, enabled=False):
        variance, axes = principal_axes(x)
        x = torch.cat([x @ axes, x.new_ones(n, 1)], dim=1)  # [N, R + 1]: the last column carries the bias
        half = torch.cat([variance, variance.new_ones(1)]) / 2  # [R + 1]
        decayed = torch.ones_like(half)
        decayed[-1] = 0
        decay = (decay[:, None] * decayed)[:, None]  # [G, 1, R + 1]
        step = lr[:, None, None] / (half + lr[:, None, None] * decay)  # [G, 1, R + 1]

        target = F.one_hot(labels, classes).to(x.dtype).T @ x / n  # [K, N] x [N, R + 1] -> [K, R + 1]
        weight = x.new_zeros(settings, classes, x.shape[1])
        ahead, t = weight, lr.new_ones(settings)
        for _ in tqdm(range(steps), desc=desc, unit="step", delay=1, leave=False, disable=not progress):
            gradient = (decay * ahead - target).flatten(0, 1)  # [G K, R + 1]
            for (rows,) in blocks(x, width=settings * classes):
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
    return Linear(mean, scale, weight, bias)


@torch.no_grad()
def validate(linear: Linear, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Top-1 and mean cross entropy [G] of each setting; a setting that diverged has 0 and infinity."""
    hits = torch.zeros(len(linear.bias), dtype=torch.float64, device=features.device)
    loss = torch.zeros_like(hits)
    for rows, target in blocks(features, labels, width=linear.bias.numel()):
        scores = linear(rows)  # [G, K, n]
        hits += (scores.argmax(dim=1) == target).sum(dim=1)
        truth = scores.gather(1, target.expand(len(scores), 1, -1)).squeeze(1)  # [G, n]
        loss += (scores.logsumexp(dim=1) - truth).sum(dim=1)
    broken = ~torch.isfinite(loss)
    return (hits / len(labels)).masked_fill(broken, 0), (loss / len(labels)).masked_fill(broken, torch.inf)


@torch.no_grad()
def top_k(linear: Linear, features: Tensor, labels: Tensor, k: int) -> float:
    """The share of rows whose class is among the k highest scores of a single setting."""
    hits = 0
    for rows, target in blocks(features, labels, width=linear.bias.numel()):
        hits += int((linear(rows)[0].topk(k, dim=0).indices == target).sum())  # [k, n] and [n]
    return hits / len(labels)
