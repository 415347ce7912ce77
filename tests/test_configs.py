"""Every file in conf/ composes, fits what it configures, and every recipe trains."""

import inspect
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Command, figures
from hydra.utils import get_class, get_method, instantiate
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from contrast.data.images.image_set import Images, Splits
from contrast.data.text.corpus import Corpus
from contrast.errors import InputError
from contrast.facts import complete
from contrast.run.compose import check_values, config_loader, load_config
from contrast.run.folder import conf_folder
from contrast.training.build import build

CONF = conf_folder()
FILES = sorted(path.relative_to(CONF).with_suffix("").as_posix() for path in CONF.glob("*/**/*.yaml"))
GIVEN = {
    "key/hugging_face": ["key.encoder.name=some"],
    "data/folder": ["data.root=images"],
    "data/captions": ["data.file=captions.csv"],
    "data/corpus": ["data.path=text.txt"],
    "experiment/skipgram": ["data.path=text.txt"],
    "experiment/simclr_folder": ["data.root=images"],
}
TEXT = ("corpus", "docstrings")  # data of words, not of images
WORDS = ("gru", "words")  # encoders of words
SHARED = ("data", "encoder", "trainer", "launcher")  # groups of both commands

Compose = Callable[..., DictConfig]


def options(group: str) -> list[str]:
    return [name.removeprefix(f"{group}/") for name in FILES if name.rpartition("/")[0] == group]


@pytest.fixture
def compose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compose:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONTRAST_CACHE", str(tmp_path / "cache"))

    def with_words(*words: str, command: str = "pretrain") -> DictConfig:
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
    words = [*chosen(name), *GIVEN.get(name, [])]
    group = name.partition("/")[0]
    if group != "protocol":
        cfg = compose(*words)
        assert get_class(cfg.hydra.launcher._target_)  # a plugin's own class can be imported
        assert get_class(cfg.hydra.sweeper._target_)
    if group == "protocol" or group in SHARED:
        compose(*words, command="evaluate")


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
    cfg = compose(f"data={option}", *words).data
    found = instantiate(cfg, held_out=0.2)
    assert isinstance(found, Corpus)
    assert len(found.words) == len(found.counts) == int(found.ids.max()) + 1
    assert found.held_out is not None
    named = set(inspect.signature(get_method(cfg._target_)).parameters) - {"name"}
    assert named == set(cfg) - {"_target_"}


@pytest.mark.parametrize("option", WORDS)
def test_encoder_of_words(compose: Compose, option: str) -> None:
    encoder = complete(instantiate(compose(f"encoder={option}").encoder), {"size": 9})
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


ALONE = ("targets", "adaptive_softmax")  # of the groups negatives and head, only with each other
HEADS = [
    (option, head, temperature)
    for option in options("negatives")
    for head in options("head")
    for temperature in [None, *options("head/temperature")]
    if (option in ALONE) == (head in ALONE)
    and not (head in ALONE and temperature)
    and (option != "tree" or head == "nce")
]


@pytest.mark.parametrize(("option", "head", "temperature"), HEADS)
def test_head(compose: Compose, option: str, head: str, temperature: str | None) -> None:
    words = [] if temperature is None else [f"+head/temperature={temperature}"]
    words += ["same_label=positive"] if option in ("table", "targets", "tree") else []
    words += ["~head.temperature", "head.cutoffs=[1]"] if head in ALONE else []  # of two classes
    model = build(own(compose(f"negatives={option}", f"head={head}", *words, "encoder.widths=[4]")), few_images(1, 8))
    model.head.plan(10)
    query, batch = torch.randn(2, 4, 64), few_images(1, 8).take(torch.arange(4))
    for asking, candidates in model.negatives(query, query, *model.identities(batch), torch.Generator()):
        losses, counted = model.head(asking, candidates)
        assert losses.isfinite().all()
        assert counted.all()
    if temperature is not None:
        assert type(model.head.temperature).__name__.lower() == temperature


@pytest.mark.parametrize("optimizer", options("optimizer"))
@pytest.mark.parametrize("scheduler", options("scheduler"))
def test_optimizer(compose: Compose, optimizer: str, scheduler: str) -> None:
    cfg = compose(f"optimizer={optimizer}", f"scheduler={scheduler}")
    weight = torch.nn.Parameter(torch.ones(3))
    built = instantiate(cfg.optimizer)([{"params": [weight]}])
    schedule = instantiate(cfg.scheduler)(built, total_steps=4)
    for _ in range(4):
        weight.square().sum().backward()
        built.step()
        schedule.step()
    assert weight.isfinite().all()
    assert not torch.equal(weight, torch.ones(3))


@pytest.mark.parametrize("option", options("protocol"))
def test_protocol(compose: Compose, option: str) -> None:
    assert callable(instantiate(compose(f"protocol={option}", command="evaluate").protocol))


# --- recipes


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith(("experiment/", "method/"))])
def test_every_recipe_trains(pretrain: Command, images: Path, name: str) -> None:
    """Two steps of it as it is, but on a few images, or on a few words."""
    if OmegaConf.load(CONF / f"{name}.yaml").get("model") is not None:
        text_recipe_trains(pretrain, name)
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


def text_recipe_trains(pretrain: Command, name: str) -> None:
    Path("text.txt").write_text("a word and another word or two of a line\n" * 400)
    words = [] if name.endswith("docs") else ["data=corpus", "data.path=text.txt"]
    words += ["data.most=20000"] if name.endswith("docs") else []
    few = ["model.span=800", "model.subsample=0"] if "skipgram" in name else ["model.batch=8"]
    few += ["trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.log_every_n_steps=1", "logger=csv"]
    assert pretrain(f"experiment={name.rpartition('/')[2]}", *words, *few, "hydra.run.dir=run") == 0
    assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 2
    assert 0 < figures("run")["loss"] < 20


@pytest.mark.parametrize("name", options("experiment"))
def test_every_experiment_says_its_command(compose: Compose, name: str) -> None:
    lines = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()
    said = [line.removeprefix("# ") for line in lines if line.startswith("# contrast-pretrain ")]
    assert len(said) == 1
    words = shlex.split(said[0].partition("(")[0])[1:]
    assert words[0] == f"experiment={name}"
    cfg = compose(*words)
    assert cfg.name == name


def test_the_default_is_an_experiment(compose: Compose) -> None:
    assert own(compose("name=any")) == own(compose("experiment=simclr_digits", "name=any"))


def test_data_lies_where_the_environment_says(compose: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTRAST_DATA", "/some/where")
    assert compose("data=cifar10").data.root == "/some/where/cifar10"


@pytest.mark.parametrize("experiment", ["simclr_cifar10", "simclr_folder", "simclr_digits"])
@pytest.mark.parametrize("method", options("method"))
def test_an_experiment_leaves_a_method_its_head(compose: Compose, experiment: str, method: str) -> None:
    words = GIVEN.get(f"experiment/{experiment}", [])
    alone, within = compose(f"method={method}"), compose(f"experiment={experiment}", f"method={method}", *words)
    assert within.head == alone.head


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("negatives=tree", "head=info_nce", "same_label=positive"), "it needs head=nce, not InfoNCE"),
        (("negatives=bank", "same_label=ignored"), "Bank does not leave out images with a query's label"),
    ],
)
def test_pairs_that_mean_nothing_are_refused(compose: Compose, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(own(compose(*words, "encoder.widths=[4]")), few_images(1, 8))
