"""contrast-evaluate: every protocol, on a run and on files of weights, and its errors at the door."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Command, figures
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

from contrast.data.images.digits import digits
from contrast.data.images.image_set import Images
from contrast.encoders.normalize import Normalize
from contrast.evaluation.encoder import Frozen, from_checkpoint
from contrast.evaluation.features import EvaluationData, features
from contrast.evaluation.knn import knn_score
from contrast.training.finetune import Classifier, finetune
from contrast.views import SimCLRViews

CPU = "trainer.accelerator=cpu"
SMALL = ("encoder=small", "encoder.widths=[8,16,32]")


@pytest.fixture
def plain(trained: Path, workplace: Path) -> Path:
    """The encoder's weights alone, as any other program might have saved them."""
    state = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    own = {key.removeprefix("encoder."): value for key, value in state.items() if key.startswith("encoder.")}
    torch.save(own, workplace / "plain.pt")
    return workplace / "plain.pt"


def encoder(trained: Path) -> Frozen:
    return from_checkpoint(torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)).eval()


def test_knn_is_the_vote_on_the_frozen_features(evaluate: Command, trained: Path) -> None:
    assert evaluate(f"checkpoint={trained}", "protocol=knn", "protocol.k=20", CPU, "hydra.run.dir=a") == 0
    splits = digits()
    found = [features(encoder(trained), images, device="cpu") for images in (splits.train, splits.test)]
    expected = knn_score(found[0], splits.train.labels, found[1], splits.test.labels, k=20, temperature=0.07).top1
    assert figures("a")["top1"] == pytest.approx(expected)
    assert expected > 0.5
    assert OmegaConf.load("a/config.yaml").protocol.k == 20
    assert Path("a/environment.json").is_file()


