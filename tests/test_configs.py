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
from torch import nn

import contrast.config.facts
from contrast.cli import settings
from contrast.cli.belongs import TEXT as OTHER
from contrast.cli.embed import columns, image_sets
from contrast.config.facts import complete
from contrast.data.images.image_set import Images, Splits
from contrast.data.text.corpus import Corpus
from contrast.deploy.load import ImageEncoder
from contrast.encoders.normalize import Normalize
from contrast.errors import InputError
from contrast.evaluation.encoder import Frozen
from contrast.heads import NCE, AdaptiveSoftmax, Alignment, Covariance, CrossCorrelation, InfoNCE
from contrast.keys import Momentum
from contrast.module import Contrastive
from contrast.negatives import Dimensions, PositivesOnly, Table, Targets, Tree
from contrast.run.compose import check_groups, check_values, config_loader, load_config
from contrast.run.folder import conf_folder, run_config
from contrast.run.schema import check, check_keys
from contrast.samplers import Unigram
from contrast.training.build import build, part
from contrast.training.teacher import FrozenTeacher

CONF = conf_folder()
FILES = sorted(path.relative_to(CONF).with_suffix("").as_posix() for path in CONF.glob("*/**/*.yaml"))
FILES = [name for name in FILES if not name.startswith("hydra/")]  # sweep/optuna chooses it
NEEDS = {  # what has to be given with a file
    "key/hugging_face": ["key.encoder.name=some"],
    "key/teacher": ["key.weights=some"],
    "method/crd": ["key.weights=some"],
    "method/seed": ["key.weights=some"],
    "data/folder": ["data.root=images"],
    "data/hf": ["data.name=images"],
    "data/captions": ["data.file=captions.csv"],
    "data/webdataset": ["data.urls=images.tar"],
    "data/corpus": ["data.path=text.txt"],
    "protocol/perplexity": ["data.path=text.txt"],
    "experiment/skipgram": ["data.path=text.txt"],
    "experiment/simclr_folder": ["data.root=images"],
}
TEXT = ("corpus", "docstrings")  # data of words, not of images
WORDS = ("floret", "gru", "subwords", "words")  # encoders of words
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
            check_values(cfg, tmp_path / "run", check_groups, {"checkpoint", "out"})
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


PRIMARY = ("method", "experiment", "encoder", "data")
COMPOSED = [name if name.partition("/")[0] in PRIMARY else pytest.param(name, marks=pytest.mark.slow) for name in FILES]


@pytest.mark.parametrize("name", COMPOSED)
def test_every_option_composes(compose: Compose, name: str) -> None:
    group = name.partition("/")[0]
    words = [*chosen(name), *NEEDS.get(name, [])]
    if name == "callbacks/language_model":
        words.append("model=language_model")
    for command in commands(name):
        cfg = compose(*words, command=command)
        assert get_class(cfg.hydra.launcher._target_)  # a plugin's own class can be imported
        assert get_class(cfg.hydra.sweeper._target_)
        check_keys(cfg, getattr(settings, command.capitalize()))
    assert commands(name), group


def commands(name: str) -> list[str]:
    """The commands that have this file among their options."""
    group = name.partition("/")[0]
    found = ["evaluate"] if group in EVALUATE else []
    found += ["embed"] if group in ("data", "trainer", "launcher") else []
    found += ["export"] if group == "launcher" else []
    if name in OF_WORDS or name == "callbacks/language_model":
        return [*found, "words"]
    found += ["words"] if group in WORD_GROUPS else []
    return found if group == "protocol" else [*found, "pretrain"]


# --- what the options build


