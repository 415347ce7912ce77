"""Every mistake on the command line is one line at the door: status 2, nothing left behind, and no step was begun."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from conftest import TINY, Command, Disk, figures
from PIL import Image

import contrast.data.loader
from contrast.data.images.folder import folder
from contrast.data.images.image_set import ImageFiles
from contrast.data.loader import Batches
from contrast.data.store import cached
from contrast.errors import InputError, making
from contrast.evaluation.features import EvaluationData
from contrast.module import Contrastive
from contrast.words import LanguageModel, WordVectors

Row = tuple[str, list[str]]  # words of a command line -> facts that the line holds

PRETRAIN: list[Row] = [
    ("trainer.precision=banana", ["trainer.precision=banana", "'16-mixed'", "'64-true'"]),
    ("trainer.precision=16-true", ["trainer.precision=16-true", "16-mixed"]),
    ("trainer.devices=0", ["trainer.devices=0", "cpu"]),
    ("trainer.limit_train_batches=0.001", ["limit_train_batches"]),  # after the data are loaded
    ("seed=4294967296", ["seed=4294967296", "4294967296"]),
    ("seed=1e3", ["seed=1000.0", "integer"]),
    ("seed=1.5", ["seed=1.5", "integer"]),
    ("seed=abc", ["seed=abc", "integer"]),
    ("seed=null", ["seed=null", "integer"]),
    ("method=moco batch_size=1", ["batch norm", "batch_size"]),
    ("metric=banana", ["metric=banana", "knn_top1"]),
    ("evaluation.k=0", ["evaluation.k=0"]),
    ("evaluation.per_class=0", ["evaluation.per_class=0"]),
    ("evaluation.max_test=0", ["evaluation.max_test=0"]),
    ("+callbacks.online_knn.k=0", ["k (0)"]),
    ("encoder.widths=[a]", ["encoder.widths.0=a", "integer"]),
    ("method=moco negatives.size=100000000000000", ["memory"]),
    ("optimizer.lr=-1", ["optimizer", "-1"]),
    ("optimizer.lr=inf", ["optimizer.lr=inf"]),
    ("optimizer.lr=1e40", ["optimizer.lr=1e+40", "float32"]),
    ("data=folder encoder=small data.root=pipes", ["a.png", "no regular file", "data.on_error=skip"]),
    ("data=folder encoder=small data.root=pipes +data.image_sze=3", ["data: folder", "did you mean 'image_size'?"]),
    ("data=mnist +data.channel=1", ["data: mnist", "did you mean 'channels'?"]),
    ("data=folder encoder=small data.root=pipes data.channels=null", ["channel", "None"]),
    ("encoder.weights=broken.ckpt", ["broken.ckpt of 7 bytes", "ends too early"]),
    ("method=crd key.weights=broken.ckpt", ["broken.ckpt of 7 bytes", "ends too early"]),
    ("+batchsize=512", ["batchsize", "did you mean 'batch_size'?"]),
    ("logger=tensorboard +logger.tensorboard.banana=1", ["logger.tensorboard", "banana"]),
    ("-m seed=1,2 hydra.sweep.dir=/dev/null/sweep", ["/dev/null/sweep", "folder of a sweep"]),
]

WORDS: list[Row] = [
    ("seed=4294967296", ["seed=4294967296"]),
    ("seed=abc", ["seed=abc"]),
    ("+trainer.gradient_clip_algorithm=value trainer.gradient_clip_val=1", ["trainer", "gradient_clip_val=1"]),
    ("model.workers=100000", ["100000", "256"]),
    ("encoder.num_features=100000000000", ["memory"]),
    ("evaluation.k=0", ["evaluation.k=0"]),
    ("evaluation.pairs=3", ["evaluation.pairs=3"]),
    ("evaluation.files=[/nowhere/x.txt]", ["/nowhere/x.txt"]),
    ("metric=banana", ["metric=banana", "loss"]),
    ("experiment=language_model trainer.max_epochs=1 optimizer.lr=-1", ["optimizer", "-1"]),
]

EVALUATE: list[Row] = [
    ("checkpoint=broken.ckpt", ["broken.ckpt"]),
    ("protocol.k=0", ["k (0)"]),
    ("metric=banana", ["metric=banana", "top1, top5"]),
    ("seed=4294967296", ["seed=4294967296"]),
    ("trainer.precision=banana", ["trainer.precision=banana"]),
    ("trainer.strategy=fsdp2", ["trainer.strategy=fsdp2", "contrast-pretrain"]),
    ("trainer.devices=0", ["trainer.devices=0"]),
    ("protocol=linear protocol.steps=0", ["step", "0"]),
    ("protocol=words checkpoint=v.txt data.pairs=/nowhere", ["/nowhere"]),
    ("+report=true", ["no key or group 'report'"]),
    ("+data.banana=1", ["data: digits", "'banana'"]),
    ("+evaluation.banana=1", ["evaluation.banana=1"]),
]


# the same kinds once more: a minute
MORE_PRETRAIN: list[Row] = [
    ("evaluation.temperature=inf", ["evaluation.temperature=inf"]),
    ("trainer.devices=-1", ["devices", "int > 0"]),
    ("-m seed=0,abc", ["seed=abc"]),
    ("encoder._target_=torch.nn.Banana", ["encoder._target_=torch.nn.Banana"]),
    ("batch_size=65 trainer.devices=2", ["batch_size=65", "2 devices"]),
    ("trainer.devices=1.5", ["trainer.devices=1.5", "integer"]),
    ("trainer.accelerator=tpu", ["trainer", "torch_xla"]),
    ("trainer.accelerator=banana", ["trainer.accelerator=banana"]),
    ("trainer.strategy=banana", ["trainer.strategy=banana"]),
    ("trainer.num_nodes=0", ["trainer.num_nodes=0"]),
    ("trainer.max_epochs=-5", ["trainer.max_epochs=-5"]),
    ("trainer.max_epochs=abc", ["trainer.max_epochs=abc", "integer"]),
    ("+trainer.max_steps=1.5", ["trainer.max_steps=1.5", "integer"]),
    ("+trainer.max_time=banana", ["max_time=banana", "DD:HH:MM:SS"]),
    ("trainer.accumulate_grad_batches=0", ["trainer.accumulate_grad_batches=0", "1"]),
    ("trainer.gradient_clip_val=-1", ["trainer.gradient_clip_val=-1", "0"]),
    ("trainer.limit_train_batches=1.5", ["trainer.limit_train_batches=1.5"]),
    ("trainer.log_every_n_steps=-1", ["trainer.log_every_n_steps=-1"]),
    ("+trainer.callbacks=[]", ["trainer.callbacks", "+callbacks.NAME"]),
    ("+trainer.banana=1", ["trainer", "'banana'"]),
    ("+trainer.barebones=true", ["trainer", "barebones"]),
    ("seed=-1", ["seed=-1"]),
    ("seed=[1]", ["seed=[1]", "integer"]),
    ("seed=nan", ["seed=nan"]),
    ("seed=true", ["seed=true", "integer"]),
    ("batch_size=0", ["batch_size=0", "1"]),
    ("batch_size=100000", ["1437", "100000"]),
    ("one_forward_pass=false micro_batch=1", ["batch norm", "micro_batch"]),
    ("micro_batch=0", ["micro_batch=0"]),
    ("activation_checkpointing=true", ["activation_checkpointing", "Sequential"]),
    ("trainer.strategy=fsdp2 micro_batch=8", ["fsdp2", "micro_batch"]),
    ("trainer.strategy=fsdp2 method=moco", ["fsdp2", "Momentum"]),
    ("trainer.strategy=fsdp2 +head/temperature=learnable", ["fsdp2", "head.temperature"]),
    ("trainer.strategy=fsdp2 callbacks.ema.decay=0.9", ["fsdp2", "callbacks.ema"]),
    ("workers=-1", ["workers=-1"]),
    ("workers=100000", ["workers=100000", "1024"]),
    ("same_label=banana", ["same_label=banana", "'positive'"]),
    ("one_forward_pass=3", ["one_forward_pass=3", "boolean"]),
    ("metric=image_to_text_recall1", ["metric=image_to_text_recall1", "knn_top1"]),  # there are no captions
    ("metric=''", ["metric="]),
    ("direction=banana", ["direction=banana", "'minimize'"]),
    ("checkpoints.every_n_epochs=-1", ["checkpoints.every_n_epochs=-1"]),
    ("checkpoints.last_every_n_epochs=0", ["checkpoints.last_every_n_epochs=0"]),
    ("+checkpoints.banana=1", ["checkpoints.banana=1"]),
    ("evaluation.temperature=0", ["evaluation.temperature=0"]),
    ("evaluation.per_class=[0]", ["evaluation.per_class.0=0"]),
    ("evaluation.max_train=1.5", ["evaluation.max_train=1.5"]),
    ("~evaluation.k", ["evaluation.k"]),
    ("+callbacks.online_knn.temperature=0", ["temperature (0"]),
    ("+callbacks.online_knn.held_out=abc", ["callbacks.online_knn.held_out=abc", "number"]),
    ("+callbacks.online_linear.lr=-1", ["lr=-1"]),
    ("callbacks.online_linear.max_fit=0", ["0"]),
    ("encoder.widths=[]", ["widths"]),
    ("encoder.widths=8", ["encoder.widths=8"]),
    ("encoder.widths=[0]", ["width 0"]),
    ("encoder._target_=torch.nn.Linear ~encoder.widths", ["encoder"]),
    ("+encoder.banana=1", ["encoder", "'banana'"]),
    ("encoder=vit encoder.patch_size=3", ["encoder has no key 'widths'"]),
    ("encoder=gru", ["encoder"]),
    ("projector.hidden_features=0", ["width 0"]),
    ("projector.out_features=null", ["projector.out_features=null", "integer"]),
    ("predictor=mlp predictor.hidden_features=-1", ["predictor"]),
    ("key=momentum key.momentum=2", ["momentum", "2"]),
    ("method=moco negatives.size=1e3", ["negatives.size=1000.0", "integer"]),
    ("method=instdisc negatives.draws=0", ["0"]),
    ("method=clip data=digits", ["captions"]),
    ("head.temperature=0", ["temperature", "0"]),
    ("head.temperature=abc", ["head.temperature=abc"]),
    ("head=nce negatives=bank negatives.sampler=null", ["sampler"]),
    ("output=hierarchical_softmax", ["same_label=positive"]),
    ("optimizer.lr=abc", ["optimizer.lr=abc"]),
    ("+optimizer.betas=[0.9]", ["optimizer.betas.1"]),
    ("+optimizer.betas=[2,2]", ["optimizer", "2"]),
    ("optimizer._target_=torch.optim.LBFGS ~optimizer.weight_decay", ["optimizer", "LBFGS"]),
    ("scheduler.warmup_steps=100000", ["100000"]),
    ("scheduler._target_=torch.optim.lr_scheduler.StepLR", ["scheduler"]),
    ("+views.size=abc", ["abc"]),
    ("+views.size=100000", ["memory", "micro_batch"]),
    ("views.crop_scale=[1,0.5]", ["crop_scale"]),
    ("+logger.banana._target_=banana", ["logger.banana._target_=banana"]),
    ("+callbacks.banana._target_=pytorch_lightning.callbacks.EarlyStopping", ["EarlyStopping", "monitor"]),
    ("data=folder encoder=small data.root=/nowhere", ["/nowhere"]),
    ("data=folder encoder=small data.root=pipes data.image_size=0", ["image_size", "0"]),
    ("data=folder encoder=small data.root=pipes data.channels=abc", ["data.channels=abc"]),
    ("data=folder encoder=small data.root=[a]", ["data folder", "/a does not exist"]),
    ("-m trainer.precision=32-true,banana", ["trainer.precision=banana"]),
    ("hydra.run.dir=/dev/null/run", ["/dev/null"]),
    ("resume=/dev/null", ["resume="]),
]

MORE_WORDS: list[Row] = [
    ("trainer.accumulate_grad_batches=2", ["trainer", "accumulate_grad_batches=2"]),
    ("trainer.devices=2 model.workers=2 model.compiled=false", ["model.workers=1"]),
    ("trainer.max_epochs=abc", ["trainer.max_epochs=abc"]),
    ("data.min_count=abc", ["data.min_count=abc"]),
    ("data.min_count=1000000", ["1000000"]),
    ("data.held_out=nan", ["data.held_out=nan"]),
    ("data.path=/nowhere", ["/nowhere"]),
    ("data.path=3", ["data.path=3"]),
    ("model.window=1.5", ["model.window=1.5"]),
    ("model.lr=abc", ["model.lr=abc"]),
    ("model.chunk=1e5", ["model.chunk=100000.0", "integer"]),
    ("model.method=banana", ["model.method=banana", "'cbow'"]),
    ("encoder=gru", ["GRU", "encoder=words"]),
    ("output=adaptive_softmax", ["AdaptiveSoftmax"]),
    ("table.draws=0", ["0"]),
    ("+optimizer=adamw", ["optimizer"]),
    ("evaluation.restrict=0", ["evaluation.restrict=0"]),
    ("evaluation.pairs=/nowhere", ["/nowhere"]),
    ("evaluation.files=[x.banana]", ["x.banana"]),
    ("evaluation.neighbours=w1", ["evaluation.neighbours=w1"]),
    ("~evaluation", ["evaluation"]),
    ("data=digits", ["contrast-pretrain"]),
    ("experiment=language_model model.length=0", ["length 0"]),
    ("experiment=language_model callbacks.held_out.growth=0", ["0"]),
    ("experiment=language_model output=adaptive_softmax head.cutoffs=[8,4]", ["8", "4"]),
    ("experiment=language_model optimizer=adamw", ["sparse"]),
    ("experiment=language_model data.held_out=0", ["perplexity", "data.held_out"]),
]

MORE_EVALUATE: list[Row] = [
    ("checkpoint=/nowhere", ["/nowhere"]),
    ("checkpoint=/dev/null", ["/dev/null"]),
    ("checkpoint=3", ["checkpoint=3"]),
    ("protocol.k=abc", ["protocol.k=abc"]),
    ("protocol.temperature=nan", ["protocol.temperature=nan"]),
    ("label_fraction=2", ["label_fraction=2"]),
    ("labels_per_class=1.5", ["labels_per_class=1.5"]),
    ("labels_per_class=100000", ["100000"]),
    ("batch_size=0", ["batch_size=0"]),
    ("workers=abc", ["workers=abc"]),
    ("feature_cache=null", ["feature_cache=null"]),
    ("data=folder data.root=/nowhere", ["/nowhere"]),
    ("data=corpus data.path=text.txt data.min_count=1", ["text"]),
    ("protocol=linear +protocol.learning_rates=[a]", ["protocol.learning_rates.0=a"]),
    ("protocol=linear metric=knn_top1", ["metric=knn_top1", "val_top1"]),
    ("protocol=finetune protocol.epochs=1.5", ["protocol.epochs=1.5"]),
    ("protocol=finetune protocol.batch_size=0", ["(0)"]),
    ("protocol=finetune +protocol.weight_decay=-1", ["(-1)"]),
    ("protocol=finetune protocol.views.views=2", ["one view"]),
    ("protocol=words checkpoint=v.txt data.pairs=pairs.tsv protocol.restrict=0", ["restrict (0)"]),
    ("protocol=words checkpoint=v.txt data.pairs=pairs.tsv metric=banana", ["metric=banana", "mean"]),
    ("protocol=retrieval +protocol.ks=[0,1]", ["[0, 1]"]),
    ("protocol=retrieval metric=top1", ["metric=top1", "recall1", "map"]),
]


def begun(*unused: object, **given: object) -> NoReturn:
    raise AssertionError("a step was begun")


@pytest.fixture
def files(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the tables speak of, and no step of training."""
    for owner, step in ((Contrastive, "training_step"), (WordVectors, "work"), (LanguageModel, "training_step")):
        monkeypatch.setattr(owner, step, begun)
    Path("text.txt").write_text("\n".join(" ".join(f"w{(i * j) % 23}" for j in range(12)) for i in range(40)))
    Path("v.txt").write_text("".join(f"w{i} {i % 3} {i % 5} 1\n" for i in range(23)))
    Path("pairs.tsv").write_text("w1\tw2\t3\nw3\tw4\t1\nw5\tw7\t2\n")
    Path("broken.ckpt").write_bytes(b"PK\x03\x04abc")
    odd_files(workplace / "pipes")
    return workplace