def test_a_run_and_a_file_and_plain_weights_are_the_same_encoder(
    evaluate: Command, trained: Path, plain: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = trained / "checkpoints" / "last.ckpt"
    for name, words in {
        "run": [f"checkpoint={trained}"],
        "file": [f"checkpoint={file}", "data=digits"],
        "plain": [f"checkpoint={plain}", "data=digits", *SMALL],
    }.items():
        assert evaluate(*words, "protocol=knn", CPU, f"hydra.run.dir={name}") == 0
    assert figures("run") == figures("file") == figures("plain")
    assert "knn on digits: 1,437 labelled training images, 360 test images" in capfd.readouterr().out


def test_features_are_computed_once(evaluate: Command, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        assert evaluate(f"checkpoint={trained}", "protocol=knn", CPU, f"hydra.run.dir={name}") == 0
        monkeypatch.setattr(Frozen, "forward", lambda *_: pytest.fail("computed again"))
    assert figures("a") == figures("b")


@pytest.mark.parametrize(("words", "images"), [([], 1437), (["label_fraction=0.1"], 143), (["labels_per_class=3"], 30)])
def test_linear_with_fewer_labels(
    evaluate: Command, trained: Path, capfd: pytest.CaptureFixture[str], words: list[str], images: int
) -> None:
    words = [f"checkpoint={trained}", *words, "protocol.steps=30", CPU]
    assert evaluate(*words, "hydra.run.dir=a") == 0
    said = next(line for line in capfd.readouterr().out.splitlines() if line.startswith("linear on digits: "))
    assert abs(int(said.split()[3].replace(",", "")) - images) <= 1  # a fraction is rounded class by class
    assert {"top1", "val_top1", "learning_rate", "weight_decay", "top5"} == set(figures("a"))
    assert figures("a")["top1"] > (0.75 if images == 1437 else 0.3)


def test_finetuning_learns_the_encoder_too(evaluate: Command, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []
    step = Classifier.training_step

    def watched(self: Classifier, *batch: Any) -> torch.Tensor:
        modes.append(self.encoder.training)
        return step(self, *batch)

    monkeypatch.setattr(Classifier, "training_step", watched)
    words = [f"checkpoint={trained}", "protocol=finetune", "protocol.epochs=3", "protocol.batch_size=32", CPU]
    before = {key: value.clone() for key, value in encoder(trained).state_dict().items()}
    assert evaluate(*words, "protocol.learning_rates=[0.05,0.1]", "protocol.views.flip=0", "hydra.run.dir=a") == 0
    found = figures("a")
    assert set(found) == {"top1", "val_top1", "learning_rate"}
    assert found["learning_rate"] in (0.05, 0.1)
    assert found["top1"] > 0.7
    assert modes
    assert all(modes)  # batch norm normalises by the batch
    after = encoder(trained).state_dict()  # the run itself stays as it is
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_one_rate_holds_nothing_out(evaluate: Command, trained: Path) -> None:
    words = ["protocol=finetune", "protocol.epochs=1", "protocol.learning_rates=[0.1]", "labels_per_class=2"]
    assert evaluate(f"checkpoint={trained}", *words, CPU, "hydra.run.dir=a") == 0
    assert set(figures("a")) == {"top1", "learning_rate"}


def test_a_class_without_images_is_not_a_class_with_one() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    net.num_features = 3
    pixels = torch.arange(80, dtype=torch.uint8).view(20, 1, 2, 2)
    images = Images(pixels, 2 * (torch.arange(20) % 2), ("a", "none", "c"))
    options = {"_target_": "pytorch_lightning.Trainer", "accelerator": "cpu", "enable_model_summary": False}
    trainer = OmegaConf.create(options)
    data = EvaluationData(Frozen(Normalize([0.0], [1.0]), net), images, images, torch.device("cpu"), trainer=trainer)
    views = functools.partial(SimCLRViews, views=1)
    found = finetune(data, views, epochs=1, batch_size=8, learning_rates=[0.1, 0.2])  # one was chosen on held-out rows
    assert set(found) == {"top1", "val_top1", "learning_rate"}


def test_the_metric_is_what_a_sweep_gets(evaluate: Command, trained: Path) -> None:
    words = [f"checkpoint={trained}", "-m", "protocol=knn", "protocol.k=5,50", CPU, "hydra.sweep.dir=sweep"]
    assert evaluate(*words) == 0
    lines = Path("sweep/sweep.csv").read_text().splitlines()
    assert len(lines) == 3
    for number in (0, 1):
        top1 = json.loads(Path(f"sweep/{number}/metrics.json").read_text())["top1"]
        assert str(top1)[:6] in lines[1 + number]


# --- errors at the door


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["checkpoint=nowhere"], ["no checkpoint at nowhere"]),
        ([], ["checkpoint must be given"]),
        (
            ["checkpoint={run}", "encoder=resnet18"],
            ["does not fit the encoder", "missing: conv1.w", "unexpected: 0.w"],
        ),
        (["checkpoint={run}", "encoder=small", "encoder.widths=[8,16,64]"], ["of another shape", "[32, 16, 3, 3]"]),
        (["checkpoint={plain}"], ["does not say what it was trained on: give data=..."]),
        (["checkpoint={plain}", "data=digits"], ["give encoder=..."]),
        (["checkpoint={run}/config.yaml"], ["cannot read weights from"]),
        (["checkpoint={run}", "data=folder", "data.root=nowhere"], ["data folder nowhere does not exist"]),
        (["checkpoint={run}", "protocol=knnn"], ["did you mean 'knn'?"]),
        (["checkpoint={run}", "label_fraction=2"], ["label fraction", "2"]),
        (["checkpoint={run}", "label_fraction=0.1", "labels_per_class=3"], ["one of"]),
        (["checkpoint={run}", "labels_per_class=1000"], ["fewer than per_class=1000"]),
        (["checkpoint={run}", "protocol=finetune", "protocol.epochs=0"], ["at least 1 epoch"]),
        (["checkpoint={run}", "protocol=knn", "metric=top2"], ["top2", "top1, top5"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_errors(
    evaluate: Command,
    trained: Path,
    plain: Path,
    capfd: pytest.CaptureFixture[str],
    words: list[str],
    parts: list[str],
) -> None:
    words = [word.format(run=trained, plain=plain) for word in words]
    assert evaluate(*words, CPU, "hydra.run.dir=a") == 2
    err = capfd.readouterr().err
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    for part in parts:
        assert part in line


def test_another_number_of_channels(
    evaluate: Command, trained: Path, workplace: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "test"):
        for label in ("a", "b"):
            folder = workplace / "colour" / split / label
            folder.mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(folder / "0.png")
    assert evaluate(f"checkpoint={trained}", "data=folder", "data.root=colour", CPU, "hydra.run.dir=a") == 2
    assert "the encoder takes 1 channels, the images have 3" in capfd.readouterr().err


def test_a_run_that_did_not_look_at_captions_is_evaluated(pretrain: Command, evaluate: Command) -> None:
    assert (
        pretrain(*TINY, "method=moco", "data=digits_words", "trainer.limit_train_batches=2", "hydra.run.dir=run") == 0
    )
    assert evaluate("checkpoint=run", "protocol=knn", "hydra.run.dir=eval") == 0
    assert figures("eval")["top1"] > 0.2


def test_a_run_on_text_says_which_protocol(words: Command, evaluate: Command, capsys: Any) -> None:
    Path("text.txt").write_text("one two three four five six seven\n" * 20)
    few = ("data.path=text.txt", "data.min_count=1", "trainer.max_epochs=1", "model.workers=1", "logger=none")
    assert words("experiment=skipgram", *few, "hydra.run.dir=run") == 0
    assert evaluate("checkpoint=run", "hydra.run.dir=eval") == 2
    assert "last.ckpt is of a run on text: protocol=words evaluates it" in capsys.readouterr().err


def test_features_are_those_of_an_architecture_not_of_its_weights_alone(tmp_path: Path) -> None:
    images = digits().test
    found = []
    for pool in (nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1)):
        net = nn.Sequential(pool, nn.Flatten())
        net.num_features = 1
        frozen = Frozen(Normalize([0.0], [1.0]), net)
        found.append(EvaluationData(frozen, images, images, torch.device("cpu"), tmp_path).test_features)
    assert not torch.equal(*found)
