"""contrast.load: what evaluation computes, from Python, for every kind of images."""

import subprocess
import sys
import tarfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import TINY, called
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

import contrast
from contrast.cli import commands
from contrast.data.images.digits import digits, digits_words
from contrast.data.images.folder import folder
from contrast.data.images.shards import webdataset
from contrast.deploy.export import export
from contrast.deploy.load import ImageEncoder, encoder_of, saved_model
from contrast.deploy.words import WordEmbeddings
from contrast.encoders.weights import read
from contrast.errors import InputError
from contrast.evaluation.encoder import Towers, from_checkpoint
from contrast.evaluation.features import features
from contrast.evaluation.words import nearest_words


def loaded(what: Path) -> ImageEncoder:
    encoder = contrast.load(what)
    assert isinstance(encoder, ImageEncoder)
    return encoder


@pytest.fixture(scope="module")
def encoder(trained: Path) -> ImageEncoder:
    return loaded(trained)


@pytest.fixture(scope="module")
def evaluated(trained: Path) -> Tensor:
    """The features of the first 40 test images, as contrast-evaluate computes them."""
    saved = read(trained / "checkpoints" / "last.ckpt")
    return features(from_checkpoint(saved).eval(), digits().test.select(torch.arange(40)))


def test_every_kind_of_images_has_the_features_of_the_evaluation(
    encoder: ImageEncoder, evaluated: Tensor, tmp_path: Path
) -> None:
    images = digits().test.select(torch.arange(40))
    arrays = images.pixels.permute(0, 2, 3, 1).numpy()  # [N, H, W, 1]
    pictures = [Image.fromarray(array[:, :, 0]) for array in arrays]
    files = [tmp_path / f"{i:02}.png" for i in range(40)]
    for picture, file in zip(pictures, files, strict=True):
        picture.save(file)
    kinds = {
        "data set": images,
        "tensor": images.pixels,
        "floats": images.pixels / 255,
        "arrays": arrays,
        "arrays without channels": arrays[..., 0],
        "pictures": pictures,
        "a generator": (picture for picture in pictures),
        "with labels": list(zip(pictures, range(40), strict=True)),
        "Hugging Face": [{"image": picture, "label": 0} for picture in pictures],
        "torch": Torch(pictures),
        "paths": files,
        "names": [str(file) for file in files],
        "a mixture": [*files[:3], *pictures[3:5], *arrays[5:]],
        "folder": tmp_path,
    }
    for name, kind in kinds.items():
        found = encoder.embed(kind, batch_size=16, progress=False)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, evaluated, rtol=0, atol=1e-5, msg=name)
    torch.testing.assert_close(encoder.embed(files[0]), evaluated[:1], rtol=0, atol=1e-5)
    torch.testing.assert_close(encoder.embed(files, workers=2), evaluated, rtol=0, atol=1e-5)


class Torch(Dataset):
    """A data set of torch that raises no IndexError behind its end."""

    def __init__(self, pictures: list[Image.Image]) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, row: int) -> tuple[Image.Image, int]:
        return self.pictures[row % len(self)], 0


def test_what_the_encoder_is(encoder: ImageEncoder, trained: Path) -> None:
    assert not any(part.training for part in encoder.modules())
    assert (encoder.num_features, encoder.image_size, encoder.channels) == (32, 8, 1)
    state = read(trained / "checkpoints" / "last.ckpt")["state_dict"]
    own = {key.removeprefix("encoder."): value for key, value in state.items() if key.startswith("encoder.")}
    assert encoder.backbone.state_dict().keys() == own.keys()
    pixels = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    assert encoder(pixels).shape == (3, 32)
    torch.testing.assert_close(encoder.backbone(encoder.model.normalize(pixels)), encoder(pixels))


def test_embedding_leaves_the_mode_and_the_statistics_of_an_encoder_that_is_trained_on(trained: Path) -> None:
    encoder = loaded(trained).train()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    encoder.embed(torch.zeros(4, 1, 8, 8))
    assert all(part.training for part in encoder.modules())
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())


def test_a_network_that_was_trained_compiled_is_not_compiled_again(trained: Path) -> None:
    saved = saved_model(trained)
    compiled = {**saved["config"]["encoder"], "compile": True}
    encoder = encoder_of({**saved, "config": {**saved["config"], "encoder": compiled}})
    with mock.patch.object(torch, "compile", side_effect=AssertionError("compiled")):
        assert encoder(torch.zeros(1, 1, 8, 8)).shape == (1, 32)
    assert "compile" not in encoder.config["encoder"]