def odd_files(root: Path, images: int = 4) -> None:
    """Images, and a pipe, a socket and a link to a device with the names of images."""
    root.mkdir()
    for i in range(images):
        Image.fromarray(np.full((8, 8, 3), i, dtype=np.uint8)).save(root / f"{i}.png")
    os.mkfifo(root / "a.png")
    (root / "zero.png").symlink_to("/dev/zero")
    here = Path.cwd()
    os.chdir(root)  # the address of a socket is short
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind("s.png")
    os.chdir(here)


def check_refused(command: Command, files: Path, capfd: Any, table: list[Row], *common: str) -> None:
    """Each row in turn, so that one start pays for all."""
    wrong = []
    for line, facts in table:
        before = contents(files)
        keys = {word.lstrip("+~").partition("=")[0] for word in line.split()}
        words = [word for word in common if word.partition("=")[0] not in keys]
        try:
            status: object = command(*words, *line.split())
        except Exception as error:
            status = repr(error)
        errors = [each for each in capfd.readouterr().err.splitlines() if each.startswith(("error: ", "Traceback"))]
        left = contents(files) - before
        if status != 2 or len(errors) != 1 or not all(fact in errors[0] for fact in facts) or left:
            wrong.append((line, status, errors, left))
    assert not wrong, "\n".join(map(str, wrong))


