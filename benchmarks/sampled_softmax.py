"""How far the mean gradient of a sampled softmax is from that of the full one, by the number of draws.

    python benchmarks/sampled_softmax.py [--samples 25000]

N = 1,000 classes whose frequencies follow Zipf's law, p(c) ~ 1 / (c + 1); a query of D = 16 dimensions scores class c
by log p(c) + w_c . q, with w_c and q random and fixed: a model that knows the frequencies and errs in the rest. Labels
are drawn from p. For each pairing of draws with a correction and for K draws, the relative bias |E[g_K] - g| / |g| of
the gradient g with respect to the query is estimated from independent samples, with its standard error. Writes
results/sampled_softmax.json and docs/pictures/sampled_softmax.png.

Two things keep the standard error small and change no expectation: the full gradient is that of the same labels, and
from the sampled one its linear part in the counts of the draws is subtracted (`score_gradients`) where that helps.

N classes, D dimensions, K draws, R samples of a block, C candidates.
"""

import argparse
import json
import math
import platform
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from views import installed, processor

from contrast.losses.softmax import softmax_loss
from contrast.samplers import LogUniform, Poisson, Sampler, Uniform, Unigram

HERE = Path(__file__).resolve().parent
N, D = 1000, 16
DRAWS = (1, 3, 10, 30, 100, 300, 1000)
BLOCKS = 25  # the means of so many blocks give the standard error
ROUNDING = 1e-6  # a Poisson sample of all N classes is the full softmax: what is left is that of float32

FREQUENCY = 1 / torch.arange(1, N + 1, dtype=torch.float64)
FREQUENCY /= FREQUENCY.sum()  # [N]


class Pairing(NamedTuple):
    """Where the candidates come from and how they are corrected."""

    noise: Sampler
    poisson: bool = False  # K expected distinct classes in place of K draws with replacement
    corrected: bool = True  # scores less the log expected count, the label's too
    hits: bool = True  # draws of the label stay noise


PAIRINGS = {
    "no correction (log-uniform)": Pairing(LogUniform(N), corrected=False),
    "hits removed, with replacement (log-uniform)": Pairing(LogUniform(N), hits=False),
    "uniform": Pairing(Uniform(N)),
    "log-uniform": Pairing(LogUniform(N)),
    "unigram^0.75": Pairing(Unigram(FREQUENCY, power=0.75)),
    "Poisson (log-uniform)": Pairing(LogUniform(N), poisson=True, hits=False),
}
BIASED = ("no correction (log-uniform)", "hits removed, with replacement (log-uniform)")