def test_images_are_read_as_a_data_set_reads_them(encoder: ImageEncoder, tmp_path: Path) -> None:
    """Resized, cropped, turned upright, made grey: a data set of the same files has the same pixels."""
    random = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    (tmp_path / "train").mkdir()
    Image.fromarray(random.integers(0, 256, (30, 20, 3), dtype=np.uint8)).save(tmp_path / "train" / "a.png", exif=exif)
    Image.fromarray(random.integers(0, 256, (9, 33, 4), dtype=np.uint8)).save(tmp_path / "train" / "b.png")
    Image.fromarray(random.integers(0, 65536, (12, 8), dtype=np.uint16)).save(tmp_path / "train" / "c.png")
    images = folder(tmp_path, image_size=8, channels=1, cache=tmp_path / "cache").train
    for name, pixels in zip("abc", images.pixels, strict=True):
        file = tmp_path / "train" / f"{name}.png"
        assert torch.equal(encoder.preprocess(file), pixels)
        with Image.open(file) as opened:
            assert torch.equal(encoder.preprocess(opened), pixels)
    assert torch.equal(encoder.preprocess(np.asarray(Image.open(tmp_path / "train" / "c.png"))), images.pixels[2])


def test_what_is_no_image_is_named(encoder: ImageEncoder, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"broken\.png"):
        encoder.embed([tmp_path / "broken.png"])
    with pytest.raises(InputError, match="image"):
        encoder.embed([np.zeros((8, 8, 3))])  # floats
    with pytest.raises(InputError, match="1 channels, the images have 3"):
        encoder.embed(torch.zeros(2, 3, 8, 8))
    with pytest.raises(InputError, match="captions"):
        encoder.encode_text("a seven")
    for nothing in ([], torch.zeros(0, 1, 8, 8), np.zeros((0, 8, 8), dtype=np.uint8)):
        with pytest.raises(InputError, match=r"empty|nothing"):
            encoder.embed(nothing)
    for wrong in (tmp_path / "absent", tmp_path):
        with pytest.raises(InputError, match="no checkpoint at"):
            contrast.load(wrong)
    torch.save({"weight": torch.zeros(2)}, tmp_path / "plain.pt")
    with pytest.raises(InputError, match=r"plain\.pt is no checkpoint of this library"):
        contrast.load(tmp_path / "plain.pt")