@pytest.mark.parametrize("option", [option for option in options("data") if option not in (*TEXT, "hf", "webdataset")])
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
    net = nn.Linear(1, 1)
    net.num_features = 1
    run = {"images": {"channels": splits.train.channels, "size": splits.train.size}}
    encoder = ImageEncoder(Frozen(Normalize([0.0], [1.0]), net), run)
    _, root, sets = image_sets(compose(f"data={option}", *words, "checkpoint=run", command="embed"), encoder)
    assert {name: len(each) for name, each in sets.items()} == {"train": len(splits.train), "test": len(splits.test)}
    files, labels, names = columns(sets, root)
    assert len(files) == len(labels) == len(names) == len(splits.train) + len(splits.test)
    if option in ("folder", "captions"):
        assert all((images / file).is_file() for file in files)


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
    facts = {"num_ids": 9, "words": [f"word{i}" for i in range(9)]}
    encoder = part(compose(f"encoder={option}", command="words"), "encoder", facts)
    found = encoder(torch.zeros(2, 3, dtype=torch.long))
    features = found[0] if option == "gru" else found
    assert features.shape == (2, 3, encoder.num_features)


@pytest.mark.parametrize("option", [option for option in options("encoder") if option not in (*WORDS, "open_clip")])
def test_encoder(compose: Compose, option: str) -> None:
    if option == "timm":
        pytest.importorskip("timm", reason="pip install 'contrast-learning[timm]'")
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


GOES_WITH = {"prototypes": ["info_nce"], "positives": [], "dimensions": []}  # by default both that have a temperature
HEADS = [
    pytest.param(option, head, temperature, marks=[] if temperature in (None, "learnable") else pytest.mark.slow)
    for option in options("negatives")
    for head in GOES_WITH.get(option, ["info_nce", "nce"])
    for temperature in [None, *options("head/temperature")]
]


@pytest.mark.parametrize(("option", "head", "temperature"), HEADS)
def test_head(compose: Compose, option: str, head: str, temperature: str | None) -> None:
    words = [] if temperature is None else [f"+head/temperature={temperature}"]
    model = build(own(compose(f"negatives={option}", f"head={head}", *words, "encoder.widths=[4]")), few_images(1, 8))
    check_losses(model)
    if temperature is not None:
        assert type(model.head.temperature).__name__.lower() == temperature


@pytest.mark.parametrize(
    ("method", "source", "head"),
    [
        ("byol", PositivesOnly, Alignment),
        ("simsiam", PositivesOnly, Alignment),
        ("barlow_twins", Dimensions, CrossCorrelation),
        ("vicreg", Dimensions, Covariance),
    ],
)
def test_methods_without_negatives(compose: Compose, method: str, source: type, head: type) -> None:
    model = build(own(compose(f"method={method}", "encoder.widths=[4]")), few_images(1, 8))
    assert (type(model.negatives), type(model.head)) == (source, head)
    check_losses(model)


class Weighted(InfoNCE):
    def __init__(self, weights: list[float], temperature: float = 0.1) -> None:
        super().__init__(temperature)
        self.weights = weights


def test_weights_of_a_loss_are_none_of_an_encoder(compose: Compose) -> None:
    words = ("head._target_=test_configs.Weighted", "+head.weights=[1.0,2.0]", "encoder.weights=gone", "resume=run")
    model = build(own(compose(*words, "encoder.widths=[4]")), few_images(1, 8))  # a resumed run does not read `gone`
    assert model.head.weights == [1.0, 2.0]


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
    words = [f"protocol={option}", *NEEDS.get(f"protocol/{option}", [])]
    cfg = compose(*words, command="evaluate")
    check_keys(cfg, settings.Evaluate)
    assert callable(instantiate(cfg.protocol, _partial_=True))


@pytest.mark.parametrize("part", ["data", "encoder", "head", "negatives", "projector", "views"])
def test_a_part_that_is_null_is_refused(compose: Compose, part: str) -> None:
    """As in the file of a run that somebody has edited."""
    cfg = own(compose())
    cfg[part] = None
    with pytest.raises(InputError, match=f"{part}=null"):
        check(run_config(cfg), settings.Pretrain)


# --- recipes


RECIPES = [name for name in FILES if name.startswith("experiment/")]
RECIPES += [pytest.param(name, marks=pytest.mark.slow) for name in FILES if name.startswith("method/")]