def contents(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if "cache" not in path.parts}


COMMON = {
    "pretrain": TINY[:-1],
    "words": (
        *("experiment=skipgram", "data=corpus", "data.path=text.txt", "data.min_count=1"),
        *("logger=csv", "trainer.accelerator=cpu"),
    ),
    "evaluate": ("checkpoint=trained", "trainer.accelerator=cpu", "protocol=knn"),
}


@pytest.mark.parametrize(
    ("command", "table"),
    [
        ("pretrain", PRETRAIN),
        ("words", WORDS),
        ("evaluate", EVALUATE),
        pytest.param("pretrain", MORE_PRETRAIN, marks=pytest.mark.slow),
        pytest.param("words", MORE_WORDS, marks=pytest.mark.slow),
        pytest.param("evaluate", MORE_EVALUATE, marks=pytest.mark.slow),
    ],
    ids=["pretrain", "words", "evaluate", "more pretrain", "more words", "more evaluate"],
)
def test_mistakes(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    files: Path,
    trained: Path,
    capfd: Any,
    command: str,
    table: list[Row],
) -> None:
    monkeypatch.setattr(EvaluationData, "_features", begun)
    (files / "trained").symlink_to(trained)
    check_refused(request.getfixturevalue(command), files, capfd, table, *COMMON[command])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_no_gpu(pretrain: Command, files: Path, capfd: Any) -> None:
    check_refused(pretrain, files, capfd, [("trainer.accelerator=gpu", ["trainer.accelerator=gpu"])], *TINY)


