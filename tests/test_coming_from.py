"""docs/coming_from.md is true: ours gives the value and the gradients of the library that one comes from.

The libraries come with `pip install 'contrast-learning[bench]'`; without them their pairs of code blocks are skipped.
"""

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import contrast
from contrast.losses import CLIPLoss, InfoNCELoss, SigLIPLoss, SupConLoss

PAGE = (Path(contrast.__file__).parents[1] / "docs" / "coming_from.md").read_text()
PACKAGES = {
    "lightly": "lightly.loss",
    "pytorch-metric-learning": "pytorch_metric_learning.losses",
    "info-nce-pytorch": "info_nce",
    "open_clip": "open_clip.loss",
}
N, D = 6, 8
UNIT = ("features", "image", "text")  # what SupContrast's and open_clip's models normalise
LABELS = torch.tensor([1, 0, 1, 2, 0, 3])


def code_blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.S | re.M)


def in_pairs(text: str) -> list[tuple[str, str]]:
    """The other library's block and ours, by turns."""
    blocks = code_blocks(text)
    return list(zip(blocks[::2], blocks[1::2], strict=True))


SECTIONS = {part.split("\n")[0]: part for part in PAGE.split("\n## ")[1:]}
PAIRS = {
    f"{section} {number}": (section, *pair)
    for section, text in SECTIONS.items()
    for number, pair in enumerate(in_pairs(text.partition("\n### ")[0]))
}


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


class LoopSupConLoss(nn.Module):
    """SupContrast's loss as its code computes it, written as a loop: features [N, views, D] of length 1."""

    def __init__(self, temperature: float = 0.07, base_temperature: float = 0.07) -> None:
        super().__init__()
        self.temperature, self.base_temperature = temperature, base_temperature

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        n, views, _ = features.shape
        labels = torch.arange(n) if labels is None else labels
        places = [(i, view) for i in range(n) for view in range(views)]
        losses = []
        for i, view in places:
            others = [place for place in places if place != (i, view)]
            scores = {(j, w): features[i, view] @ features[j, w] / self.temperature for j, w in others}
            log_z = torch.stack(list(scores.values())).logsumexp(0)
            log_p = [score - log_z for (j, _), score in scores.items() if labels[j] == labels[i]]
            losses.append(-self.temperature / self.base_temperature * torch.stack(log_p).mean())
        return torch.stack(losses).mean()


def require(section: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The section's library, or a skip; SupContrast is a checkout whose file is called `losses`."""
    if section == "SupContrast":
        module = ModuleType("losses")
        module.SupConLoss = LoopSupConLoss  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "losses", module)
    else:
        pytest.importorskip(
            PACKAGES[section], reason=f"{section} is not installed: pip install 'contrast-learning[bench]'"
        )


def inputs(section: str, block: str) -> dict[str, Any]:
    """What the text of a section calls its inputs."""
    if section == "lightly":
        return {"z1": rows(N, D, seed=1), "z2": rows(N, D, seed=2)}
    if section == "pytorch-metric-learning":
        labels = LABELS if "SupCon" in block else torch.arange(N)
        return {"embeddings": rows(2 * N, D), "labels": labels.repeat(2)}
    if section == "SupContrast":
        return {"features": rows(N, 2, D), "labels": LABELS}
    if section == "info-nce-pytorch":
        more = {"negatives": rows(9, D, seed=3), "own_negatives": rows(N, 9, D, seed=4)}
        return {"query": rows(N, D, seed=1), "key": rows(N, D, seed=2)} | more
    scale, bias = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (14.3, -10.0))
    image, text = rows(N, D, seed=1), rows(N, D, seed=2)
    return {"image": image, "text": text, "logit_scale": scale, "logit_bias": bias}


