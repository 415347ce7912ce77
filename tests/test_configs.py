"""Every file in conf/ composes, fits what it configures, and every recipe trains."""

import functools
import inspect
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command, figures
from hydra.utils import get_class, get_method, get_object, instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from PIL import Image

import contrast.facts
from contrast.cli.belongs import TEXT as OTHER
from contrast.data.images.image_set import Images, Splits
from contrast.data.text.corpus import Corpus
from contrast.errors import InputError
from contrast.facts import complete
from contrast.heads import NCE, AdaptiveSoftmax, InfoNCE
from contrast.module import Contrastive
from contrast.negatives import Table, Targets, Tree
from contrast.run.compose import check_values, config_loader, load_config
from contrast.run.folder import conf_folder
from contrast.samplers import Unigram
from contrast.training.build import build, part

CONF = conf_folder()
FILES = sorted(path.relative_to(CONF).with_suffix("").as_posix() for path in CONF.glob("*/**/*.yaml"))
NEEDS = {  # what has to be given with a file
    "key/hugging_face": ["key.encoder.name=some"],
    "data/folder": ["data.root=images"],
    "data/captions": ["data.file=captions.csv"],
    "data/corpus": ["data.path=text.txt"],
    "experiment/skipgram": ["data.path=text.txt"],
    "experiment/simclr_folder": ["data.root=images"],
}
TEXT = ("corpus", "docstrings")  # data of words, not of images
WORDS = ("gru", "words")  # encoders of words
OF_WORDS = [  # files of contrast-words alone
    *(f"data/{option}" for option in TEXT),
    *(f"encoder/{option}" for option in WORDS),
    *(f"experiment/{option}" for option in ("language_model", "skipgram", "skipgram_docs")),
    *("model/word_vectors", "model/language_model", "evaluation/words"),
]
EVALUATE = ("protocol", "data", "encoder", "trainer", "launcher")  # groups of contrast-evaluate
WORD_GROUPS = ("output", "trainer", "logger", "launcher", "debug")  # groups of images that contrast-words has too

Compose = Callable[..., DictConfig]


def options(group: str) -> list[str]:
    return [name.removeprefix(f"{group}/") for name in FILES if name.rpartition("/")[0] == group]


@pytest.fixture
def compose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compose:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONTRAST_CACHE", str(tmp_path / "cache"))

    def with_words(*words: str, command: str) -> DictConfig:
        with config_loader(CONF) as loader:
            cfg = load_config(loader, command, list(words))
            check_values(cfg, tmp_path / "run", {"checkpoint"})
            return cfg

    def or_skip(*words: str, command: str = "pretrain") -> DictConfig:
        try:
            return with_words(*words, command=command)
        except InputError as error:
            if "is not installed: pip install" in str(error):
                pytest.skip(str(error))
            raise

    return or_skip


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of images of two classes, 8 to train and 4 to test in each."""
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 8), ("test", 4)):
        for label in ("apple", "pear"):
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = torch.randint(256, (32, 32, 3), generator=generator, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
    return tmp_path / "images"


def chosen(name: str) -> list[str]:
    """The words that choose a file of conf/ on the command line."""
    group, _, option = name.rpartition("/")
    return [f"{'+' if '/' in group else ''}{group}={option}"]


def few_images(channels: int, size: int) -> Images:
    """Four images of two classes."""
    return Images(torch.zeros(4, channels, size, size, dtype=torch.uint8), torch.arange(4) % 2, ("a", "b"))


def own(cfg: DictConfig) -> DictConfig:
    """What is not Hydra's."""
    return OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])


@pytest.mark.parametrize("name", FILES)
def test_every_option_composes(compose: Compose, name: str) -> None:
    group = name.partition("/")[0]
    words = [*chosen(name), *NEEDS.get(name, [])]
    if name == "callbacks/language_model":
        words.append("model=language_model")
    for command in commands(name):
        cfg = compose(*words, command=command)
        assert get_class(cfg.hydra.launcher._target_)  # a plugin's own class can be imported
        assert get_class(cfg.hydra.sweeper._target_)
    assert commands(name), group


def commands(name: str) -> list[str]:
    """The commands that have this file among their options."""
    group = name.partition("/")[0]
    found = ["evaluate"] if group in EVALUATE else []
    if name in OF_WORDS or name == "callbacks/language_model":
        return [*found, "words"]
    found += ["words"] if group in WORD_GROUPS else []
    return found if group == "protocol" else [*found, "pretrain"]


# --- what the options build


