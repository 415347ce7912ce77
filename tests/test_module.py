"""The main path: what a step computes, logs and restores."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from contrast.data.images.image_set import Images
from contrast.encoders import conv_net, mlp
from contrast.encoders.normalize import Normalize
from contrast.errors import InputError
from contrast.heads import Cosine, InfoNCE, Learnable
from contrast.module import Contrastive
from contrast.negatives import InBatch
from contrast.optim import warmup_cosine
from contrast.training.callbacks.nonfinite import SaveNonFinite, StopAfterNonFinite
from contrast.training.data import PretrainData
from contrast.views import SimCLRViews


def images(n: int = 24) -> Images:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (n, 1, 8, 8), generator=generator).to(torch.uint8)
    return Images(pixels, torch.arange(n) % 3, ("a", "b", "c"))


def make(head: nn.Module | None = None, seed: int = 0, **views: object) -> Contrastive:
    torch.manual_seed(0)
    encoder = conv_net(widths=[8, 16], in_channels=1, image_size=8)
    return Contrastive(
        normalize=Normalize(*images().statistics()),
        views=SimCLRViews(8, **views),
        encoder=encoder,
        projector=mlp(in_features=encoder.num_features, layers=2, hidden_features=16, out_features=8),
        negatives=InBatch(),
        head=head or InfoNCE(0.2),
        optimizer=partial(torch.optim.AdamW, lr=1e-3),
        scheduler=warmup_cosine,
        seed=seed,
        config={"name": "test"},
    )


def trainer(folder: Path, **kwargs: object) -> pl.Trainer:
    options = {"max_epochs": 2, "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return pl.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        enable_model_summary=False,
        log_every_n_steps=1,
        **(options | kwargs),
    )


def test_the_loss_is_the_heads_over_both_views(tmp_path: Path) -> None:
    model = make()
    seen = {}

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            seen.setdefault("loss", outputs["loss"].item())
            seen.setdefault("batch", batch)

    start = {name: value.clone() for name, value in model.state_dict().items()}
    trainer(tmp_path, max_steps=1, callbacks=[Look()]).fit(model, PretrainData(images(), 8))
    fresh = make()
    fresh.load_state_dict(start)
    fresh.batch_number, fresh.trainer = 1, model.trainer
    views = fresh.views(seen["batch"].pixels, fresh.uniforms(8))
    z = fresh.projector(fresh(torch.cat(views))).view(2, 8, -1)
    losses, _ = InfoNCE(0.2)(*InBatch()(z, None, torch.arange(8))[0])
    assert losses.mean().item() == pytest.approx(seen["loss"], rel=1e-6)


def test_every_seed_and_every_batch_has_views_of_its_own() -> None:
    drawn = []
    for seed, number in ((0, 1), (1, 1), (0, 2), (2**32, 1), (0, 1)):
        model = make(seed=seed)
        model.batch_number = number
        model._trainer = SimpleNamespace(world_size=1, global_rank=0)
        drawn.append(model.uniforms(4))
    assert torch.equal(drawn[0], drawn[4])
    for i in range(4):
        for j in range(i):
            assert not torch.equal(drawn[i], drawn[j]), (i, j)


def test_multi_crop_embeds_each_size_in_one_pass() -> None:
    model = make(views=[{"count": 2}, {"count": 3, "size": 6}]).eval()
    pixels = images(5).pixels
    views = model.views(pixels, model.views.draw(5, torch.Generator().manual_seed(0)))
    sizes = []
    model.encoder.register_forward_hook(lambda _, inputs, __: sizes.append(list(inputs[0].shape)))
    together = model.embed(views)
    assert sizes == [[10, 1, 8, 8], [15, 1, 6, 6]]
    torch.testing.assert_close(together, torch.stack([model(view) for view in views]), rtol=1e-5, atol=1e-6)


def test_apart_each_view_has_the_batch_norm_of_its_own() -> None:
    pixels = images(6).pixels
    views = [pixels[:3] / 255, pixels[3:] / 255]
    together, apart = make(), make()
    apart.one_forward_pass = False
    whole = together.each(together.projector, together.embed(views))
    each = apart.each(apart.projector, apart.embed(views))
    alone = make()
    for v, view in enumerate(views):
        torch.testing.assert_close(each[v], alone.projector(alone(view)))
    assert not torch.allclose(whole, each, atol=1e-3)


def test_the_schedule_of_the_temperature_spans_the_training(tmp_path: Path) -> None:
    model = make(InfoNCE(Cosine(0.5, 0.1)))
    trainer(tmp_path).fit(model, PretrainData(images(), 8))
    assert model.head.temperature.steps == 6
    assert model.head.temperature().item() == pytest.approx(0.1)


def test_a_learnable_temperature_moves_within_its_bounds(tmp_path: Path) -> None:
    model = make(InfoNCE(Learnable(0.07, minimum=0.0699, maximum=0.0701)))
    trainer(tmp_path).fit(model, PretrainData(images(), 8))
    value = model.head.temperature().item()
    assert value != pytest.approx(0.07, rel=1e-6)
    assert 0.0699 * (1 - 1e-6) <= value <= 0.0701 * (1 + 1e-6)


def test_the_step_logs_what_the_loss_does_not_tell(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.fit(make(), PretrainData(images(), 8))
    told = {name.removeprefix("train/") for name in run.callback_metrics}
    assert told == {
        "uncounted",
        *("loss", "bound", "top1", "positive_score", "negative_score", "temperature", "alignment", "uniformity"),
        *("rank_embedding", "rank_projection", "grad_norm", "lr"),
    }
    assert all(value.isfinite() for value in run.callback_metrics.values())


def test_wrong_channels_are_an_error() -> None:
    with pytest.raises(InputError, match="the encoder takes 1 channels, the images have 3"):
        make()(torch.zeros(2, 3, 8, 8))


@pytest.mark.parametrize("where", ["parameter", "activation"])
def test_a_loss_that_is_not_finite_stops_the_run_with_all_that_reproduces_it(tmp_path: Path, where: str) -> None:
    model = make()

    class Poison(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            if trainer.global_step == 2 and where == "parameter":
                with torch.no_grad():
                    next(pl_module.projector.parameters()).fill_(float("nan"))
            if trainer.global_step == 2 and where == "activation":
                pl_module.projector[0].register_forward_hook(lambda *_: _[2] * float("inf"))

    before = {}

    class Keep(pl.Callback):
        def on_before_backward(self, trainer, pl_module, loss) -> None:
            before.update({name: p.detach().clone() for name, p in pl_module.named_parameters()})

    run = trainer(tmp_path, callbacks=[Poison(), Keep(), SaveNonFinite(tmp_path)])
    first = r"projector\.0\.weight" if where == "parameter" else r"the output of projector\.0"
    with pytest.raises(InputError, match=rf"loss of batch 3 is nan; first non-finite tensor: {first}"):
        run.fit(model, PretrainData(images(), 8))
    saved = torch.load(tmp_path / "nonfinite_3.pt", weights_only=True)
    assert saved["batch_number"] == 3
    for name, value in before.items():  # no step was taken
        assert torch.equal(model.state_dict()[name].nan_to_num(), value.nan_to_num())
    again = make()
    again.load_state_dict(saved["state_dict"])
    views = again.views(saved["batch"]["pixels"], saved["uniforms"])
    assert all(view.isfinite().all() for view in views)
    if where == "parameter":
        assert not again.projector(again(views[0])).isfinite().all()


def test_a_loss_that_is_not_finite_is_seen_in_every_accumulated_batch(tmp_path: Path) -> None:
    model = make()

    class Poison(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            if pl_module.batch_number == 2:  # the next one is the third, the first of its step
                self.hook = pl_module.projector[0].register_forward_hook(lambda *_: _[2] * float("nan"))

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            if pl_module.batch_number == 3:
                self.hook.remove()

    run = trainer(tmp_path, callbacks=[Poison(), SaveNonFinite(tmp_path)], accumulate_grad_batches=2)
    with pytest.raises(InputError, match="the loss of batch 3 is nan"):
        run.fit(model, PretrainData(images(32), 8))
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("precision", "other"),
    [("32-true", ""), ("16-mixed", "trainer.precision=16-mixed, which has no number above 65504, or ")],
)
def test_the_cause_of_a_loss_of_text_that_is_not_finite_depends_on_the_precision(precision: str, other: str) -> None:
    settings, text = SimpleNamespace(precision=precision), SimpleNamespace(batch_number=3)
    with pytest.raises(InputError) as raised:
        StopAfterNonFinite().on_train_batch_end(settings, text, {"loss": torch.tensor(float("inf"))})
    cause = f"{other}a learning rate that is too high"
    assert str(raised.value) == f"the loss of batch 3 is inf, and the usual cause is {cause}"
