"""Cached gradients are those of the whole batch: every source and key, dropout replayed, buffers updated once."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from test_distributed import free_port, join, leave
from test_extend import hinge
from test_module import images, trainer
from torch import Tensor, nn

from contrast.data.images.digits import digits_words
from contrast.data.images.image_set import Images
from contrast.encoders import predictor, text_transformer
from contrast.encoders.normalize import Normalize
from contrast.errors import InputError
from contrast.grad_cache import Embedded, cached_gradients, equal_parts
from contrast.heads import NCE, CrossCorrelation, Estimated, InfoNCE, Learnable, LearnedBias
from contrast.keys import Momentum, Second, Shared
from contrast.module import Contrastive
from contrast.negatives import Bank, Dimensions, InBatch, Nearest, Paired, Queue, Table
from contrast.optim import constant
from contrast.samplers import Uniform
from contrast.training.data import PretrainData
from contrast.views import SimCLRViews

DIM = 6


def net(*, dropout: float = 0.0, norm: bool = False) -> nn.Sequential:
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4) if norm else nn.GELU(), nn.Dropout(dropout)]
    encoder = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 36, 8))
    encoder.num_features = 8
    return encoder


METHODS: dict[str, Any] = {
    "simclr": lambda enc, proj, norm: {"negatives": InBatch(), "head": InfoNCE(Learnable(0.2))},
    "four views": lambda enc, proj, norm: {
        "negatives": InBatch(),
        "head": InfoNCE(0.2, tiled=True),
        "views": SimCLRViews(8, views=4),
    },
    "supcon": lambda enc, proj, norm: {"negatives": InBatch(), "head": InfoNCE(0.2), "same_label": "positive"},
    "moco": lambda enc, proj, norm: {
        "negatives": Queue(16, DIM, in_batch=True),
        "head": InfoNCE(0.2),
        "key": Momentum(norm, enc, proj, num_queries=1),
    },
    "nnclr": lambda enc, proj, norm: {
        "negatives": Nearest(16, DIM),
        "head": InfoNCE(0.2),
        "key": Shared(),
        "predictor": predictor(DIM, 5, norm=False),
    },
    "barlow twins with a momentum encoder": lambda enc, proj, norm: {
        "negatives": Dimensions(),
        "head": CrossCorrelation(),
        "key": Momentum(norm, enc, proj),
    },
    "instdisc": lambda enc, proj, norm: {
        "negatives": Bank(24, DIM, Uniform(24), draws=8),
        "head": NCE(0.2, bias=Estimated()),
    },
    "a loss of a user's own": lambda enc, proj, norm: {"negatives": InBatch(), "head": hinge()(0.5)},
    "full softmax": lambda enc, proj, norm: {
        "negatives": Table(3, DIM),
        "head": InfoNCE(1.0, cosine=False),
        "same_label": "positive",
    },
}


def make(name: str, micro_batch: int | None, **encoder: Any) -> Contrastive:
    torch.manual_seed(0)
    enc, proj, norm = net(**encoder), nn.Linear(8, DIM), Normalize(*images().statistics())
    proj.num_features = DIM
    given = {"views": SimCLRViews(8), **METHODS[name](enc, proj, norm)}
    return Contrastive(
        normalize=norm,
        encoder=enc,
        projector=proj,
        optimizer=partial(torch.optim.SGD, lr=0.1),
        scheduler=constant,
        micro_batch=micro_batch,
        **given,
    )


def trained(model: Contrastive, folder: Path, data: Images | None = None, **options: Any) -> dict[str, Tensor]:
    """Losses and the state after two epochs of two steps of 12 images."""
    losses = {}

    class Keep(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            losses[f"loss {pl_module.batch_number}"] = outputs["loss"].detach()

    trainer(folder, callbacks=[Keep()], **options).fit(model, PretrainData(data or images(), 12))
    return losses | model.state_dict()


@pytest.mark.parametrize("name", METHODS)
def test_training_is_that_of_the_whole_batch(name: str, tmp_path: Path) -> None:
    whole = trained(make(name, None), tmp_path)
    for size in (5, 12):  # 5 does not divide 12
        parts = trained(make(name, size), tmp_path)
        assert parts.keys() == whole.keys()
        for key, value in whole.items():
            torch.testing.assert_close(
                parts[key], value, rtol=2e-4, atol=2e-6, msg=lambda text, key=key: f"{key}: {text}"
            )


def test_two_encoders(tmp_path: Path) -> None:
    def clip(micro_batch: int | None) -> Contrastive:
        model = make("simclr", micro_batch)
        torch.manual_seed(1)
        model.key = Second(text_transformer(splits.tokenizer.size, 8, width=8, layers=1, heads=2), DIM)
        model.negatives, model.head = Paired(reverse=True), NCE(0.2, bias=LearnedBias(-1.0))
        model.views = SimCLRViews(8, views=1)
        return model

    splits = digits_words()
    data = splits.train.select(torch.arange(24))
    whole, parts = trained(clip(None), tmp_path, data), trained(clip(5), tmp_path, data)
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, rtol=2e-4, atol=2e-6)


def test_dropout_is_replayed_and_the_random_state_goes_on_as_after_one_pass() -> None:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.Linear(16, 3)).double()
    x, weights = torch.randn(2, 10, 4, dtype=torch.float64), torch.randn(2, 10, 3, dtype=torch.float64)

    def embed(i: int, again: bool) -> Embedded:
        out = encoder(x[:, 4 * i : 4 * i + 4])
        return Embedded(out, out, out.flip(0))

    def contrast(query: Tensor, key: Tensor | None) -> tuple[Tensor, None]:
        assert key is not None
        return ((query @ key.transpose(1, 2)).logsumexp(2) * weights[..., 0]).sum() + (query * weights).sum(), None

    torch.manual_seed(1)
    embedded = [embed(i, False) for i in range(3)]
    expected, _ = contrast(*(torch.cat([each[k] for each in embedded], dim=1) for k in (1, 2)))
    grads, after = torch.autograd.grad(expected, list(encoder.parameters())), torch.rand(1)
    torch.manual_seed(1)
    loss, _, whole = cached_gradients(embed, 3, contrast, [encoder], list(encoder.parameters()))
    assert torch.equal(torch.rand(1), after)
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(whole.query, torch.cat([each.query for each in embedded], dim=1).detach())
    (3 * loss).backward()
    for parameter, grad in zip(encoder.parameters(), grads, strict=True):
        torch.testing.assert_close(parameter.grad, 3 * grad)


def test_every_layer_learns_under_autocast() -> None:
    """The first pass casts the weights without a graph: the second must not be given these."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8))
    x = torch.randn(1, 12, 8)

    def embed(i: int, again: bool) -> Embedded:
        out = encoder(x[:, 4 * i : 4 * i + 4])
        return Embedded(out, out, None)

    def contrast(query: Tensor, key: Tensor | None) -> tuple[Tensor, None]:
        return (query[0] @ query[0].T).float().logsumexp(1).mean(), None

    parameters = list(encoder.parameters())
    expected = torch.autograd.grad(contrast(encoder(x), None)[0], parameters)
    with torch.autocast("cpu", torch.bfloat16):
        loss, *_ = cached_gradients(embed, 3, contrast, [encoder], parameters)
    loss.backward()
    for parameter, grad in zip(parameters, expected, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, grad, rtol=0.1, atol=0.05)


