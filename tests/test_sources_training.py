"""Sources of negatives under Lightning: what a step sees and leaves, and a resume bit for bit."""

import functools
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from contrast.data.images.image_set import Images
from contrast.encoders import conv_net, mlp, predictor
from contrast.encoders.normalize import Normalize
from contrast.errors import InputError
from contrast.heads import NCE, Alignment, Covariance, CrossCorrelation, Estimated, InfoNCE
from contrast.keys import Momentum
from contrast.module import Contrastive
from contrast.negatives import (
    Bank,
    Dimensions,
    Nearest,
    Paired,
    PositivesOnly,
    Prototypes,
    Queue,
    Source,
    Table,
)
from contrast.optim import warmup_cosine
from contrast.run.checkpoints import AtomicCheckpointIO, Checkpoints
from contrast.samplers import LogUniform, Poisson, Uniform
from contrast.training.callbacks.nonfinite import SaveNonFinite
from contrast.training.data import PretrainData
from contrast.training.teacher import FrozenTeacher
from contrast.views import SimCLRViews

N, BATCH, DIM, TEMPERATURE = 24, 8, 6, 0.2  # 3 steps an epoch
ONE = {"views": 1}
MULTI_CROP = {"views": [{"count": 2}, {"count": 2, "size": 6}]}


TEACHER = {"_target_": "contrast.encoders.conv_net", "widths": [4, DIM]}


@functools.cache
def teacher_file() -> Path:
    with torch.random.fork_rng():
        state = conv_net(in_channels=1, image_size=8, widths=[4, DIM]).state_dict()
    file = Path(tempfile.mkdtemp()) / "teacher.pt"
    torch.save(state, file)
    return file