@pytest.mark.parametrize("option", [option for option in options("data") if option not in TEXT])
def test_data(compose: Compose, images: Path, option: str) -> None:
    digits = option.startswith("digits")
    words = [] if digits else [f"data.root={images}"]
    if option == "captions":
        names = sorted(path.relative_to(images).as_posix() for path in images.rglob("*.png"))
        (images / "captions.csv").write_text("path,caption\n" + "".join(f"{name},some fruit\n" for name in names))
        words += [f"data.file={images}/captions.csv", "data.test_fraction=0.33"]
    splits = instantiate(compose(f"data={option}", *words).data)
    assert isinstance(splits, Splits)
    assert splits.test is not None
    assert len(splits.train) == (1437 if digits else 16)
    assert splits.train.channels == (1 if digits or option in ("mnist", "fashion_mnist") else 3)
    assert (splits.train.text is not None) == (splits.tokenizer is not None) == (option in ("captions", "digits_words"))


@pytest.mark.parametrize(("option", "words"), [("corpus", ["data.path=text.txt"]), ("docstrings", ["data.most=5000"])])
def test_text(compose: Compose, tmp_path: Path, option: str, words: list[str]) -> None:
    (tmp_path / "text.txt").write_text("a word and a word\n" * 9)
    cfg = compose(f"data={option}", *words, command="words").data
    found = instantiate(cfg, held_out=0.2)
    assert isinstance(found, Corpus)
    assert len(found.words) == len(found.counts) == int(found.ids.max()) + 1
    assert found.held_out is not None
    named = set(inspect.signature(get_method(cfg._target_)).parameters) - {"name"}
    assert named > set(cfg) - {"_target_"}


@pytest.mark.parametrize("option", WORDS)
def test_encoder_of_words(compose: Compose, option: str) -> None:
    encoder = part(compose(f"encoder={option}", command="words").encoder, {"num_ids": 9})
    found = encoder(torch.zeros(2, 3, dtype=torch.long))
    features = found[0] if option == "gru" else found
    assert features.shape == (2, 3, encoder.num_features)


@pytest.mark.parametrize("option", [option for option in options("encoder") if option not in WORDS])
def test_encoder(compose: Compose, option: str) -> None:
    if option == "timm":
        pytest.importorskip("timm", reason="pip install 'contrast[timm]'")
    encoder = instantiate(compose(f"encoder={option}").encoder, in_channels=1, image_size=32)
    assert encoder.eval()(torch.zeros(2, 1, 32, 32)).shape == (2, encoder.num_features)


@pytest.mark.parametrize("option", options("projector"))
def test_projector(compose: Compose, option: str) -> None:
    projector = instantiate(compose(f"projector={option}").projector, in_features=24)
    assert projector(torch.randn(3, 24)).shape == (3, projector.num_features)


@pytest.mark.parametrize("option", options("views"))
def test_views(compose: Compose, option: str) -> None:
    model = build(own(compose(f"views={option}", "encoder.widths=[4]")), few_images(3, 32))
    made = model.views(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), model.views.draw(2, torch.Generator()))
    assert len(made) == (6 if option == "multicrop" else 2)


HEADS = [
    (option, head, temperature)
    for option in options("negatives")
    for head in options("head")
    for temperature in [None, *options("head/temperature")]
]


@pytest.mark.parametrize(("option", "head", "temperature"), HEADS)
def test_head(compose: Compose, option: str, head: str, temperature: str | None) -> None:
    words = [] if temperature is None else [f"+head/temperature={temperature}"]
    model = build(own(compose(f"negatives={option}", f"head={head}", *words, "encoder.widths=[4]")), few_images(1, 8))
    check_losses(model)
    if temperature is not None:
        assert type(model.head.temperature).__name__.lower() == temperature


PARTS = {
    "full_softmax": (Table, InfoNCE, None),
    "sampled_softmax": (Table, InfoNCE, Unigram),
    "nce": (Table, NCE, Unigram),
    "negative_sampling": (Table, NCE, Unigram),
    "hierarchical_softmax": (Tree, NCE, None),
    "adaptive_softmax": (Targets, AdaptiveSoftmax, None),
}


@pytest.mark.parametrize("option", options("output"))
def test_one_choice_makes_an_output_layer(compose: Compose, option: str) -> None:
    words = ["head.cutoffs=[1]"] if option == "adaptive_softmax" else []  # of two classes
    cfg = compose("method=full_softmax", f"output={option}", *words, "encoder.widths=[4]")
    model = build(own(cfg), few_images(1, 8))
    source, head, sampler = PARTS[option]
    assert (type(model.negatives), type(model.head)) == (source, head)
    assert type(getattr(model.negatives, "sampler", None)) is (sampler or type(None))
    assert getattr(model.head, "correction", True) == (option != "negative_sampling")
    check_losses(model)


