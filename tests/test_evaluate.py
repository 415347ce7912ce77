"""contrast-evaluate: every protocol, on a run and on files of weights, and its errors at the door."""

import csv
import functools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Command, figures
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

import contrast
from contrast.data.images.digits import digits
from contrast.data.images.image_set import Images
from contrast.data.images.names import Names
from contrast.deploy.load import ImageClassifier
from contrast.encoders import conv_net, text_transformer
from contrast.encoders.normalize import Normalize
from contrast.encoders.weights import read
from contrast.evaluation.encoder import Frozen, Towers, from_checkpoint
from contrast.evaluation.features import EvaluationData, features
from contrast.evaluation.knn import knn_score
from contrast.evaluation.report import wilson
from contrast.evaluation.retrieval import recall_by_label
from contrast.keys import Second
from contrast.training.finetune import Classifier, finetune, save_predictions
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


DETAILS = ("class_accuracy", "confusion")


def test_knn_is_the_vote_on_the_frozen_features(
    evaluate: Command, trained: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(f"checkpoint={trained}", "protocol=knn", "protocol.k=20", CPU, "hydra.run.dir=a") == 0
    splits = digits()
    found = [features(encoder(trained), images, device="cpu") for images in (splits.train, splits.test)]
    expected = knn_score(found[0], splits.train.labels, found[1], splits.test.labels, k=20, temperature=0.07).top1
    assert figures("a")["top1"] == pytest.approx(expected)
    assert expected > 0.5
    low, high = wilson(expected, 360)
    assert f"{expected:.4g}  (95 % interval {low:.4f} to {high:.4f})" in capfd.readouterr().out
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
    assert " on digits: 1,437 labelled training images, 360 test images" in capfd.readouterr().out


def test_a_pattern_is_every_checkpoint_of_a_run(
    evaluate: Command, trained: Path, workplace: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    last = trained / "checkpoints" / "last.ckpt"
    for name in ("epoch_00001.ckpt", "last.ckpt"):
        shutil.copy(last, name)
    words = ["protocol=knn", CPU]
    assert evaluate("-m", "checkpoint=*.ckpt", *words, "hydra.sweep.dir=all") == 0
    jobs = csv.DictReader(Path("all/sweep.csv").read_text().splitlines())
    assert [Path(job["checkpoint"]).name for job in jobs] == ["epoch_00001.ckpt", "last.ckpt"]
    assert evaluate("checkpoint=*.ckpt", *words) == 2
    assert "--multirun runs several values" in capfd.readouterr().err
    assert evaluate("-m", "checkpoint=none/*.ckpt", *words) == 2
    assert "checkpoint=none/*.ckpt: there is no such file" in capfd.readouterr().err


def test_retrieval_of_images_by_their_labels(
    evaluate: Command, trained: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(f"checkpoint={trained}", "protocol=retrieval", CPU, "hydra.run.dir=a") == 0
    test = digits().test
    assert figures("a") == pytest.approx(recall_by_label(features(encoder(trained), test, device="cpu"), test.labels))
    assert figures("a")["recall1"] > figures("a")["map"] > 0.15  # chance is a tenth
    assert "360 test images" in capfd.readouterr().out


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
    said = next(line for line in capfd.readouterr().out.splitlines() if line.startswith(f"linear of {trained} on "))
    number = int(said.split(" on digits: ")[1].split()[0].replace(",", ""))
    assert abs(number - images) <= 1  # a fraction is rounded class by class
    means = {"macro_f1", "class_mean_accuracy"}
    expected = {"top1", "val_top1", "learning_rate", "weight_decay", "top5", *means, *DETAILS}
    assert expected == set(figures("a"))
    confusion = torch.tensor(figures("a")["confusion"])  # [label, predicted]
    assert confusion.diagonal().sum() / confusion.sum() == pytest.approx(figures("a")["top1"])
    shares = confusion.diagonal() / confusion.sum(dim=1)
    assert list(figures("a")["class_accuracy"].values()) == pytest.approx(shares.tolist())
    assert figures("a")["class_mean_accuracy"] == pytest.approx(shares.mean().item())
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
    assert set(found) == {"top1", "val_top1", "learning_rate", "macro_f1", "class_mean_accuracy", *DETAILS}
    assert found["learning_rate"] in (0.05, 0.1)
    assert found["top1"] > 0.7
    assert modes
    assert all(modes)  # batch norm normalises by the batch
    after = encoder(trained).state_dict()  # the run itself stays as it is
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_frozen_encoder_is_what_it_was(evaluate: Command, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = []
    fit = Classifier.on_train_end
    monkeypatch.setattr(Classifier, "on_train_end", lambda self: tuned.append(self.encoder.encoder) or fit(self))
    words = [f"checkpoint={trained}", "protocol=finetune", "protocol.epochs=1", "protocol.learning_rates=[0.1]", CPU]
    assert evaluate(*words, "protocol.frozen_stages=2", "protocol.layer_decay=0.5", "hydra.run.dir=a") == 0
    before, after = encoder(trained).encoder.state_dict(), tuned[0].state_dict()
    same = {key for key in before if torch.equal(before[key], after[key])}
    assert {key.partition(".")[0] for key in same} == {"0", "2", "4", "6"}  # with the statistics of batch norm
    assert not any(key.startswith(("8.", "9.")) for key in same)


def test_an_encoder_that_was_frozen_in_pretraining_is_tuned(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).requires_grad_(False)
    net.num_features = 3
    images = Images(torch.arange(80, dtype=torch.uint8).view(20, 1, 2, 2), torch.arange(20) % 2, ("a", "b"))
    trainer = OmegaConf.create({"_target_": "pytorch_lightning.Trainer", "accelerator": "cpu"})
    encoder = Frozen(Normalize([0.0], [1.0]), net)
    data = EvaluationData(encoder, images, images, torch.device("cpu"), trainer=trainer, folder=tmp_path)
    finetune(data, functools.partial(SimCLRViews, views=1), epochs=2, batch_size=8, learning_rates=[0.1])
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert not torch.equal(saved["encoder.1.weight"], net[1].weight)


def test_one_rate_holds_nothing_out_and_the_classifier_is_kept(
    evaluate: Command, trained: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["protocol=finetune", "protocol.epochs=1", "protocol.learning_rates=[0.1]", "labels_per_class=20"]
    images = digits().test
    for name, others in {"a": [f"checkpoint={trained}"], "b": [f"checkpoint={plain}", "data=digits", *SMALL]}.items():
        assert evaluate(*others, *words, "protocol.batch_size=20", CPU, f"hydra.run.dir={name}") == 0
        assert set(figures(name)) == {"top1", "learning_rate", "macro_f1", "class_mean_accuracy", *DETAILS}
        tuned = contrast.load(name)
        assert isinstance(tuned, ImageClassifier)
        guesses, right = tuned.predict(images), [images.classes[label] for label in images.labels]
        top1 = sum(guess == label for guess, label in zip(guesses, right, strict=True)) / len(right)
        assert figures(name)["top1"] == pytest.approx(top1)
        assert tuned.probabilities(images.pixels[:3]).sum(dim=1).tolist() == pytest.approx([1, 1, 1])
    rows = list(csv.DictReader(Path("a/predictions.csv").read_text().splitlines()))
    assert [row["label"] for row in rows] == right
    header, *lines = csv.reader(Path("a/confusion.csv").read_text().splitlines())
    assert header == ["label", *images.classes]
    counts = torch.tensor([[int(number) for number in line[1:]] for line in lines])
    assert counts.tolist() == figures("a")["confusion"]
    assert counts.sum(dim=1).tolist() == images.labels.bincount().tolist()
    assert counts.diagonal().sum() / 360 == pytest.approx(figures("a")["top1"])
    assert Path("a/metrics.jsonl").is_file()
    assert evaluate("checkpoint=a", "protocol=knn", CPU, "hydra.run.dir=c") == 0  # it is a checkpoint like any other


@pytest.mark.parametrize(
    ("names", "files"), [(None, ["0", "1"]), (Names(["b/1.png", "a/2.png"]), ["b/1.png", "a/2.png"])]
)
def test_predictions_say_which_image_they_are_of(names: Names | None, files: list[str], tmp_path: Path) -> None:
    images = Images(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.tensor([1, 0]), ("a", "b"), names=names)
    save_predictions(torch.tensor([[0.0, 1.0], [0.0, 1.0]]), images, [[0, 1], [0, 1]], tmp_path)
    rows = list(csv.DictReader((tmp_path / "predictions.csv").read_text().splitlines()))
    assert [(row["file"], row["label"], row["predicted"]) for row in rows] == list(zip(files, "ba", "bb", strict=True))


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
    assert set(found) == {"top1", "val_top1", "learning_rate", "macro_f1", "class_mean_accuracy"}


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
        (["checkpoint={run}", "data=folder", "data.root=nowhere"], ["nowhere does not exist"]),
        (["checkpoint={run}", "protocol=knnn"], ["did you mean 'knn'?"]),
        (["checkpoint={run}", "logger=none"], ["no group 'logger' to choose from: leave out logger=..."]),
        (["checkpoint={run}", "label_fraction=2"], ["label_fraction=2"]),
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


def test_images_of_several_sizes_take_the_size_of_the_run(evaluate: Command, trained: Path, workplace: Path) -> None:
    pixels = digits().train.pixels[:40, 0].numpy()
    for i, image in enumerate(pixels):
        file = workplace / "images" / ("train" if i < 30 else "test") / "ab"[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).resize((20 + i % 3, 16)).save(file)
    words = [f"checkpoint={trained}", "data=folder", "data.root=images", "data.channels=1", "protocol=retrieval", CPU]
    assert evaluate(*words, "hydra.run.dir=a") == 0
    assert evaluate(*words, "data.image_size=8", "hydra.run.dir=b") == 0
    assert figures("a") == figures("b")


def test_a_run_that_did_not_look_at_captions_is_evaluated(pretrain: Command, evaluate: Command) -> None:
    assert (
        pretrain(*TINY, "method=moco", "data=digits_words", "trainer.limit_train_batches=2", "hydra.run.dir=run") == 0
    )
    assert evaluate("checkpoint=run", "protocol=knn", "hydra.run.dir=eval") == 0
    assert figures("eval")["top1"] > 0.2


def test_a_run_on_text_says_which_protocol(words: Command, evaluate: Command, capsys: Any) -> None:
    Path("text.txt").write_text("one two three four five six seven\n" * 20)
    few = ("data.path=text.txt", "data.min_count=1", "trainer.limit_train_batches=1", "model.workers=1", "logger=none")
    few += ("model.subsample=0", "trainer.max_epochs=1")
    assert words("experiment=skipgram", *few, "hydra.run.dir=run") == 0
    assert evaluate("checkpoint=run", "hydra.run.dir=eval") == 2
    assert "last.ckpt is of a run on text: protocol=words evaluates it" in capsys.readouterr().err


def test_the_encoder_of_captions_is_no_stage_of_that_of_images(tmp_path: Path) -> None:
    images = digits().test
    net, key = conv_net(1, images.size, widths=[4, 8]), Second(text_transformer(5000, 8, width=16, heads=2), 6)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    towers = Towers(Normalize([0.0], [1.0]), net, nn.Linear(8, 6), key)
    trainer = OmegaConf.create({"_target_": "pytorch_lightning.Trainer", "accelerator": "cpu"})
    data = EvaluationData(towers, images, images, torch.device("cpu"), trainer=trainer, folder=tmp_path)
    finetune(data, functools.partial(SimCLRViews, views=1), epochs=1, learning_rates=[0.1], frozen_stages=1)
    after = read(tmp_path / "checkpoints" / "last.ckpt")["state_dict"]
    same = {name for name, value in before.items() if torch.equal(value, after[f"encoder.{name}"])}
    assert {name.partition(".")[0] for name in same} == {"0", "2"}  # the first convolution and its norm


def test_features_are_those_of_an_architecture_not_of_its_weights_alone(tmp_path: Path) -> None:
    images = digits().test
    found = []
    for pool in (nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1)):
        net = nn.Sequential(pool, nn.Flatten())
        net.num_features = 1
        frozen = Frozen(Normalize([0.0], [1.0]), net)
        found.append(EvaluationData(frozen, images, images, torch.device("cpu"), tmp_path).test_features)
    assert not torch.equal(*found)