def test_running_statistics_are_updated_once(tmp_path: Path) -> None:
    model = make("simclr", 6, norm=True)
    norm = model.encoder[1]
    seen: list[Tensor] = []
    model.encoder[0].register_forward_hook(lambda _, __, out: seen.append(out.detach()))
    trained(model, tmp_path, max_steps=1)
    assert norm.num_batches_tracked == 2  # one for each part
    mean = torch.zeros(4)
    for out in seen[:2]:
        mean = 0.9 * mean + 0.1 * out.mean(dim=(0, 2, 3))
    torch.testing.assert_close(norm.running_mean, mean)
    assert len(seen) == 4


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a micro-batch has 1 image or more, got 0"):
        make("simclr", 0)


def ranked(rank: int, world: int, port: int, folder: str) -> None:
    join(rank, world, port)
    torch.manual_seed(0)
    encoder = nn.Linear(4, 3).double()
    model = nn.parallel.DistributedDataParallel(_Step(encoder))
    x = _inputs()[:, 6 * rank : 6 * rank + 6]
    model(x, torch.arange(6 * rank, 6 * rank + 6)).backward()
    torch.save([parameter.grad for parameter in encoder.parameters()], Path(folder) / f"{rank}.pt")
    leave()


class _Step(nn.Module):
    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, InfoNCE(0.3).double()

    def forward(self, x: Tensor, ids: Tensor, parts: int = 3) -> Tensor:
        from contrast.distributed import mean_counted

        def embed(i: int, again: bool) -> Embedded:
            out = self.encoder(x.tensor_split(parts, dim=1)[i])
            return Embedded(out, out, None)

        def contrast(query: Tensor, key: Tensor | None) -> tuple[Tensor, None]:
            ((q, candidates),) = InBatch()(query, None, ids)
            return mean_counted(*self.head(q, candidates)), None

        return cached_gradients(embed, parts, contrast, [self.encoder], list(self.encoder.parameters()))[0]


def _inputs() -> Tensor:
    return torch.randn(2, 12, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@pytest.mark.slow
def test_two_ranks_equal_one_with_one_synchronisation(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = nn.Linear(4, 3).double()
    _Step(encoder)(_inputs(), torch.arange(12), parts=1).backward()
    torch.multiprocessing.spawn(ranked, (2, free_port(), str(tmp_path)), nprocs=2)
    for rank in range(2):
        for grad, parameter in zip(torch.load(tmp_path / f"{rank}.pt"), encoder.parameters(), strict=True):
            torch.testing.assert_close(grad, parameter.grad)


@pytest.mark.parametrize(("count", "most"), [(257, 256), (256, 256), (5, 2), (1, 3), (7, 1)])
def test_parts_are_as_equal_as_they_can_be(count: int, most: int) -> None:
    """A last part of one image would be too small for batch norm."""
    parts = equal_parts(count, most)
    assert [i for part in parts for i in range(count)[part]] == list(range(count))
    lengths = [part.stop - part.start for part in parts]
    assert max(lengths) <= most
    assert max(lengths) - min(lengths) <= 1