def test_texts_and_images_share_a_space(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["method=clip", "data=digits_words", "callbacks=none", *TINY, "trainer.limit_train_batches=2"]
    assert called(commands.pretrain, monkeypatch, *words, "hydra.run.dir=run") == 0
    encoder, splits = loaded(Path("run")), digits_words()
    towers = from_checkpoint(read(Path("run/checkpoints/last.ckpt"))).eval()
    assert isinstance(towers, Towers)
    with torch.no_grad():
        text, image = towers.text(splits.test.text[:5]), encoder.model.image(splits.test.pixels[:5])
    told = encoder.encode_text(splits.tokenizer.decode(splits.test.text[:5]))
    torch.testing.assert_close(told, torch.nn.functional.normalize(text, dim=1))
    shown = encoder.encode_image(splits.test.pixels[:5])
    torch.testing.assert_close(shown, torch.nn.functional.normalize(image, dim=1))
    assert encoder.encode_text("a handwritten seven").shape == (1, 16)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*unlabelled")
def test_images_that_are_not_square_are_not_cropped(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    for i in range(64):
        Path(f"data/{i % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 12), dtype=np.uint8)).save(f"data/{i % 2}/{i}.png")
    words = [
        "data=folder",
        "encoder=small",
        "data.root=data",
        "data.channels=1",
        "data.test_fraction=0",
        "callbacks=none",
        *TINY,
    ]
    words += ["hydra.run.dir=run"]
    assert called(commands.pretrain, monkeypatch, *words) == 0
    encoder = loaded(Path("run"))
    expected = features(encoder, folder("data", channels=1, test_fraction=0).train)
    torch.testing.assert_close(encoder.embed("data"), expected, rtol=0, atol=1e-5)
    with tarfile.open("0.tar", "w") as tar:
        for name in sorted(Path("data").rglob("*.png")):
            tar.add(name)
    whole = {"channels": 1, "test_fraction": 0, "memory_limit_gb": 0, "image_size": 8}
    torch.testing.assert_close(encoder.embed(webdataset("0.tar", **whole).train), expected, rtol=0, atol=1e-5)
    Image.new("L", (8, 8)).save("data/0/odd.png")
    with pytest.raises(InputError, match=r"differ in size: .*\(8, 8\)"):
        encoder.embed("data")


@pytest.mark.slow
def test_images_of_more_bits_have_the_range_of_the_run(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    for i in range(64):
        Path(f"data/{i % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 4096, (8, 8), dtype=np.uint16)).save(f"data/{i % 2}/{i:02}.png")
    words = [
        "data=folder",
        "encoder=small",
        "data.root=data",
        "data.channels=1",
        "data.range=[0,4095]",
        "data.test_fraction=0",
    ]
    assert called(commands.pretrain, monkeypatch, *words, "callbacks=none", *TINY, "hydra.run.dir=run") == 0
    encoder = loaded(Path("run"))
    expected = features(encoder, folder("data", channels=1, range=[0, 4095], test_fraction=0).train)
    files = sorted(Path("data").rglob("*.png"))
    export(encoder, "safetensors", Path("exported"))
    for each in (encoder, loaded(Path("exported"))):
        for images in ("data", files, [Image.open(file) for file in files]):
            torch.testing.assert_close(each.embed(images), expected, rtol=0, atol=1e-5)


def test_a_checkpoint_without_an_encoder_is_one_line() -> None:
    for config in ({}, {"encoder": None}, {"encoder": []}):
        with pytest.raises(InputError, match="encoder"):
            encoder_of({"config": config, "state_dict": {}})


def test_words(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("corpus.txt").write_text("the king and the queen and the man and the woman\n" * 20)
    run = ["data=corpus", "data.path=corpus.txt", "trainer.accelerator=cpu", "logger=csv", "hydra.run.dir=run"]
    run += ["model.subsample=0"]
    run += ["encoder.num_features=8", "trainer.max_epochs=1"]
    assert called(commands.words, monkeypatch, *run) == 0
    found = contrast.load("run")
    assert isinstance(found, WordEmbeddings)
    assert set(found) == {"the", "king", "and", "queen", "man", "woman"}
    assert found.vectors.shape == (len(found), 8)
    assert torch.equal(found["king"], found.vectors[found.words.index("king")])
    assert "king" in found
    assert "emperor" not in found
    near = found.most_similar("king", k=3)
    assert near == nearest_words(found.vectors, found.words, "king", 3)
    unit = torch.nn.functional.normalize(found.vectors.double(), dim=1)
    man, king, woman = (unit[found.words.index(word)] for word in ("man", "king", "woman"))
    target = torch.nn.functional.normalize(king - man + woman, dim=0)
    expected = {word: float(unit[i] @ target) for i, word in enumerate(found) if word not in ("man", "king", "woman")}
    answers = found.analogy("man", "king", "woman")
    assert [word for word, _ in answers] == sorted(expected, key=lambda word: -expected[word])
    assert dict(answers) == pytest.approx(expected, abs=1e-5)
    with pytest.raises(InputError, match="'emperor' is none of the 6 words"):
        found.most_similar("emperor")
    with pytest.raises(InputError, match="'emperor' is none of the 6 words"):
        found["emperor"]
    keyed = pytest.importorskip("gensim.models") and found.to_keyed_vectors()
    assert keyed.most_similar("king", topn=3) == [(word, pytest.approx(value, abs=1e-5)) for word, value in near]
    assert (keyed.index_to_key, len(keyed.vectors)) == (list(found.words), len(found))  # and no row besides
    keyed.save_word2vec_format("keyed.txt")
    assert contrast.load("keyed.txt").words == found.words
    with pytest.raises(InputError, match="run on text"):
        contrast.load("run/checkpoints/last.ckpt")
    Path("run/vectors.safetensors").rename("mine.safetensors")
    again = contrast.load("mine.safetensors")
    assert isinstance(again, WordEmbeddings)
    assert again.words == found.words


def test_loading_needs_neither_lightning_nor_wandb(trained: Path) -> None:
    program = (
        "import sys, contrast; assert 'torch' not in sys.modules; "
        f"contrast.load({str(trained)!r}); "
        "print(sorted({'pytorch_lightning', 'wandb', 'sklearn', 'scipy', 'matplotlib', 'hydra'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("['hydra']", "[]")