@pytest.mark.parametrize("name", RECIPES)
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
    if "key.weights=some" in NEEDS.get(name, []):
        given += [
            f"key.weights={teacher(Path('teacher.pt'))}",
            "+encoder@key.encoder=small",
            "projector.out_features=256",
        ]
    assert pretrain(*chosen(name), *given, *few, *cheap, "hydra.run.dir=run") == 0
    assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 2
    assert 0 < figures("run")["loss"] < 60


def teacher(file: Path, channels: int = 1) -> Path:
    torch.save(instantiate(OmegaConf.load(CONF / "encoder" / "small.yaml"), in_channels=channels).state_dict(), file)
    return file


QUICK = ("simclr", "moco", "byol", "dino", "seed")
CROPPED = [name for name in options("method") if name not in ("clip", "siglip")]  # which have one view of an image
CROPPED = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CROPPED]


@pytest.mark.parametrize("method", CROPPED)
def test_multi_crop(compose: Compose, method: str, tmp_path: Path) -> None:
    """Every view is a query that has a gradient, and the keys are those of the two large views where that is usual."""
    words = [f"method={method}", "views=multicrop", "encoder.widths=[4]"]
    if method in ("seed", "crd"):
        weights = f"key.weights={teacher(tmp_path / 'teacher.pt', 3)}"
        words += [weights, "+encoder@key.encoder=small", "projector.out_features=256"]
    images = few_images(3, 32)
    images.pixels.random_(generator=torch.Generator().manual_seed(0))
    if method in ("moco", "ressl"):  # the first view alone is a query
        with pytest.raises(InputError, match=r"4 of 6 views are neither queries nor keys: key\.num_queries=null"):
            build(own(compose(*words, "views.views=[{count: 2}, {count: 4, size: 16}]")), images)
        words += ["key.num_queries=null"]
    model = build(own(compose(*words, "views.views=[{count: 2}, {count: 4, size: 16}]")), images)
    model.head.plan(10)
    batch = images.take(torch.arange(4))
    _, query, key = model.encode(batch, model.views.draw(4, torch.Generator().manual_seed(0)))
    assert query.shape[:2] == (6, 4)
    if model.remembers:
        model.negatives.update(
            query.detach(), key.detach(), torch.arange(4) + 4 * (method in ("moco", "ressl", "seed"))
        )
    loss, _ = model.contrast(batch, query, key)
    (gradient,) = torch.autograd.grad(loss, query)
    assert all(view.abs().max() > 0 for view in gradient)
    if isinstance(model.key, Momentum | FrozenTeacher) or method in ("swav", "simsiam"):
        assert torch.equal(key[0], key[2])
        assert torch.equal(key[1], key[3])


def test_a_tokenizer_by_name_is_a_value_like_others(compose: Compose) -> None:
    assert compose("data=captions", "data.file=c.csv", "data.tokenizer=some").data.tokenizer == "some"


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
    assert "name" not in OmegaConf.load(CONF / "experiment" / f"{name}.yaml")  # a run is named by what it is
    compose(*words, command=command)


def test_each_command_knows_what_belongs_to_the_other() -> None:
    assert sorted(f"{group}/{option}" for group in OTHER for option in OTHER[group]) == sorted(
        name for name in OF_WORDS if name.startswith(("data/", "experiment/"))
    )


def test_the_default_is_an_experiment(compose: Compose) -> None:
    assert own(compose("name=any")) == own(compose("experiment=simclr_digits", "name=any"))


def test_data_lies_where_the_environment_says(compose: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTRAST_DATA", "/some/where")
    assert compose("data=cifar10").data.root == "/some/where/cifar10"


METHODS = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in options("method")]