def drawn(pairing: Pairing, k: int, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Classes of every sample, -1 where it is shorter than the longest, [R, C]; log expected count of a class, [N]."""
    everything = torch.arange(N)
    if not pairing.poisson:
        return pairing.noise.draw((rows, k), generator), pairing.noise.log_prob(everything) + math.log(k)
    poisson = Poisson(pairing.noise, expected=k)
    samples = [poisson.draw(generator) for _ in range(rows)]
    return pad_sequence(samples, batch_first=True, padding_value=-1), poisson.log_inclusion(everything)


def score_gradients(
    pairing: Pairing, k: int, scores: Tensor, labels: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Of the mean sampled loss of `labels` [R], each with draws of its own, by the scores of all classes, [N].

    Beside it, [N], what a first-order expansion in the counts n of the draws gives, whose expectation is 0: with P the
    softmax of the scores, P (n / E[n] - 1) less P times its sum.
    """
    classes, log_q = drawn(pairing, k, len(labels), generator)  # [R, C], [N]
    there = classes >= 0
    model = scores.softmax(0)
    counts = torch.bincount(classes[there], minlength=N) / len(labels)  # [N]
    linear = model * (counts / log_q.double().exp() - 1)
    linear -= model * linear.sum()
    valid = there & (pairing.hits | (classes != labels[:, None]))
    classes = torch.cat([labels[:, None], classes.clamp(min=0)], dim=1)  # [R, 1 + C]
    valid = torch.cat([torch.ones_like(valid[:, :1]), valid], dim=1)
    positive = torch.zeros_like(valid)
    positive[:, 0] = True
    values = (scores - log_q if pairing.corrected else scores)[classes].requires_grad_()  # [R, 1 + C]
    (grads,) = torch.autograd.grad(softmax_loss(values, positive, valid).mean(), values)
    return torch.bincount(classes.flatten(), weights=grads.flatten(), minlength=N), linear


def measure(samples: int) -> dict[str, dict[int, dict[str, float]]]:
    """Relative bias and its standard error for every pairing and number of draws."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(N, D, generator=generator, dtype=torch.float64)
    query = torch.randn(D, generator=generator, dtype=torch.float64) / 2
    scores = FREQUENCY.log() + vectors @ query  # [N]
    model = scores.softmax(0)
    length = ((model - FREQUENCY) @ vectors).norm()  # |g|
    rows = max(samples // BLOCKS, 2)
    found: dict[str, dict[int, dict[str, float]]] = {name: {} for name in PAIRINGS}
    for name, k in tqdm([(name, k) for k in DRAWS for name in PAIRINGS], desc="pairings and draws", leave=False):
        blocks = []
        for _ in range(BLOCKS):
            labels = torch.multinomial(FREQUENCY, rows, replacement=True, generator=generator)  # [R]
            full = model - torch.bincount(labels, minlength=N) / rows  # [N]
            sampled, linear = score_gradients(PAIRINGS[name], k, scores, labels, generator)  # [N] each
            blocks.append(torch.stack([sampled - full, sampled - full - linear]) @ vectors)  # [2, N] x [N, D] -> [2, D]
        stacked = torch.stack(blocks)  # [BLOCKS, 2, D]
        bias = stacked.mean(dim=0).norm(dim=1) / length  # [2]
        error = (stacked.var(dim=0).sum(dim=1) / BLOCKS).sqrt() / length  # [2]
        better = int(error.argmin())
        found[name][k] = {
            "relative_bias": float(f"{bias[better]:.3g}"),
            "standard_error": float(f"{error[better]:.2g}"),
        }
    return found


def draw(found: dict[str, dict[int, dict[str, float]]], path: Path) -> None:
    figure, axis = plt.subplots(figsize=(7.6, 5.2), constrained_layout=True)
    for number, (name, by_draws) in enumerate(found.items()):
        ks = [k for k, cell in by_draws.items() if cell["relative_bias"] > ROUNDING]
        bias = [by_draws[k]["relative_bias"] for k in ks]
        error = [2 * by_draws[k]["standard_error"] for k in ks]
        told = name + "".join(f", none at K = {k:,}" for k in by_draws if k not in ks)
        style = ("--" if name in BIASED else "-") + "osD^vX"[number]
        axis.errorbar(ks, bias, error, fmt=style, label=told, markersize=4.5, linewidth=1.6, capsize=2)
    axis.set(xscale="log", yscale="log", xticks=DRAWS, xticklabels=[f"{k:,}" for k in DRAWS], ylim=(1e-3, 2))
    axis.set(xlabel="K, draws (of 1,000 classes)", ylabel=r"relative bias of the gradient, $|E[g_K] - g|\;/\;|g|$")
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(loc="lower left", fontsize=9, title="draws; bars: 2 standard errors", title_fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=25_000)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "sampled_softmax.json")
    picture = HERE.parent / "docs" / "pictures" / "sampled_softmax.png"
    parser.add_argument("--picture", type=Path, default=picture)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(args.samples)
    print(f"{'K':>46}" + "".join(f"{k:>9,}" for k in DRAWS))
    for name, by_draws in found.items():
        print(f"{name:46}" + "".join(f"{cell['relative_bias']:9.2g}" for cell in by_draws.values()))
    facts = {"processor": processor(), "python": platform.python_version(), "torch": installed("torch")}
    setting = {"classes": N, "dimensions": D, "samples": args.samples, "seed": 0}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"versions": facts, "setting": setting, "pairings": found}, indent=2) + "\n")
    draw(found, args.picture)
    print(f"written to {args.out} and {args.picture}")


if __name__ == "__main__":
    main()
