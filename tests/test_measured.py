"""What metrics decide during training, and the average of the encoder's weights."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from test_module import make, trainer
from test_online import striped

import contrast
from contrast.encoders import conv_net
from contrast.errors import InputError
from contrast.keys import Second
from contrast.run.metrics import MetricsLog
from contrast.training.callbacks.ema import EncoderEMA, averaged
from contrast.training.callbacks.measured import Best, EarlyStopping, Prune
from contrast.training.callbacks.online import OnlineKNN
from contrast.training.data import PretrainData


class Scores(pl.Callback):
    """Logs these values of the metric after the epochs, None: not in this one."""

    def __init__(self, *values: float | None) -> None:
        self.values = values

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if (value := self.values[trainer.current_epoch]) is not None:
            pl_module.log("online/knn_top1", value)


def fit(folder: Path, epochs: int, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    run = trainer(folder, max_epochs=epochs, callbacks=list(callbacks), **options)
    run.fit(make(), PretrainData(striped(32), 16))
    return run


def kept(folder: Path) -> dict[str, float]:
    values = json.loads((folder / "checkpoints" / "best.json").read_text())["checkpoints"]
    assert set(values) == {path.name for path in (folder / "checkpoints").glob("*.ckpt")}
    return {name: pytest.approx(value) for name, value in values.items()}


def test_the_best_checkpoints_are_kept_of_what_was_measured(tmp_path: Path) -> None:
    fit(tmp_path / "a", 6, Scores(0.5, None, 0.9, 0.7, 0.6, 0.9), Best(top_k=2))
    # the second epoch has no value of its own, and of equal values the earlier one is better
    assert list(kept(tmp_path / "a").items()) == [("best_00003.ckpt", 0.9), ("best_00006.ckpt", 0.9)]
    fit(tmp_path / "b", 3, Scores(0.5, 0.4, None), Best(top_k=1, mode="min"))
    assert kept(tmp_path / "b") == {"best_00002.ckpt": 0.4}
    saved = torch.load(tmp_path / "b" / "checkpoints" / "best_00002.ckpt", weights_only=True)
    assert saved["global_step"] == 4
    assert saved["callbacks"]["Best"] == {"values": {"best_00002.ckpt": pytest.approx(-0.4)}}
    fit(tmp_path / "c", 1, Scores(0.5), Best())
    assert not list((tmp_path / "c").rglob("best*"))


def test_the_run_ends_when_nothing_gets_better(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = fit(tmp_path, 9, Scores(0.5, 0.6, None, 0.61, 0.6, *[0.9] * 4), EarlyStopping(patience=2, min_delta=0.05))
    assert run.current_epoch == 5  # after 0.61 and 0.6, which are not better than 0.6 by 0.05
    assert "online/knn_top1 was best at 0.6000, 2 measurements ago" in capsys.readouterr().out
    assert fit(tmp_path, 3, Scores(0.5, 0.4, 0.3), EarlyStopping()).current_epoch == 3


def test_a_metric_that_is_never_measured_is_no_silent_loss(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="online/knn_top1 was not measured, and Best"):
        fit(tmp_path, 1, Scores(None), Best(top_k=1))


def test_a_job_below_the_median_of_the_others_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def job(name: str, *scores: float | None, startup: int | None = 3) -> int:
        run = fit(tmp_path / name, 4, Scores(*scores), Prune(startup), logger=MetricsLog(tmp_path / name))
        (tmp_path / name / "metrics.json").write_text("{}")
        return run.current_epoch

    for number, first in enumerate((0.3, 0.5, 0.7)):
        assert job(str(number), first, None, 0.8, 0.9) == 4  # there are not yet three others
    assert job("3", 0.6, None, 0.79, 0.9) == 3  # 0.6 is above the median of 0.5, and 0.79 below that of 0.8
    assert "epoch 3: online/knn_top1 is 0.7900, worse than the median" in capsys.readouterr().out
    assert job("4", 0.1, None, 0.1, 0.1, startup=None) == 4
    shutil.rmtree(tmp_path / "4")
    assert job("5", 0.55, 0.0, 0.8, 0.9) == 4  # no other job measured at the second epoch
    for pruned in ("3", "5"):
        (tmp_path / pruned / "metrics.json").write_text('{"pruned_after_epochs": 3}')
    assert job("6", 0.52, None, 0.8, 0.9) == 4  # the median of those that were not pruned is 0.5


@pytest.mark.parametrize(
    ("make_callback", "numbers"),
    [
        (lambda: Best(top_k=-1), "-1"),
        (lambda: EarlyStopping(patience=0), "0"),
        (lambda: Best(mode="best"), "'best'"),
        (lambda: EncoderEMA(decay=1.0), "1.0"),
    ],
)
def test_what_cannot_be_meant_is_refused(make_callback: Any, numbers: str) -> None:
    with pytest.raises(InputError, match=numbers):
        make_callback()


class Weights(pl.Callback):
    """The encoder's first weight after each step, from the one before the first on."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def look(self, pl_module: Any) -> None:
        self.seen.append(next(pl_module.encoder.parameters()).detach().double().clone())

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.look(pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.look(pl_module)


def test_the_average_is_saved_measured_and_left_in_the_model(tmp_path: Path) -> None:
    weights, measured, images = Weights(), [], striped(32)

    class Probe(OnlineKNN):
        def features(self, pl_module: Any, rows: torch.Tensor) -> Any:
            measured.append(next(pl_module.encoder.parameters()).detach().clone())
            return super().features(pl_module, rows)

    model = make()
    best = Best(top_k=1, metric="train/loss", mode="min")
    run = trainer(
        tmp_path, max_epochs=3, callbacks=[weights, Probe(images, every_n_epochs=1, k=5), EncoderEMA(0.6), best]
    )
    run.fit(model, PretrainData(images, 16))
    average = weights.seen[0]
    by_step = []
    for n, weight in enumerate(weights.seen[1:], start=1):
        decay = min(0.6, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * weight
        by_step.append(average)
    assert torch.allclose(next(model.encoder.parameters()).double(), average, atol=1e-6)
    assert torch.allclose(measured[-1].double(), by_step[-1], atol=1e-6)
    run.save_checkpoint(tmp_path / "end.ckpt")  # after the exchange at the end
    (path,) = (tmp_path / "checkpoints").glob("best_*.ckpt")
    saved = torch.load(path, weights_only=True)
    step = saved["global_step"]
    name = next(key for key in saved["trained"] if key.startswith("encoder."))
    assert torch.allclose(saved["state_dict"][name].double(), by_step[step - 1], atol=1e-6)
    assert torch.equal(saved["trained"][name].double(), weights.seen[step])
    integers = [key for key in saved["trained"] if key.endswith("num_batches_tracked")]
    assert all(torch.equal(saved["trained"][key], saved["state_dict"][key]) for key in integers)


def test_two_encoders_are_not_averaged_by_half(tmp_path: Path) -> None:
    model = make()
    model.key = Second(conv_net(1, 8, widths=(4, 4, 4)), dim=8)
    with pytest.raises(InputError, match="second encoder"):
        EncoderEMA(0.9).setup(None, model, "fit")  # type: ignore[arg-type]


def test_without_an_average_the_model_stays_as_it_is(tmp_path: Path) -> None:
    run = fit(tmp_path, 1, EncoderEMA())
    model = run.lightning_module
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with averaged(run, model):
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert "trained" not in torch.load(save(run, tmp_path), weights_only=True)


@pytest.mark.parametrize("decay", [None, 0.9])
def test_a_resumed_run_goes_on_from_the_trained_weights(tmp_path: Path, decay: float | None) -> None:
    """Also if it averages no longer."""
    fit(tmp_path / "a", 2, EncoderEMA(0.9), Best(top_k=1, metric="train/loss", mode="min"))
    (path,) = (tmp_path / "a" / "checkpoints").glob("best_*.ckpt")
    weights, model = Weights(), make()
    trainer(tmp_path / "b", max_epochs=3, callbacks=[weights, EncoderEMA(decay)]).fit(
        model, PretrainData(striped(32), 16), ckpt_path=path, weights_only=True
    )
    name = next(key for key, _ in model.named_parameters() if key.startswith("encoder."))
    assert torch.equal(weights.seen[0], torch.load(path, weights_only=True)["trained"][name].double())


def test_a_single_run_has_no_others_to_be_behind(tmp_path: Path) -> None:
    pytest.importorskip("optuna", minversion="3.2")
    with pytest.raises(InputError, match="jobs of a sweep"):
        fit(tmp_path / "2026-01-01", 1, Prune(0))


def save(run: pl.Trainer, folder: Path) -> Path:
    run.save_checkpoint(folder / "end.ckpt")
    return folder / "end.ckpt"


def test_a_run_ships_the_average(pretrain: Any) -> None:
    words = ("trainer.limit_train_batches=4", "callbacks.ema.decay=0.5", "evaluation.max_train=100")
    from conftest import FEW, TINY

    assert pretrain(*TINY, *FEW, *words, "evaluation.pixels=false", "hydra.run.dir=run") == 0
    saved = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    encoder = contrast.load("run").model.encoder
    name, value = next(iter(encoder.state_dict().items()))
    assert torch.equal(value, saved["state_dict"][f"encoder.{name}"])
    assert not torch.equal(value, saved["trained"][f"encoder.{name}"])
