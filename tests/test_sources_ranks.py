"""Every source of negatives on two gloo processes equals itself on one: losses, gradients, and what it remembers."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from test_distributed import free_port, join, leave
from torch import Tensor, nn

from contrast.data.images.image_set import Batch
from contrast.distributed import mean_counted
from contrast.heads import NCE, Alignment, Covariance, CrossCorrelation, Estimated, InfoNCE, Learnable, LearnedBias
from contrast.keys import Momentum, Shared
from contrast.module import Contrastive
from contrast.negatives import (
    Bank,
    Dimensions,
    InBatch,
    Nearest,
    Paired,
    PositivesOnly,
    Prototypes,
    Queue,
    Source,
    Table,
    Tree,
)
from contrast.samplers import LogUniform, Poisson, Uniform

IMAGES, VIEWS, DIM, CLASSES, STEPS, WORLD = 6, 2, 5, 9, 3, 2


class Case(NamedTuple):
    source: Callable[[], Source]
    head: Callable[[], nn.Module] = lambda: InfoNCE(Learnable(0.2))
    grouped: bool = False
    views: int = VIEWS


CASES = {
    "in batch": Case(InBatch),
    "in batch, groups": Case(InBatch, grouped=True),
    "in batch, three views, DCLW": Case(
        InBatch, lambda: InfoNCE(Learnable(0.2), decoupled=True, positive_sigma=0.5), views=3
    ),
    "paired": Case(Paired),
    "paired, reverse": Case(lambda: Paired(reverse=True), grouped=True),
    "paired, sigmoid": Case(lambda: Paired(reverse=True), lambda: NCE(Learnable(0.2), bias=LearnedBias(-1))),
    "queue": Case(lambda: Queue(20, DIM)),
    "queue, small": Case(lambda: Queue(4, DIM)),
    "queue, groups": Case(lambda: Queue(20, DIM), grouped=True),
    "queue, positives": Case(lambda: Queue(20, DIM, positives=True)),
    "queue, in batch": Case(lambda: Queue(20, DIM, in_batch=True), grouped=True),
    "queue, teacher": Case(lambda: Queue(20, DIM, teacher_temperature=0.1)),
    "prototypes, centring": Case(lambda: Prototypes(CLASSES, DIM, momentum=0.5)),
    "prototypes, sinkhorn": Case(lambda: Prototypes(CLASSES, DIM, 0.1, balance="sinkhorn")),
    "positives only": Case(PositivesOnly, Alignment),
    "dimensions": Case(Dimensions, CrossCorrelation),
    "dimensions, covariance": Case(lambda: Dimensions(among="queries"), Covariance),
    "nearest": Case(lambda: Nearest(20, DIM)),
    "bank": Case(lambda: Bank(CLASSES, DIM)),
    "bank, sampled": Case(lambda: Bank(CLASSES, DIM, Uniform(CLASSES), draws=4), lambda: NCE(0.3, bias=Estimated())),
    "bank, of keys": Case(lambda: Bank(CLASSES, DIM, Uniform(CLASSES), draws=4, of_keys=True), lambda: NCE(0.3)),
    "bank, proximity": Case(lambda: Bank(CLASSES, DIM, proximity=0.5, draws=4), lambda: NCE(0.3)),
    "bank, proximity, one view": Case(lambda: Bank(CLASSES, DIM, proximity=0.5, draws=4), views=1),
    "table": Case(lambda: Table(CLASSES, DIM)),
    "table, sampled": Case(lambda: Table(CLASSES, DIM, LogUniform(CLASSES), draws=4)),
    "table, poisson": Case(lambda: Table(CLASSES, DIM, Poisson(LogUniform(CLASSES), 3.0))),
    "tree": Case(lambda: Tree(torch.arange(1, CLASSES + 1), DIM), lambda: NCE(1.0, cosine=False)),
}


class Model(nn.Module):
    """The main path from projections on, with Shared keys and a predictor."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.projector = nn.Sequential(nn.Linear(7, 8), nn.GELU(), nn.Linear(8, DIM))
        self.predictor = nn.Linear(DIM, DIM)
        self.source, self.head = case.source(), case.head()

    def forward(self, x: Tensor, ids: Tensor, groups: Tensor | None, seed: int) -> tuple[Tensor, Any]:
        projection = self.projector(x)  # [V, B, 7] -> [V, B, D]
        query, key = self.predictor(projection), Shared()([], projection, None, torch.Generator())
        asked = self.source(query, key, ids, groups, torch.Generator().manual_seed(seed))
        losses, counted = zip(*(self.head(q, candidates) for q, candidates in asked), strict=True)
        seen = (query.detach(), None if key is None else key.detach(), ids, groups)
        return mean_counted(torch.cat(losses), torch.cat(counted)), seen


