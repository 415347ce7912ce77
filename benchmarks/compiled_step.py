"""torch.compile on a training step: processor seconds of one thread, eager, with the encoder compiled, and as a whole.

    python benchmarks/compiled_step.py [--rounds 7] [--networks small,resnet18,vit]

A step is the forward and the backward pass of NT-Xent at temperature 0.2 over two views of random pixels, and a step of
SGD. "encoder" compiles the encoder alone, as `encoder.compile=true` does; the loss then chooses its tiles by itself.
"whole" compiles normalisation, encoder, projector and loss into one graph, in which the loss is a whole matrix of
scores. The three take turns within a process; a ratio is the median over the rounds of eager / compiled seconds. Writes
results/compiled_step.json.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from views import installed, processor

from contrast.encoders import conv_net, mlp, resnet, vit
from contrast.functional import nt_xent

NETWORKS: dict[str, tuple[Callable[..., nn.Module], int, int]] = {  # builder, image size, images in a batch
    "small": (conv_net, 32, 128),
    "resnet18": (resnet, 32, 32),
    "vit": (partial(vit, patch_size=4), 32, 64),
}


def step_of(build: Callable[..., nn.Module], size: int, batch: int, compiled: str) -> Callable[[], Tensor]:
    """A training step, which returns the loss."""
    torch.manual_seed(0)
    encoder = build(in_channels=3, image_size=size)
    projector = mlp(in_features=encoder.num_features, hidden_features=256, out_features=128)
    views = torch.rand(2 * batch, 3, size, size)
    optimizer = torch.optim.SGD([*encoder.parameters(), *projector.parameters()], lr=1e-3)
    if compiled == "encoder":
        encoder.compile()

    def loss_of(views: Tensor) -> Tensor:
        z1, z2 = projector(encoder((views - 0.5) / 0.25)).chunk(2)
        return nt_xent(z1, z2, temperature=0.2)

    forward = torch.compile(loss_of) if compiled == "whole" else loss_of

    def step() -> Tensor:
        loss = forward(views)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def measure(name: str, rounds: int) -> dict[str, object]:
    steps = {kind: step_of(*NETWORKS[name], kind) for kind in ("eager", "encoder", "whole")}
    losses = {kind: [float(step()) for _ in range(3)] for kind, step in steps.items()}
    spent: dict[str, list[float]] = {kind: [] for kind in steps}
    for _ in range(rounds):
        for kind, step in steps.items():
            start = time.process_time()
            for _ in range(3):
                step()
            spent[kind].append((time.process_time() - start) / 3)
    return {
        "size": NETWORKS[name][1],
        "images": NETWORKS[name][2],
        "seconds": round(statistics.median(spent["eager"]), 4),
        "ratios": {
            kind: round(statistics.median(a / b for a, b in zip(spent["eager"], spent[kind], strict=True)), 3)
            for kind in ("encoder", "whole")
        },
        "difference": {kind: max(abs(a - b) for a, b in zip(losses["eager"], losses[kind], strict=True))
                       for kind in ("encoder", "whole")},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    facts = {"processor": processor(), "python": platform.python_version(), "torch": installed("torch")}
    found = {}
    for name in args.networks.split(","):
        found[name] = measure(name, args.rounds)
        print(f"{name}: {found[name]}", flush=True)
    result = Path(__file__).parent / "results" / "compiled_step.json"
    result.write_text(json.dumps({"versions": facts, "networks": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
