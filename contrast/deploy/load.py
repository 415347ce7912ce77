"""`contrast.load`: the encoder of a run, a checkpoint or an exported folder; word vectors or a language model of a run.

N images or texts, C channels, H x W pixels, F features, D dimensions of the common space of images and captions.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from contrast.config.old_names import current
from contrast.config.trust import Config, Trust
from contrast.data.images.decode import decode, to_pixels
from contrast.data.images.folder import files_below
from contrast.data.images.image_set import UNLABELLED, ImageFiles, Images
from contrast.data.text.tokenizer import tokenizer_of
from contrast.data.text.vectors import BINARY, FLORET, PACKED, SAFE, TEXT
from contrast.deploy.language import NextWordModel, is_language_model, language_model
from contrast.deploy.words import WordEmbeddings
from contrast.encoders.pretrained import checkpoint_file, is_own
from contrast.encoders.weights import load_encoder, read
from contrast.errors import InputError, named_errors, need
from contrast.evaluation.encoder import VECTORS, Frozen, Towers, from_checkpoint, subwords_of, word_vectors
from contrast.evaluation.features import batch_features, device_of, evaluating, features
from contrast.network import look_for_the_hub

CONFIG, WEIGHTS, MODEL = "config.json", "encoder.safetensors", "model.safetensors"  # of an exported folder

OneImage: TypeAlias = str | os.PathLike[str] | Image.Image | np.ndarray
AnyImages: TypeAlias = OneImage | Tensor | Images | ImageFiles | Iterable[object]


class ImageEncoder(nn.Module):
    """A trained encoder of images, in eval mode: uint8 pixels [N, C, H, W], or floats in 0..1, -> features [N, F].

    num_features  F
    image_size    S, the side in pixels of the images that it was trained on
    channels      C: 3 for RGB, 1 for greyscale
    range         values of black and white in files of more than 8 bits, as `data.range` of the run; None: not given
    fast_jpeg     whether large JPEGs are decoded at a reduced size, as `data.fast_jpeg` of the run
    backbone      the network without the normalisation of its input; the keys of its state dict are torchvision's or
                  timm's own
    config        the configuration of the run, in plain values
    """

    def __init__(self, model: Frozen, config: Config) -> None:
        super().__init__()
        self.model, self.config = model, dict(config)
        self.num_features = model.num_features
        self.image_size, self.channels = int(config["images"]["size"]), int(config["images"]["channels"])
        # if all images of the data set have one size that is not square, training and evaluation do not crop them
        self.crop = self.image_size if config["images"].get("square", True) else None
        data = config.get("data") or config  # an exported folder says nothing else of the data
        data = data if isinstance(data, Mapping) else {}
        self.range: Sequence[float] | None = data.get("range")
        self.fast_jpeg = bool(data.get("fast_jpeg"))
        self.eval()

    @property
    def backbone(self) -> nn.Module:
        return self.model.encoder

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(pixels)

    def preprocess(self, image: OneImage) -> Tensor:
        """An image as pixels for the encoder, uint8 [C, S, S], read in the same way as in training and evaluation.

        image  the path of a file, a Pillow image, or a uint8 array [H, W, C] with C = 1, 3 or 4, or [H, W]

        The shorter side is resized to S (bilinear, antialiased) and the centre square is kept. An image of that size
        is not changed. With `fast_jpeg`, only files are decoded at a reduced size, and not what Pillow has opened.
        Raises InputError if the image cannot be read.
        """
        if isinstance(image, str | os.PathLike):
            return torch.from_numpy(decode(Path(image), self.channels, self.crop, self.range, self.fast_jpeg).copy())
        with named_errors((TypeError, ValueError), "this is no image to embed"):
            if not isinstance(image, Image.Image):
                image = Image.fromarray(np.squeeze(image, 2) if image.ndim == 3 and image.shape[2] == 1 else image)
            return torch.from_numpy(to_pixels(image, self.channels, self.crop, self.range).copy())

    def embed(self, images: AnyImages, batch_size: int = 512, progress: bool = True, workers: int = 0) -> Tensor:
        """Features of all images in order, [N, F] float32 on the CPU, equal to those of the evaluation.

        images    one of: a list of paths, Pillow images and arrays [H, W, C], also mixed; uint8 arrays [N, H, W, C] or
                  [N, H, W]; a tensor [N, C, H, W], uint8 or floats in 0..1, which is neither resized nor cropped; the
                  path of a folder, whose images are taken in the order of their names; a data set of this library, of
                  torch or of Hugging Face, whose items are images, begin with one, or have one under "image"
        progress  show a progress bar after one second
        workers   processes that decode the images of a folder or of a list of paths

        Images other than tensors are read as in `preprocess`. The network runs on the device of its parameters, which
        `encoder.to("cuda")` changes.
        """
        return self._features(self, images, batch_size, progress, workers)

    def encode_image(self, images: AnyImages, batch_size: int = 512, progress: bool = True, workers: int = 0) -> Tensor:
        """Vectors of images in the common space with captions, [N, D] float32 of length 1; arguments as `embed`.

        Raises InputError for an encoder that was trained without captions.
        """
        return F.normalize(self._features(self._towers().image, images, batch_size, progress, workers), dim=1)

    def encode_text(self, texts: str | Iterable[str], batch_size: int = 512) -> Tensor:
        """Vectors of texts in the common space with images, [N, D] float32 of length 1: dot products are cosines.

        Raises InputError for an encoder that was trained without captions.
        """
        towers, facts = self._towers(), self.config["text"]
        texts = [texts] if isinstance(texts, str) else list(texts)
        ids = tokenizer_of(facts["tokenizer"]).encode(texts, facts["length"])  # [N, L]
        with evaluating(self):
            vectors = batch_features(towers.text, ids.split(batch_size), len(texts), device_of(self), "texts")
        return F.normalize(vectors, dim=1)

    def _towers(self) -> Towers:
        if not isinstance(self.model, Towers):
            raise InputError("this encoder was trained without captions: only method=clip and method=siglip have texts")
        return self.model

    def _features(
        self, encoder: Callable[[Tensor], Tensor], images: AnyImages, batch_size: int, progress: bool, workers: int
    ) -> Tensor:
        listed = images if isinstance(images, Tensor | Images | ImageFiles) else self._listed(images)
        device = device_of(self)
        with evaluating(self):
            if isinstance(listed, Images) or (isinstance(listed, ImageFiles) and self.crop is not None):
                return features(encoder, listed, batch_size, device, workers=workers, progress=progress)
            batches = listed.split(batch_size) if isinstance(listed, Tensor) else self._batches(listed, batch_size)
            return batch_features(encoder, batches, len(listed), device, progress=progress)

    def _listed(self, images: OneImage | Iterable[object]) -> ImageFiles | Sequence[object]:
        """Paths as a data set; a single image, and an iterable without length or indices, as a list."""
        if isinstance(images, str | os.PathLike) and Path(images).is_dir():
            return self._read_alike(files_below(Path(images)))
        if isinstance(images, str | os.PathLike | Image.Image):
            images = [images]
        elif not hasattr(images, "__len__") or not hasattr(images, "__getitem__"):
            images = list(images)
        if not isinstance(images, list | tuple) or not all(isinstance(each, str | os.PathLike) for each in images):
            return cast(Sequence[object], images)
        names, unlabelled = [str(each) for each in images], torch.full((len(images),), UNLABELLED)
        return self._read_alike(ImageFiles(Path(), names, unlabelled, ()))

    def _read_alike(self, files: ImageFiles) -> ImageFiles:
        """The files, read as those of the training were."""
        return replace(files, size=self.image_size, channels=self.channels, range=self.range, fast_jpeg=self.fast_jpeg)

    def _batches(self, images: ImageFiles | Sequence[object], batch_size: int) -> Iterable[Tensor]:
        """The pixels of a sequence of images, [batch_size, C, H, W] uint8 at a time."""
        if isinstance(images, ImageFiles):
            whole = replace(images, size=0)
            one = lambda row: torch.from_numpy(whole.pixels(row).copy())  # noqa: E731
        else:
            one = lambda row: self.preprocess(_image_of(images[row]))  # noqa: E731
        for start in range(0, len(images), batch_size):
            pixels = [one(row) for row in range(start, min(start + batch_size, len(images)))]
            if len({each.shape for each in pixels}) > 1:
                raise InputError(f"the images differ in size: {sorted({tuple(each.shape[1:]) for each in pixels})}")
            yield torch.stack(pixels)


class ImageClassifier(ImageEncoder):
    """A fine-tuned encoder with its linear classifier of K classes.

    classes     their names
    classifier  [N, F] -> logits [N, K]
    """

    def __init__(self, model: Frozen, classifier: nn.Linear, config: Config) -> None:
        super().__init__(model, config)
        self.classifier, self.classes = classifier, tuple(config["classes"])

    def probabilities(
        self, images: AnyImages, batch_size: int = 512, progress: bool = True, workers: int = 0
    ) -> Tensor:
        """The probability of every class for each image, [N, K] float32; arguments as `embed`."""

        def logits(pixels: Tensor) -> Tensor:
            return self.classifier(self(pixels))

        return self._features(logits, images, batch_size, progress, workers).softmax(dim=1)

    def predict(self, images: AnyImages, batch_size: int = 512, progress: bool = True, workers: int = 0) -> list[str]:
        """The most probable class of each image, N names; arguments as `embed`."""
        best = self.probabilities(images, batch_size, progress, workers).argmax(dim=1)
        return [self.classes[number] for number in best.tolist()]


def _image_of(item: object) -> OneImage:
    """The image in an item of a data set: (image, label), {"image": image, ...}, or the image itself."""
    if isinstance(item, Mapping):
        return item["image"]
    return cast(OneImage, item[0] if isinstance(item, tuple | list) else item)


def load(what: str | os.PathLike[str], trust: Trust = False) -> ImageEncoder | WordEmbeddings | NextWordModel:
    """The trained encoder of images or language model, in eval mode on the CPU, or the word vectors in `what`.

    what   a run folder, a checkpoint, a folder or a file that `contrast-export` wrote (safetensors or hub), a
           repository of the Hugging Face Hub ("hf:OWNER/NAME"), or a file of word vectors (.txt, .vec, .bin,
           .safetensors)
    trust  what its configuration may call besides the parts of this library: see `contrast.config.trust`

    No code in the file is run, and only "hf:" downloads anything. Raises InputError for anything else.
    """
    name = os.fspath(what)
    if name.startswith("hf:"):
        return encoder_of(exported(downloaded(name.removeprefix("hf:"))), trust)
    path = Path(name).expanduser()
    alone = path.suffix in SAFE and not (path.parent / CONFIG).is_file()  # without a config.json
    if (path / VECTORS).is_file() or path.suffix in (*TEXT, *BINARY, PACKED, FLORET) or alone:
        return WordEmbeddings(*word_vectors(path), subwords_of(path))
    saved = saved_model(path)
    return language_model(saved, trust) if is_language_model(saved) else encoder_of(saved, trust)


def load_images(
    what: str | os.PathLike[str], trust: Trust = False, instead: str = "contrast.load reads it"
) -> ImageEncoder:
    """As `load`, of an encoder of images. InputError for anything on text says what to do `instead`."""
    encoder = load(what, trust)
    if not isinstance(encoder, ImageEncoder):
        raise InputError(f"{what} is of text, and this takes an encoder of images: {instead}")
    return encoder


def saved_model(what: str | os.PathLike[str]) -> Config:
    """The contents of the checkpoint of a run on images or of a language model, or of an exported folder.

    `config` and `state_dict`, and `words`, the vocabulary of a language model.
    """
    path = Path(what).expanduser()
    if (path / CONFIG).is_file():
        return exported(path)
    if path.suffix in SAFE and (path.parent / CONFIG).is_file():
        return exported(path.parent)
    saved = read(checkpoint_file(path))
    if not is_own(saved):
        raise InputError(f"{path} is no checkpoint of this library: it does not say what its weights belong to")
    if saved["config"].get("model") is not None and not is_language_model(saved):
        raise InputError(f"{path} is of a run on text: word vectors are saved at its end")
    return {key: saved.get(key) for key in ("config", "state_dict", "words")}


def exported(folder: Path) -> Config:
    """What `contrast-export` wrote to `folder`, in the form of a checkpoint."""
    kinds = OSError, ValueError, KeyError, TypeError, RuntimeError  # also of nesting without end, and of torch
    with named_errors(kinds, f"{folder} holds no exported encoder"):
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise TypeError(f"{CONFIG} holds no mapping")
        normalize = {f"normalize.{key}": torch.tensor(config[key]).view(1, -1, 1, 1) for key in ("mean", "std")}
    if not (folder / MODEL).is_file() and not (folder / WEIGHTS).is_file():
        found = ", ".join(sorted(path.name for path in folder.iterdir() if path.name != CONFIG)) or "nothing"
        raise InputError(f"{folder} holds {found} beside {CONFIG}: only format=safetensors and format=hub can be read")
    if (folder / MODEL).is_file():  # format=hub saves every part of the model under its own name
        return {"config": config, "state_dict": read(folder / MODEL)}
    state = {f"encoder.{key}": value for key, value in read(folder / WEIGHTS).items()}
    return {"config": {**config, "text": None}, "state_dict": {**state, **normalize}}


def encoder_of(saved: Config, trust: Trust = False) -> ImageEncoder:
    """The encoder of a checkpoint, with its classifier if it was fine-tuned.

    It is not compiled, even if it was for training: compilation takes minutes and pays off only in long training.
    """
    config = current(saved["config"])
    if isinstance(node := config.get("encoder"), Mapping):  # of anything else `from_checkpoint` says what is missing
        config["encoder"] = {key: value for key, value in node.items() if key != "compile"}
    model = from_checkpoint({**saved, "config": config}, trust=trust)
    if config.get("classes") is None:
        return ImageEncoder(model, config)
    if not isinstance(config["classes"], list | tuple):
        raise InputError(f"the checkpoint's classes are no list of names but {type(config['classes']).__name__}")
    classifier = nn.Linear(model.num_features, len(config["classes"]))
    load_encoder(classifier, saved, prefix="classifier.")
    return ImageClassifier(model, classifier, config)


def downloaded(repository: str) -> Path:
    """The local folder of a repository of the Hugging Face Hub, which is downloaded unless it is cached."""
    need("huggingface_hub", "export", f"hf:{repository}")
    from huggingface_hub import snapshot_download

    look_for_the_hub()
    with named_errors((OSError, ValueError), f"hf:{repository} cannot be had"):
        return Path(snapshot_download(repository, allow_patterns=[CONFIG, MODEL, WEIGHTS]))
