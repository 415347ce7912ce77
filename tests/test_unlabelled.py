"""Data without labels: what is held out, what is measured, and what a sweep compares."""

import json
from pathlib import Path

import pytest
import torch
from conftest import TINY, Command, figures
from PIL import Image
from torch import nn

from contrast.data.images.digits import digits
from contrast.data.images.folder import folder
from contrast.data.images.image_set import Images
from contrast.data.images.subset import MOST_UNLABELLED, hold_out_test
from contrast.evaluation.geometry import effective_rank, uniformity
from contrast.evaluation.unlabelled import NAMES, TEMPERATURE, unlabelled

RUN = (
    *TINY,
    "evaluation.enabled=true",
    "trainer.limit_train_batches=2",
    "batch_size=16",
    "data=folder",
    "encoder=small",
)


@pytest.fixture
def flat(workplace: Path) -> Path:
    """40 digits in a folder without classes."""
    (workplace / "flat").mkdir()
    for i, image in enumerate(digits().train.pixels[:40, 0].numpy()):
        Image.fromarray(image).save(workplace / "flat" / f"{i:02}.png")
    return workplace / "flat"


def test_the_metrics_are_those_of_their_definition() -> None:
    images = Images(torch.randint(256, (9, 1, 4, 4), dtype=torch.uint8), torch.full((9,), -1), ())
    encoder, projector = nn.Sequential(nn.Flatten(), nn.Linear(16, 5)), nn.Linear(5, 3)
    made: list[torch.Tensor] = []

    def view(pixels: torch.Tensor, random: torch.Generator) -> torch.Tensor:
        made.append(pixels / 255 + torch.rand(pixels.shape, generator=random))
        return made[-1]

    found = unlabelled(encoder, projector, view, images, torch.device("cpu"))
    assert set(found) == set(NAMES)
    features = encoder(torch.cat(made)).detach()
    z = nn.functional.normalize(projector(features), dim=1).detach().double()
    loss, hits = 0.0, 0
    for i in range(18):
        scores = {k: float(z[i] @ z[k]) for k in range(18) if k != i}
        partner = (i + 9) % 18
        hits += max(scores, key=scores.__getitem__) == partner
        total = sum(torch.tensor(score / TEMPERATURE).double().exp() for score in scores.values())
        loss += float(torch.log(total)) - scores[partner] / TEMPERATURE
    assert found["held_out_top1"] == pytest.approx(hits / 18)
    assert found["held_out_loss"] == pytest.approx(loss / 18, rel=1e-5)
    assert found["effective_rank"] == pytest.approx(float(effective_rank(features)), rel=1e-4)
    assert found["uniformity"] == pytest.approx(float(uniformity(features)), rel=1e-4)
    made.clear()
    assert unlabelled(encoder, projector, view, images, torch.device("cpu")) == found  # a function of the seed


def test_a_collapsed_encoder_finds_no_view() -> None:
    images = Images(torch.randint(256, (9, 1, 4, 4), dtype=torch.uint8), torch.full((9,), -1), ())
    found = unlabelled(
        nn.Flatten(), lambda x: torch.eye(1, 3).expand(len(x), 3), lambda x, _: x / 255, images, torch.device("cpu")
    )
    assert found["held_out_top1"] == 0  # all views are equally near


def test_a_share_of_images_without_labels_is_held_out(flat: Path) -> None:
    splits = folder(flat)
    assert splits.test is not None
    assert (len(splits.train), len(splits.test)) == (36, 4)
    assert folder(flat, test_fraction=0).test is None
    fit, held = hold_out_test(torch.full((200_000,), -1), 0.1)
    assert len(held) == MOST_UNLABELLED
    assert torch.equal(torch.cat([fit, held]).sort().values, torch.arange(200_000))


def test_a_run_without_labels_is_measured(pretrain: Command, flat: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert pretrain(*RUN, "data.root=flat", "hydra.run.dir=run") == 0
    out = capfd.readouterr().out
    assert "flat has no labels: the frozen encoder is measured on views of 4 held-out images" in out
    assert "untrained     trained" in out
    assert set(figures("run")) >= {*NAMES, *(f"untrained_{name}" for name in NAMES)}
    assert not any("linear" in name or "knn" in name for name in figures("run"))


def test_one_class_alone_is_no_accuracy(
    pretrain: Command, evaluate: Command, workplace: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for i, image in enumerate(digits().train.pixels[:24, 0].numpy()):
        file = workplace / "own" / ("train" if i < 20 else "test") / "only" / f"{i:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    assert pretrain(*RUN, "data.root=own", "hydra.run.dir=run") == 0
    assert "own has no two classes" in capfd.readouterr().out
    assert set(NAMES) < set(figures("run"))
    assert not any("linear" in name or "knn" in name for name in figures("run"))
    assert "online" not in Path("run/metrics.jsonl").read_text()
    assert evaluate("checkpoint=run", "protocol=knn", "trainer.accelerator=cpu") == 2
    assert "no labels of two classes" in capfd.readouterr().err


@pytest.mark.slow
def test_a_sweep_without_labels_compares_what_there_is(
    pretrain: Command, flat: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert pretrain("-m", *RUN, "data.root=flat", "head.temperature=0.1,0.5", "hydra.sweep.dir=sweep") == 0
    table = capfd.readouterr().out
    assert "head.temperature  held_out_top1" in table
    assert Path("sweep/sweep.png").exists()


@pytest.mark.slow
def test_optuna_without_labels(pretrain: Command, flat: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("optuna", minversion="3.2", reason="pip install 'contrast-learning[optuna]'")
    own = ("sweep=optuna", "hydra.sweeper.n_trials=2", "data.root=flat")
    assert pretrain("-m", *RUN, *own, "hydra.sweep.dir=sweep") == 0
    best = Path("sweep/optimization_results.yaml").read_text()
    values = [json.loads(file.read_text())["held_out_top1"] for file in Path("sweep").glob("*/metrics.json")]
    assert f"best_value: {max(values)}" in best
    # without a held-out image there is nothing to compare: no trial takes a step
    assert pretrain("-m", *RUN, *own, "data.test_fraction=0", "hydra.sweep.dir=none") == 1
    assert "metric=linear_val_top1 will not be among the metrics" in capfd.readouterr().err
    assert not list(Path("none").glob("*/checkpoints"))