def test_a_refused_run_takes_nothing_else_with_it(pretrain: Command, workplace: Path) -> None:
    (workplace / "mine").mkdir()
    (workplace / "mine" / "notes.txt").write_text("notes")
    assert pretrain(*TINY, "batch_size=2000", "hydra.run.dir=mine") == 2
    assert (workplace / "mine" / "notes.txt").read_text() == "notes"


# --- images


def test_pipes_and_devices_are_counted_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    odd_files(tmp_path / "images")
    for limit in (4.0, 0.0):
        caplog.clear()
        with caplog.at_level("INFO", logger="contrast"):
            data = folder(
                tmp_path / "images", on_error="skip", image_size=8, memory_limit_gb=limit, cache=tmp_path / "cache"
            )
        assert "cannot be read: a.png, s.png, zero.png" in caplog.text
        assert "no regular file" in caplog.text
        assert data.test is not None
        assert len(data.train) + len(data.test) == 4
    with pytest.raises(InputError, match=r"data\.on_error=skip"):
        folder(tmp_path / "images", cache=tmp_path / "cache")


def test_one_image_a_class_leaves_out_what_needs_held_out_images(pretrain: Command, capfd: Any) -> None:
    for split in ("train", "test"):
        for i in range(6):
            Path("single", split, str(i)).mkdir(parents=True)
            Image.fromarray(np.full((8, 8, 3), 40 * i, dtype=np.uint8)).save(Path("single", split, str(i), "0.png"))
    few = (
        "data=folder",
        "encoder=small",
        "data.root=single",
        "batch_size=4",
        "evaluation.untrained=false",
        "evaluation.pixels=false",
    )
    assert pretrain(*TINY[:-1], *few, "hydra.run.dir=run") == 0
    metrics = figures("run")
    assert "linear_top1" in metrics
    assert "linear_val_top1" not in metrics
    assert all(np.isfinite(value) for value in metrics.values())
    assert "no class of single has two images" in capfd.readouterr().out