def images() -> Images:
    pixels = torch.randint(256, (N, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return Images(pixels, torch.arange(N) % 3, ("a", "b", "c"))


def make(
    negatives: Callable[[], Source],
    head: Callable[[], nn.Module] = lambda: InfoNCE(TEMPERATURE),
    momentum: dict[str, Any] | None = None,
    predicting: bool = False,
    views: dict[str, Any] | None = None,
    same_label: Any = "negative",
    seed: int = 0,
    teacher: bool = False,
) -> Contrastive:
    torch.manual_seed(seed)
    taught = FrozenTeacher(images(), DIM, str(teacher_file()), TEACHER) if teacher else None
    normalize, encoder = Normalize(*images().statistics()), conv_net(widths=[4, 8], in_channels=1, image_size=8)
    projector = mlp(in_features=encoder.num_features, layers=2, hidden_features=8, out_features=DIM)
    return Contrastive(
        normalize=normalize,
        views=SimCLRViews(8, **(views or {})),
        encoder=encoder,
        projector=projector,
        key=taught if momentum is None else Momentum(normalize, encoder, projector, **momentum),
        predictor=predictor(in_features=DIM, hidden_features=8) if predicting else None,
        negatives=negatives(),
        head=head(),
        optimizer=partial(torch.optim.AdamW, lr=1e-2),
        scheduler=warmup_cosine,
        same_label=same_label,
    )


def trainer(folder: Path, **kwargs: Any) -> pl.Trainer:
    options = {
        "max_epochs": 2,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "enable_checkpointing": False,
    }
    return pl.Trainer(accelerator="cpu", default_root_dir=folder, logger=False, **(options | kwargs))


# --- what a step sees and leaves


class Watched(Queue):
    """A queue that writes down what each batch was asked with, and what it held then."""

    def __init__(self, size: int = 20, **kwargs: Any) -> None:
        super().__init__(size, DIM, **kwargs)
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def forward(self, query: Tensor, key: Tensor | None, *args: Any) -> Any:  # type: ignore[override]
        assert key is not None
        self.seen.append((query.detach().clone(), key.detach().clone(), self.held()))
        return super().forward(query, key, *args)

    def held(self) -> Tensor:
        """The rows that are filled, the oldest first."""
        rows = self.rows
        order = (rows.head + torch.arange(len(rows.ids))) % len(rows.ids)
        return rows.vectors[order[rows.ids[order] > torch.iinfo(torch.int64).min]].clone()


class Losses(pl.Callback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append(outputs["loss"].item())


def naive_moco(query: Tensor, key: Tensor, rows: Tensor) -> float:
    """Mean over the queries [1, B, D] of -log exp(q k+) / (exp(q k+) + sum over the rows)."""
    unit = nn.functional.normalize
    query, key, rows = (unit(x.double(), dim=-1) for x in (query[0], key[0], rows))
    total = 0.0
    for q, k in zip(query, key, strict=True):
        answer = (q @ k / TEMPERATURE).exp()
        total -= float((answer / (answer + sum((q @ row / TEMPERATURE).exp() for row in rows))).log())
    return total / len(query)


def test_a_key_is_no_negative_in_the_step_it_was_made(tmp_path: Path) -> None:
    """Every batch sees the last K keys of the steps before it, older views of its own images excepted."""
    model, losses = make(Watched, momentum={"momentum": 0.5, "num_queries": 1}), Losses()
    trainer(tmp_path, max_epochs=1, callbacks=[losses]).fit(model, PretrainData(images(), BATCH))
    past = torch.zeros(0, DIM)
    for number, (query, key, rows) in enumerate(model.negatives.seen):
        assert query.shape == key.shape == (1, BATCH, DIM)
        assert torch.equal(rows, past[-20:]), number
        assert losses.seen[number] == pytest.approx(naive_moco(query, key, rows), abs=1e-5)
        past = torch.cat([past, key[0]])
    assert losses.seen[0] == 0 < losses.seen[1]
    assert torch.equal(model.negatives.held(), past[-20:])
    assert model.key.step == model.key.steps == 3


def test_the_keys_of_accumulated_batches_enter_after_the_step_in_order(tmp_path: Path) -> None:
    model = make(lambda: Watched(100), momentum={"num_queries": 1})
    trainer(tmp_path, accumulate_grad_batches=2, limit_train_batches=2).fit(model, PretrainData(images(), BATCH))
    keys = [key[0] for _, key, _ in model.negatives.seen]
    expected = [0, 0, 2, 2]  # batches whose keys are there
    for (_, _, rows), there in zip(model.negatives.seen, expected, strict=True):
        assert torch.equal(rows, torch.cat([torch.zeros(0, DIM), *keys[:there]]))
    assert torch.equal(model.negatives.held(), torch.cat(keys))
    assert model.key.step == model.key.steps == 2


def test_averaged_prototypes_follow_once_a_step(tmp_path: Path) -> None:
    model = make(lambda: Prototypes(16, DIM, momentum=0.9), momentum={"momentum": 0.9})
    before, one_step = model.negatives.average.clone(), {"accumulate_grad_batches": 2, "limit_train_batches": 2}
    trainer(tmp_path, max_epochs=1, **one_step).fit(model, PretrainData(images(), BATCH))
    expected = 0.9 * before + 0.1 * model.negatives.vectors.detach()
    torch.testing.assert_close(model.negatives.average, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("accumulated", [1, 2])
def test_keys_of_a_loss_that_is_not_finite_stay_out(tmp_path: Path, accumulated: int) -> None:
    class Poison(pl.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if pl_module.batch_number == 2 * accumulated:  # the next one is the first of its step
                self.hook = pl_module.projector[0].register_forward_hook(lambda *_: _[2] * float("nan"))

    model, poison = make(lambda: Watched(100), momentum={"num_queries": 1}), Poison()
    callbacks = [poison, SaveNonFinite(tmp_path)]
    run = trainer(tmp_path, max_epochs=3, accumulate_grad_batches=accumulated, callbacks=callbacks)
    with pytest.raises(InputError, match=f"the loss of batch {2 * accumulated + 1} is nan"):
        run.fit(model, PretrainData(images(), BATCH if accumulated == 1 else BATCH // 2))
    keys = [key[0] for _, key, _ in model.negatives.seen[: 2 * accumulated]]
    assert torch.equal(model.negatives.held(), torch.cat(keys))
    assert model.key.step == 2
    poison.hook.remove()

    model.negatives.seen = []  # the same model again: nothing of the step that failed comes after all
    run = trainer(tmp_path, max_epochs=1, limit_train_batches=1)
    run.fit(model, PretrainData(images(), BATCH))
    assert torch.equal(model.negatives.held(), torch.cat([*keys, model.negatives.seen[0][1][0]]))


def test_with_multi_crop_every_view_asks_and_the_whole_ones_answer(tmp_path: Path) -> None:
    model = make(lambda: Watched(100), momentum={"momentum": 1.0}, views=MULTI_CROP)
    trainer(tmp_path, max_epochs=1, limit_train_batches=1).fit(model, PretrainData(images(), BATCH))
    ((query, key, _),) = model.negatives.seen
    assert query.shape == key.shape == (4, BATCH, DIM)
    assert torch.equal(key[0], key[2])
    assert torch.equal(key[1], key[3])
    assert torch.equal(model.negatives.held(), key.flatten(0, 1))


def test_without_a_key_encoder_the_other_view_answers(tmp_path: Path) -> None:
    model = make(Watched)
    trainer(tmp_path, max_epochs=1, limit_train_batches=2).fit(model, PretrainData(images(), BATCH))
    for query, key, _ in model.negatives.seen:
        assert torch.equal(key, query.roll(-1, 0))
    assert torch.equal(
        model.negatives.held(), torch.cat([key.flatten(0, 1) for _, key, _ in model.negatives.seen])[-20:]
    )


# --- resume

METHODS: dict[str, Callable[..., Contrastive]] = {
    "queue": partial(make, lambda: Queue(20, DIM), momentum={"momentum": 0.5, "final": 1.0, "num_queries": 1}),
    "queue of classes": partial(
        make,
        lambda: Queue(20, DIM, in_batch=True, positives=True),
        momentum={"momentum": 0.9},
        same_label="positive",
        views=MULTI_CROP,
    ),
    "paired": partial(make, Paired, momentum={"momentum": 0.9}, predicting=True),
    "nearest": partial(make, lambda: Nearest(20, DIM), predicting=True),
    "queue, teacher": partial(
        make, lambda: Queue(20, DIM, teacher_temperature=0.1, own_key=False), momentum={"momentum": 0.9}
    ),
    "prototypes, centring": partial(make, lambda: Prototypes(16, DIM, momentum=0.9), momentum={"momentum": 0.9}),
    "prototypes, sinkhorn": partial(make, lambda: Prototypes(16, DIM, balance="sinkhorn"), views=MULTI_CROP),
    "positives only": partial(make, PositivesOnly, Alignment, momentum={"momentum": 0.9}, predicting=True),
    "dimensions": partial(make, Dimensions, CrossCorrelation, views=MULTI_CROP),
    "dimensions, covariance": partial(make, lambda: Dimensions(among="queries"), Covariance),
    "bank": partial(
        make, lambda: Bank(N, DIM, Uniform(N), draws=10), lambda: NCE(TEMPERATURE, bias=Estimated(0.9, 4)), views=ONE
    ),
    "bank, near draws": partial(make, lambda: Bank(N, DIM, proximity=0.5, draws=10)),
    "queue, frozen teacher": partial(make, lambda: Queue(20, DIM, teacher_temperature=0.1), teacher=True, views=ONE),
    "bank of a teacher's features": partial(
        make, lambda: Bank(N, DIM, Uniform(N), draws=10, of_keys=True), lambda: NCE(TEMPERATURE), teacher=True
    ),
    "table, draws": partial(
        make, lambda: Table(3, DIM, LogUniform(3), draws=2), lambda: InfoNCE(1.0, cosine=False), same_label="positive"
    ),
    "table, Poisson": partial(make, lambda: Table(N, DIM, Poisson(Uniform(N), 8.0)), views=ONE),
}


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupted_run_ends_as_a_whole_one(method: str, tmp_path: Path) -> None:
    whole, resumed = METHODS[method](), METHODS[method](seed=1)  # other weights, rows and tables, which must not matter
    losses, again = Losses(), Losses()
    saving = Checkpoints(tmp_path, every_n_epochs=1)
    safe = {"plugins": [AtomicCheckpointIO()]}
    run = trainer(tmp_path, callbacks=[saving, losses], enable_checkpointing=True, **safe)
    run.fit(whole, PretrainData(images(), BATCH))
    file = tmp_path / "epoch_00001.ckpt"
    first = torch.load(file, weights_only=True)
    trainer(tmp_path, callbacks=[again], **safe).fit(resumed, PretrainData(images(), BATCH), ckpt_path=file)
    assert len(losses.seen) == 6
    assert again.seen == losses.seen[3:]
    expected = whole.state_dict()
    assert resumed.state_dict().keys() == expected.keys() == first["state_dict"].keys()
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, expected[name]), name
    for name in ("negatives.rows.vectors", "negatives.rows.head", "negatives.vectors", "key.step", "head.bias.log_z"):
        if name in expected:
            assert not torch.equal(expected[name], first["state_dict"][name]), name