@pytest.mark.parametrize("method", METHODS)
def test_an_experiment_leaves_a_method_its_head(compose: Compose, method: str) -> None:
    needed = NEEDS.get(f"method/{method}", [])
    alone = compose(f"method={method}", *needed)
    for experiment in ("simclr_cifar10", "simclr_folder", "simclr_digits"):
        words = NEEDS.get(f"experiment/{experiment}", [])
        within = compose(f"experiment={experiment}", f"method={method}", *words, *needed)
        assert within.head == alone.head


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("negatives=bank", "same_label=ignored"), "Bank does not leave out images with a query's label"),
        (("method=byol", "head=info_nce"), "InfoNCE over PositivesOnly: Alignment and PositivesOnly go together"),
        (("method=byol", "negatives=in_batch"), "Alignment over InBatch: Alignment and PositivesOnly go together"),
        (("method=vicreg", "negatives.among=keys"), "Covariance needs queries"),
        (("method=dino", "head=nce"), "Prototypes has a teacher's targets"),
        (("method=ressl", "head=nce"), "Queue has a teacher's targets"),
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
            "AdaptiveSoftmax and Targets go together alone",
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
    page = inspect.getdoc(contrast.config.facts) or ""
    assert all(name in page for name in ("dim", "in_features", "num_ids", "counts", "vocabulary", "length", "corpus"))


# --- a value equal to the constructor's default is in conf/ only if readers change it

TUNED = {
    "data": "root image_column caption_column label_column test_file test_fraction seed tokenizer length "
    "download min_count max_words unknown held_out most config train_split test_split captions test_urls "
    "column unit on_error workers over_ranks max_distinct keep_case apostrophes "
    "phrases phrase_min_count phrase_threshold",
    "encoder": "name stem widths compile channels_last dropout dim hidden layers sparse num_features weights prefix "
    "frozen pretrained minn maxn buckets",
    "head": "temperature off_diagonal invariance variance covariance cutoffs bias correction num_noise margin.m "
    "bias.initial positive_sigma temperature.initial",
    "key": "momentum shuffle_bn encoder encoder.width encoder.layers encoder.pretrained project prefix size num_keys",
    "negatives": "draws proximity momentum ring in_batch positives sampler std sparse "
    "teacher_temperature own_key balance among",
    "model": "method window subsample lr lr_end chunk block blocks max_pairs_per_row length batch frequencies "
    "vectors output_vectors shrink_windows compiled",
    "projector": "out_features",
    "scheduler": "warmup_fraction warmup_steps final",
    "callbacks": "collapse.min_rank held_out.first held_out.growth held_out.most held_out.max_seconds "
    "ema.decay early_stopping.patience prune.startup best.top_k",
    "protocol": "epochs batch_size k temperature steps neighbours frozen_stages layer_decay streams classes templates",
    "trainer": "accelerator strategy num_nodes sync_batchnorm accumulate_grad_batches gradient_clip_val",
    "views": "views",
}
# values that take back those of the file below them
OVERRIDING = {
    ("method/arcface", "head.cosine"),
    ("method/siglip", "negatives.reverse"),
    ("output/negative_sampling", "negatives.sampler.power"),
}


@pytest.mark.slow
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


def test_the_rate_of_an_optimiser_goes_with_it(compose: Compose) -> None:
    """An experiment's rate belongs to its optimiser, and a search is around the rate of the one that is chosen."""
    words = ["experiment=simclr_folder", "data.root=images", "batch_size=512"]
    own, other = compose(*words), compose(*words, "optimizer=adamw")
    assert (own.optimizer.lr, own.optimizer.weight_decay) == (pytest.approx(0.24), 5e-4)
    assert other.optimizer == compose("optimizer=adamw").optimizer
    for chosen, rate in (([], 0.24), (["optimizer=adamw"], 0.002)):
        text = compose(*words, *chosen, "sweep=optuna").hydra.sweeper.params["optimizer.lr"]
        low, high = text.removeprefix("tag(log, interval(").removesuffix("))").split(",")
        assert (float(low), float(high)) == (pytest.approx(rate / 10), pytest.approx(rate * 10))