# --- what may not be used


@pytest.fixture
def closed(disk: Disk, trained: Path) -> Path:
    """A file system that cannot be written, with a finished run in `run`: the run of somebody else."""
    place = disk("size=64m")
    shutil.copytree(trained, place / "run")
    subprocess.run(["mount", "-o", "remount,ro", place], check=True)
    return place


def test_a_cache_that_cannot_be_written(closed: Path) -> None:
    with pytest.warns(UserWarning, match="cannot write to the cache"):
        assert cached(closed / "cache", "key", lambda: {"x": torch.ones(1)})["x"] == 1


def test_a_cache_that_may_not_even_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(*unused: object, **given: object) -> NoReturn:
        raise PermissionError(13, "Permission denied", "/somebody/else")

    monkeypatch.setattr(Path, "exists", refusing)  # as in a closed folder
    monkeypatch.setattr("contrast.data.store.replacing", refusing)
    with pytest.warns(UserWarning, match="cannot write to the cache"):
        assert cached(tmp_path / "closed", "key", lambda: {"x": torch.ones(1)})["x"] == 1


def test_an_evaluation_without_a_cache(
    evaluate: Command, closed: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.delenv("CONTRAST_CACHE")
    monkeypatch.setenv("HOME", str(closed))
    assert (
        evaluate(f"checkpoint={closed / 'run'}", "protocol=knn", "hydra.run.dir=figures", "trainer.accelerator=cpu")
        == 0
    )
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err
    assert "top1" in figures("figures")
    assert "cannot write to the cache" in out


@pytest.mark.parametrize(
    "words",
    [
        ("resume=RUN", "trainer.max_epochs=2"),
        (*TINY, "hydra.run.dir=RUN/new"),
        (*TINY, "-m", "seed=0,1", "hydra.sweep.dir=RUN/new"),
    ],
)
def test_a_folder_that_cannot_be_written(pretrain: Command, closed: Path, capfd: Any, words: tuple[str, ...]) -> None:
    run = str(closed / "run")
    assert pretrain(*(word.replace("RUN", run) for word in words)) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"error: {run}")
    assert "Read-only file system" in line