def check_losses(model: Contrastive) -> None:
    model.head.plan(10)
    query, batch = torch.randn(2, 4, 64), few_images(1, 8).take(torch.arange(4))
    for queries, candidates in model.negatives(query, query, *model.identities(batch), torch.Generator()):
        losses, counted = model.head(queries, candidates)
        assert losses.isfinite().all()
        assert counted.all()


@pytest.mark.parametrize("optimizer", options("optimizer"))
@pytest.mark.parametrize("scheduler", options("scheduler"))
def test_optimizer(compose: Compose, optimizer: str, scheduler: str) -> None:
    cfg = compose(f"optimizer={optimizer}", f"scheduler={scheduler}")
    weight = torch.nn.Parameter(torch.ones(3))
    built = instantiate(cfg.optimizer, [{"params": [weight]}])
    schedule = instantiate(cfg.scheduler, built, total_steps=4)
    for _ in range(4):
        weight.square().sum().backward()
        built.step()
        schedule.step()
    assert weight.isfinite().all()
    assert not torch.equal(weight, torch.ones(3))


@pytest.mark.parametrize("option", options("protocol"))
def test_protocol(compose: Compose, option: str) -> None:
    assert callable(instantiate(compose(f"protocol={option}", command="evaluate").protocol, _partial_=True))


# --- recipes


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith(("experiment/", "method/"))])
def test_every_recipe_trains(pretrain: Command, words: Command, images: Path, name: str) -> None:
    """Two steps of it as it is, but on a few images, or on a few words."""
    if name in OF_WORDS:
        text_recipe_trains(words, name)
        return
    defaults = OmegaConf.load(CONF / f"{name}.yaml").get("defaults", [])
    data = next((node["override /data"] for node in defaults if "override /data" in node), "digits")
    given = {"digits": [], "digits_words": [], "folder": [f"data.root={images}", "data.image_size=32"]}.get(
        data, [f"data.root={images}"]
    )
    few = ["batch_size=4", "trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.log_every_n_steps=1"]
    cheap = ["trainer.accelerator=cpu", "logger=csv", "evaluation.enabled=false", "callbacks=none"]
    assert pretrain(*chosen(name), *given, *few, *cheap, "hydra.run.dir=run") == 0
    assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 2
    assert 0 < figures("run")["loss"] < 20


def text_recipe_trains(words: Command, name: str) -> None:
    Path("text.txt").write_text("a word and another word or two of a line\n" * 400)
    settings = ["data.most=20000"] if name.endswith("docs") else ["data=corpus", "data.path=text.txt"]
    settings += ["model.chunk=800", "model.subsample=0"] if "skipgram" in name else ["model.batch=8"]
    few = ["trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.log_every_n_steps=1", "logger=csv"]
    assert words(f"experiment={name.rpartition('/')[2]}", *settings, *few, "hydra.run.dir=run") == 0
    assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 2
    assert 0 < figures("run")["loss"] < 20


@pytest.mark.parametrize("name", options("experiment"))
def test_every_experiment_says_its_command(compose: Compose, name: str) -> None:
    lines = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()
    command = "words" if f"experiment/{name}" in OF_WORDS else "pretrain"
    said = [line.removeprefix("# ") for line in lines if line.startswith(f"# contrast-{command} ")]
    assert len(said) == 1
    words = shlex.split(said[0].partition("(")[0])[1:]
    assert words[0] == f"experiment={name}"
    assert any("Cost" in line for line in lines[2:6])
    assert any("esult" in line for line in lines[2:6])
    cfg = compose(*words, command=command)
    assert cfg.name == name


def test_each_command_knows_what_belongs_to_the_other() -> None:
    assert sorted(f"{group}/{option}" for group in OTHER for option in OTHER[group]) == sorted(
        name for name in OF_WORDS if name.startswith(("data/", "experiment/"))
    )


def test_the_default_is_an_experiment(compose: Compose) -> None:
    assert own(compose("name=any")) == own(compose("experiment=simclr_digits", "name=any"))