def inputs(case: Case, step: int) -> tuple[Tensor, Tensor, Tensor | None]:
    x = torch.randn(case.views, IMAGES, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
    ids = torch.tensor([[1, 4, 2, 0, 4, 3], [5, 3, 6, 8, 7, 5], [4, 2, 0, 1, 5, 6]])[step]  # some on two ranks
    return x, ids, ids // 3 if case.grouped else None


def train(case: Case, rank: int = 0, world: int = 1) -> dict[str, Any]:
    """Steps of plain gradient descent on this rank's part of every batch.

    Gradients are averaged over ranks as DDP does it; buffers, which DDP would copy from the first rank, have to agree.
    """
    torch.manual_seed(0)
    model = Model(case).double()
    mine, losses, grads = slice(rank * IMAGES // world, (rank + 1) * IMAGES // world), [], []
    for step in range(STEPS):
        x, ids, groups = inputs(case, step)
        loss, seen = model(x[:, mine], ids[mine], None if groups is None else groups[mine], step)
        loss.backward()
        losses.append(loss.detach())
        for p in model.parameters() if world > 1 else ():
            dist.all_reduce(p.grad)
            p.grad /= world
        grads.append({name: p.grad.clone() for name, p in model.named_parameters()})
        for p in model.parameters():
            p.data -= 0.1 * p.grad
            p.grad = None
        model.head.advance()
        model.source.update(*seen)
    return {"losses": torch.stack(losses), "grads": grads, "state": model.state_dict()}


# --- keys of shuffled images


def key_encoder(shuffle_bn: bool) -> Momentum:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3)).double()
    net[2].running_mean += 0.3
    return Momentum(nn.Identity(), net, nn.Identity(), shuffle_bn=shuffle_bn).double()


def pixels() -> list[Tensor]:
    return list(torch.randn(2, IMAGES, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5)))


def keys(key: Momentum, views: list[Tensor]) -> Tensor:
    return key(views, torch.zeros(2, len(views[0]), 3), None, torch.Generator().manual_seed(7))


# --- groups of rows that share an image or a caption


def groups(rank: int = 0, world: int = 1) -> Tensor:
    """Of this rank's rows; 0 and 5 share an image, 5 and 3 a caption, 1 and 2 a caption."""
    shared = torch.tensor([[3, 10], [4, 11], [5, 11], [6, 12], [7, 13], [3, 12]])
    mine = torch.arange(IMAGES)[rank * IMAGES // world :][: IMAGES // world]
    model = SimpleNamespace(same_label="negative", shared=shared, global_rank=rank)
    return Contrastive.identities(model, Batch(torch.empty(0), torch.zeros(len(mine)), mine))[1]


def ranked(rank: int, world: int, port: int, folder: str) -> None:
    join(rank, world, port)
    told: dict[str, Any] = {name: train(case, rank, world) for name, case in CASES.items()}
    mine = [view[rank * IMAGES // world :][: IMAGES // world] for view in pixels()]
    for shuffle_bn in (False, True):
        told[f"keys, evaluated, {shuffle_bn}"] = keys(key_encoder(shuffle_bn).eval(), mine)
        told[f"keys, trained, {shuffle_bn}"] = keys(key_encoder(shuffle_bn).train(), mine)
    told["groups"] = groups(rank, world)
    torch.save(told, Path(folder) / f"{rank}.pt")
    leave()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes found, all cases in one spawn."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(ranked, (WORLD, free_port(), str(folder)), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_equal_one_process(name: str, ranks: list[dict[str, Any]]) -> None:
    one, case = train(CASES[name]), [rank[name] for rank in ranks]
    # the estimate of Z is kept in float32
    close: dict[str, float] = {"rtol": 1e-5, "atol": 1e-6} if name == "bank, sampled" else {}
    torch.testing.assert_close(sum(rank["losses"] for rank in case) / WORLD, one["losses"], **close)
    assert one["losses"].unique().numel() == STEPS
    for rank in case:
        for step in range(STEPS):
            for key, value in one["grads"][step].items():
                torch.testing.assert_close(rank["grads"][step][key], value, **close)
        for key, value in one["state"].items():
            torch.testing.assert_close(rank["state"][key], value, **close)


@pytest.mark.parametrize(
    "name", [name for name in CASES if name.startswith(("queue", "prototypes", "nearest", "bank"))]
)
def test_all_ranks_remember_the_same_bit_for_bit(name: str, ranks: list[dict[str, Any]]) -> None:
    first, second = (rank[name]["state"] for rank in ranks)
    memory = [key for key in first if key.startswith("source.")]
    assert any(key.endswith("vectors") for key in memory)
    for key in memory:
        assert torch.equal(first[key], second[key]), key


def test_groups_reach_across_ranks(ranks: list[dict[str, Any]]) -> None:
    assert groups().tolist() == [3, 4, 4, 3, 7, 3]
    assert torch.equal(torch.cat([rank["groups"] for rank in ranks]), groups())


def test_shuffled_keys_come_back_in_order(ranks: list[dict[str, Any]]) -> None:
    """Where batch norm does not look at the batch, they are those of the whole batch on one process."""
    expected = keys(key_encoder(False).eval(), pixels())
    for shuffle_bn in (False, True):
        found = torch.cat([rank[f"keys, evaluated, {shuffle_bn}"] for rank in ranks], dim=1)
        torch.testing.assert_close(found, expected)


def test_shuffled_keys_have_the_statistics_of_other_images(ranks: list[dict[str, Any]]) -> None:
    """He et al. 2020, section 3.3: those of the images that the shuffle put on one rank."""
    generator, net = torch.Generator().manual_seed(7), key_encoder(False).encoder.train()
    in_order, mixed = torch.zeros(2, VIEWS, IMAGES, 3, dtype=torch.float64)  # keys of each view
    for v, view in enumerate(pixels()):
        for part in torch.randperm(IMAGES, generator=generator).chunk(WORLD):
            mixed[v, part] = net(view[part]).detach()
        for part in torch.arange(IMAGES).chunk(WORLD):
            in_order[v, part] = net(view[part]).detach()
    for shuffle_bn, expected in ((False, in_order), (True, mixed)):
        found = torch.cat([rank[f"keys, trained, {shuffle_bn}"] for rank in ranks], dim=1)
        torch.testing.assert_close(found, expected.roll(-1, dims=0))  # view 1 answers view 0
    assert (mixed - in_order).abs().amax(dim=2).min() > 1e-3