# --- little shared memory


def image_files(tmp_path: Path) -> ImageFiles:
    for i in range(8):
        Image.fromarray(np.full((8, 8, 3), i, dtype=np.uint8)).save(tmp_path / f"{i}.png")
    images = folder(tmp_path, image_size=8, memory_limit_gb=0, cache=tmp_path / "cache").train
    assert isinstance(images, ImageFiles)
    return images


def test_batches_without_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = image_files(tmp_path)
    expected = list(Batches(images, 4, seed=0))
    usage = SimpleNamespace(free=1000)
    monkeypatch.setattr(contrast.data.loader.shutil, "disk_usage", lambda folder: usage)
    monkeypatch.setattr(torch.Tensor, "share_memory_", begun)
    with pytest.warns(UserWarning, match="through pipes"):
        found = list(Batches(images, 4, seed=0, workers=1))
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one[:3], other[:3], strict=True))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root")
@pytest.mark.parametrize(("size", "workers"), [("64k", 2), ("1m", 2), ("64m", 2), ("4k", 2)])
def test_a_small_dev_shm(tmp_path: Path, size: str, workers: int) -> None:
    image_files(tmp_path)
    words = [
        *(
            "data=folder",
            "encoder=small",
            f"data.root={tmp_path}",
            "data.image_size=224",
            "data.memory_limit_gb=0",
            "+views.size=16",
        ),
        *("batch_size=4", f"workers={workers}", "encoder.widths=[4]", "logger=none", "evaluation.enabled=false"),
        *("trainer.accelerator=cpu", "trainer.max_epochs=3", f"hydra.run.dir={tmp_path / 'run'}"),
    ]
    program = "from contrast.cli.commands import pretrain; pretrain()"
    mounted = f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", mounted, "sh", sys.executable, "-c", program, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    # in 4k there is no room for the semaphores of the workers, and in 64k there may be
    assert done.returncode in {"4k": [2], "64k": [0, 2]}.get(size, [0])
    if done.returncode:
        assert "workers=0" in done.stderr.splitlines()[-1]


# --- the mechanism


def test_whatever_a_constructor_raises_names_the_key() -> None:
    with pytest.raises(InputError, match="head: the reason in two lines"), making("head"):
        raise ZeroDivisionError("the reason\nin two lines")
    with pytest.raises(InputError, match=r"^as it is$"), making("head"):
        raise InputError("as it is")