def test_data_lies_where_the_environment_says(compose: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTRAST_DATA", "/some/where")
    assert compose("data=cifar10").data.root == "/some/where/cifar10"


@pytest.mark.parametrize("experiment", ["simclr_cifar10", "simclr_folder", "simclr_digits"])
@pytest.mark.parametrize("method", options("method"))
def test_an_experiment_leaves_a_method_its_head(compose: Compose, experiment: str, method: str) -> None:
    words = NEEDS.get(f"experiment/{experiment}", [])
    alone, within = compose(f"method={method}"), compose(f"experiment={experiment}", f"method={method}", *words)
    assert within.head == alone.head


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("negatives=bank", "same_label=ignored"), "Bank does not leave out images with a query's label"),
        (("method=instdisc", "negatives.sampler=null"), "this Bank has no sampler: output=nce"),
        (("method=full_softmax", "head._target_=contrast.heads.NCE"), "this Table has no sampler: output=nce"),
        (("method=full_softmax", "output=nce", "negatives.sampler=null"), "this Table has no sampler: output=nce"),
        (
            (
                *("method=full_softmax", "output=hierarchical_softmax"),
                "head._target_=contrast.heads.InfoNCE",
            ),
            "the nodes of a Tree are all positive: it needs NCE",
        ),
        (
            ("method=full_softmax", "output=adaptive_softmax", "negatives._target_=contrast.negatives.InBatch"),
            "AdaptiveSoftmax goes with Targets alone",
        ),
        (("method=moco", "~negatives.size"), "Queue: missing a required argument: 'size'"),
        (("method=nnclr", "~negatives.size"), "Nearest: missing a required argument: 'size'"),
    ],
)
def test_what_means_nothing_is_refused(compose: Compose, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(own(compose(*words, "encoder.widths=[4]")), few_images(1, 8))


def test_facts_fill_only_parameters_without_a_default() -> None:
    def part(dim: int, num_ids: int = 7, counts: object = None) -> tuple[object, ...]:
        return dim, num_ids, counts

    facts = {"dim": 1, "num_ids": 2, "counts": 3}
    assert complete(functools.partial(part), facts) == (1, 7, None)
    assert complete(functools.partial(part, dim=5), facts) == (5, 7, None)
    page = inspect.getdoc(contrast.facts) or ""
    assert all(name in page for name in ("dim", "in_features", "num_ids", "counts", "vocabulary", "length", "corpus"))


# --- a value equal to the constructor's default is in conf/ only if readers change it

TUNED = {
    "data": "root image_column caption_column label_column test_file test_fraction tokenizer length "
    "download min_count max_words unknown held_out most",
    "encoder": "name stem widths compile channels_last dropout dim hidden layers sparse num_features",
    "head": "cutoffs bias correction num_noise margin.m bias.initial positive_sigma temperature.initial",
    "key": "momentum shuffle_bn encoder.width encoder.layers",
    "negatives": "draws proximity momentum ring in_batch positives sampler std sparse",
    "model": "method window subsample lr lr_end chunk block blocks max_pairs_per_row length batch frequencies",
    "projector": "out_features",
    "scheduler": "warmup_fraction warmup_steps final",
    "callbacks": "held_out.first held_out.growth held_out.most held_out.max_seconds",
    "protocol": "epochs batch_size k temperature steps neighbours",
    "trainer": "accelerator strategy num_nodes sync_batchnorm accumulate_grad_batches gradient_clip_val",
    "views": "views",
}
# values that take back those of the file below them
OVERRIDING = {
    ("method/arcface", "head.cosine"),
    ("method/siglip", "negatives.reverse"),
    ("output/negative_sampling", "negatives.sampler.power"),
}


def test_conf_repeats_no_default_that_nobody_tunes(compose: Compose) -> None:
    tuned = {f"{group}.{key}" for group, keys in TUNED.items() for key in keys.split()}
    repeated = {(name, key) for name in FILES for key in equal_to_default(compose, name)}
    assert {(name, key) for name, key in repeated if key not in tuned} == OVERRIDING
    assert {key for _, key in repeated if key in tuned} == tuned  # the list holds nothing else


def equal_to_default(compose: Compose, name: str) -> list[str]:
    """The keys that a file sets to the default of the constructor that takes them."""
    if name.startswith(("launcher/", "sweep/")):  # of Hydra
        return []
    text = (CONF / f"{name}.yaml").read_text()
    prefix = "" if text.startswith("# @package _global_") else name.rpartition("/")[0].replace("/", ".") + "."
    words = [*chosen(name), *NEEDS.get(name, []), *["model=language_model"] * (name == "callbacks/language_model")]
    cfg = compose(*words, command=commands(name)[-1])
    found = []
    for key in leaves(OmegaConf.to_container(OmegaConf.create(text))):
        node, _, last = f"{prefix}{key}".rpartition(".")
        parent = OmegaConf.select(cfg, node) if node else None
        if isinstance(parent, DictConfig) and "_target_" in parent and not last.startswith("_"):
            parameter = inspect.signature(get_object(parent._target_)).parameters.get(last)
            if parameter is not None and plain_value(parameter.default) == plain_value(parent[last]):
                found.append(f"{prefix}{key}")
    return found


def plain_value(value: object) -> object:
    """Lists and tuples as tuples; a bool is no number."""
    if isinstance(value, ListConfig | list | tuple):
        return tuple(value)
    return (value,) if isinstance(value, bool) else value


def leaves(node: Any, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        elif key != "defaults":
            yield f"{prefix}{key}"