def value_and_gradients(block: str, given: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """What the block calls `loss`, and its gradients by the name of the input."""
    scope = {name: F.normalize(x, dim=-1) if name in UNIT else x for name, x in given.items()}
    exec(block, scope)
    leaves = {name: x for name, x in given.items() if isinstance(x, Tensor) and x.requires_grad}
    gradients = torch.autograd.grad(scope["loss"], list(leaves.values()), allow_unused=True)
    return scope["loss"].detach(), {k: g for k, g in zip(leaves, gradients, strict=True) if g is not None}


def assert_same(before: str, after: str, given: dict[str, Any]) -> None:
    theirs, ours = (value_and_gradients(block, given) for block in (before, after))
    assert ours[1]
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", PAIRS)
def test_two_lines_before_and_after(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    section, before, after = PAIRS[name]
    require(section, monkeypatch)
    assert all(len([line for line in block.splitlines() if line]) == 2 for block in (before, after))
    assert_same(before, after, inputs(section, before))


def test_every_section_has_its_pairs() -> None:
    count = {section: sum(name == section for name, *_ in PAIRS.values()) for section in SECTIONS}
    assert count == {
        "lightly": 2,
        "pytorch-metric-learning": 2,
        "SupContrast": 2,
        "info-nce-pytorch": 2,
        "open_clip": 2,
    }


def test_lightlys_memory_bank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over ten steps, in which the queue of four batches turns round twice."""
    require("lightly", monkeypatch)
    from lightly.loss import NTXentLoss

    ((before, after),) = in_pairs(SECTIONS["lightly"].partition("\n### MoCo")[2])
    small = (block.replace("4096", str(4 * N)).replace("128", str(D)) for block in (before, after))
    (their_once, *their_steps), (our_once, *our_steps) = (block.splitlines() for block in small)
    assert their_once.endswith("# once")
    assert our_once.endswith("# once")
    theirs: dict[str, Any] = {"NTXentLoss": NTXentLoss}
    ours: dict[str, Any] = {"torch": torch, "InfoNCELoss": InfoNCELoss}
    exec(their_once, theirs)
    exec(our_once, ours)
    assert ours["queue"].shape == theirs["criterion"].memory_bank.bank.shape
    ours["queue"] = theirs["criterion"].memory_bank.bank.flip(0)  # theirs overwrites its first row first
    for step in range(10):
        query, key = (rows(N, D, seed=2 * step + view).detach().float() for view in range(2))
        for scope, lines in ((theirs, their_steps), (ours, our_steps)):
            scope |= {"query": query.clone().requires_grad_(), "key": key}
            exec("\n".join(lines), scope)
        torch.testing.assert_close(ours["loss"], theirs["loss"])
        torch.testing.assert_close(*(torch.autograd.grad(scope["loss"], scope["query"])[0] for scope in (ours, theirs)))


def test_more_rows_to_a_label_are_another_formula_in_pytorch_metric_learning(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean over pairs (a, p) of -log(e_ap / (e_ap + sum over negatives)), as the page says."""
    require("pytorch-metric-learning", monkeypatch)
    from pytorch_metric_learning.losses import NTXentLoss

    z, labels = rows(N, D), torch.tensor([0, 0, 0, 1, 1, 2])
    scores = F.normalize(z) @ F.normalize(z).T / 0.1
    losses = []
    for i in range(N):
        negatives = [scores[i, k] for k in range(N) if labels[k] != labels[i]]
        for p in range(N):
            if p != i and labels[p] == labels[i]:
                losses.append(torch.stack([scores[i, p], *negatives]).logsumexp(0) - scores[i, p])
    theirs = NTXentLoss(0.1)(z, labels)
    torch.testing.assert_close(theirs, torch.stack(losses).mean())
    assert SupConLoss(0.1)(z, None, labels).item() != pytest.approx(theirs.item(), rel=0.01)


def test_supcontrasts_factor_and_two_views() -> None:
    features = F.normalize(rows(N, 2, D), dim=-1)
    ours = SupConLoss(temperature=0.1)(*features.unbind(1), LABELS)
    torch.testing.assert_close(LoopSupConLoss(0.1)(features, LABELS), 0.1 / 0.07 * ours)
    assert f"{0.1 / 0.07:.2f} times ours" in PAGE
    assert "`SupConLoss(temperature=0.07)(*features.unbind(1), labels)`" in PAGE


def test_supcontrast_with_three_views(monkeypatch: pytest.MonkeyPatch) -> None:
    require("SupContrast", monkeypatch)
    before, after = in_pairs(SECTIONS["SupContrast"])[0]
    assert_same(before, after, {"features": rows(N, 3, D), "labels": LABELS})


@pytest.mark.parametrize("peer", ["ClipLoss", "SigLipLoss"])
def test_open_clips_parameters(peer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """log_temperature is minus its logit_scale, with minus its gradient."""
    require("open_clip", monkeypatch)
    import open_clip.loss

    ours = (CLIPLoss(0.07, learnable=True) if peer == "ClipLoss" else SigLIPLoss(0.1, -10.0, learnable=True)).double()
    image, text = rows(N, D, seed=1), rows(N, D, seed=2)
    named = dict(ours.named_parameters())
    log_scale = (-named["temperature.log_temperature"]).detach().requires_grad_()
    bias = [named["bias"].detach().clone().requires_grad_()] if "bias" in named else []
    theirs = getattr(open_clip.loss, peer)()(F.normalize(image), F.normalize(text), log_scale.exp(), *bias)
    loss = ours(image, text)
    torch.testing.assert_close(loss, theirs)
    names = ("temperature.log_temperature", "bias")[: 1 + len(bias)]
    wanted = dict(zip(names, torch.autograd.grad(theirs, [log_scale, *bias]), strict=True))
    wanted["temperature.log_temperature"] *= -1
    got = dict(zip(named, torch.autograd.grad(loss, named.values()), strict=True))
    torch.testing.assert_close(got, wanted)
