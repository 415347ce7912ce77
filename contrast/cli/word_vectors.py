"""`contrast.words.train`: word vectors in one call, trained as `contrast-words` trains them."""

import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

from contrast.cli.python import pretrain_words
from contrast.data.text.corpus import corpus
from contrast.deploy.words import WordEmbeddings
from contrast.errors import InputError
from contrast.run.errors import nearest
from contrast.run.folder import quoted
from contrast.words.model import WordVectors

Setting: TypeAlias = str | int | float | bool | os.PathLike[str] | list[str] | None
Sentence: TypeAlias = str | Iterable[str] | Mapping[str, object]

GROUPS = ("output", "encoder")  # settings that are the names of options: output=nce, encoder=subwords
# settings whose names here, or in gensim, are not those of an argument of `corpus` or of `WordVectors`
NAMES = {
    "dim": "encoder.num_features",
    "vector_size": "encoder.num_features",
    "epochs": "trainer.max_epochs",
    "alpha": "model.lr",
    "min_alpha": "model.lr_end",
    "sample": "model.subsample",
    "min_n": "encoder.minn",
    "max_n": "encoder.maxn",
    "bucket": "encoder.buckets",
    "negative": "table.num_noise",
    "ns_exponent": "negatives.sampler.power",
    "power": "negatives.sampler.power",
    **{name: f"table.{name}" for name in ("draws", "num_noise", "std")},
    **{name: f"encoder.{name}" for name in ("minn", "maxn", "buckets", "hashes")},
    **{name: name for name in ("seed", "name", *GROUPS)},
}
OF_NGRAMS = {name for name, key in NAMES.items() if key.startswith("encoder.")} - {"dim", "vector_size"}
# gensim's names whose values differ from those of the setting here
INSTEAD = {
    "sg": 'method="skipgram" is sg=1, and method="cbow" is sg=0',
    "hs": 'output="hierarchical_softmax" is hs=1, and output="negative_sampling" is hs=0',
}
IN_RUN = ("evaluation.files=", "evaluation.output=")
PARTS: dict[str, Callable[..., object]] = {"data": corpus, "model": WordVectors}
FACTS = {"path", "encoder", "negatives", "head", "counts", "words", "config"}  # which a run gives itself


def train(
    text: str | os.PathLike[str] | Iterable[Sentence | os.PathLike[str]],
    *overrides: str,
    run_dir: str | os.PathLike[str] | None = None,
    **settings: Setting,
) -> WordEmbeddings:
    """Trains word vectors on `text` as `contrast-words` does, in this process; the numbers are those of the command.

    text       the path of a file or a folder, a glob, or a list of `Path`s, as `data.path`; or the sentences: strings,
               lists of words, or mappings with a text under `column`, such as a data set of Hugging Face
    settings   arguments of `contrast.data.text.corpus.corpus` and of `contrast.words.WordVectors` by their names
               (min_count=5, window=5, lr=0.025, method="cbow", workers=4, ...), and dim=100, epochs=5, seed=0, output=
               "hierarchical_softmax", num_noise=5, power=0.75, encoder="subwords" with minn=3, maxn=6, buckets=2000000
               or "floret" with hashes=2, too; gensim's names vector_size, alpha, sample, negative, ns_exponent, min_n,
               max_n and bucket mean the same
    overrides  anything else, as words of the command line: "head.temperature=2"
    run_dir    a folder that keeps the run, with its checkpoint; None: only the vectors are kept, in memory. A run on
               sentences does not keep their text, so that `resume` cannot continue it; one on a path can be resumed.
               A second run beside RUN goes to RUN_2

    Raises InputError for what the command would refuse, an unknown setting, and sentences that hold no text.
    """
    if isinstance(text, Mapping | bytes) or not isinstance(text, str | os.PathLike | Iterable):
        what = f" of {', '.join(map(str, text))}: give one of these" if isinstance(text, Mapping) else ""
        raise InputError(f"a text is a path or sentences, not {type(text).__name__}{what}")
    lost = [word for word in overrides if word.lstrip("+").startswith(IN_RUN) and not word.endswith(("=null", "=[]"))]
    if run_dir is None and lost:
        raise InputError(f"{lost[0]} is a file in the run folder, which is kept with run_dir only")
    has_ngrams = "encoder" in settings or any(word.startswith("encoder=") for word in overrides)
    if not has_ngrams and (of_ngrams := OF_NGRAMS & settings.keys()):
        raise InputError(f'{min(of_ngrams)} is a setting of n-grams: encoder="subwords" or encoder="floret"')
    with TemporaryDirectory(prefix="contrast-words-") as scratch:
        is_list = isinstance(text, list) and text and all(isinstance(each, os.PathLike) for each in text)
        if not (isinstance(text, str | os.PathLike) or is_list):
            file = Path(scratch) / "sentences.txt"
            if write_sentences(file, text, str(settings.pop("column", "text"))):
                settings = {"tokenizer": "spaces", **settings}
            text = file
        words = ["data=corpus", "logger=none", f"data.path={literal(text)}"]
        words += [f"{'' if key in GROUPS else '++'}{key}={literal(value)}" for key, value in keys(settings)]
        return pretrain_words(*words, *overrides, run_dir=run_dir or Path(scratch) / "run").words


def keys(settings: Mapping[str, Setting]) -> Iterator[tuple[str, Setting]]:
    """The key of the configuration of each setting; InputError for an unknown one."""
    known = {name: f"{part}.{name}" for part, made in PARTS.items() for name in inspect.signature(made).parameters}
    known = {name: key for name, key in known.items() if name not in FACTS} | NAMES
    given: dict[str, str] = {}
    for name, value in settings.items():
        if name in INSTEAD:
            raise InputError(f"{name} is a setting of gensim: {INSTEAD[name]}")
        if name not in known:
            raise InputError(f"{name}: no setting of word vectors{nearest(name, known)}; known are {', '.join(known)}")
        if (other := given.setdefault(known[name], name)) != name:
            raise InputError(f"{other} and {name} are one setting: give one of them")
        yield known[name], value


def literal(value: object) -> str:
    """A value as Hydra's command line writes it."""
    if isinstance(value, list):
        return f"[{','.join(map(literal, value))}]"
    if isinstance(value, str | os.PathLike):
        return quoted(os.fspath(value))
    return "null" if value is None else str(value).lower()


def write_sentences(path: Path, sentences: Iterable[object], column: str) -> bool:
    """Writes a sentence a line; returns whether they are lists of words, which are to be split at spaces only."""
    kinds = set()
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for number, sentence in enumerate(sentences, start=1):
            if isinstance(sentence, Mapping):
                if not isinstance(sentence.get(column), str | list | tuple):
                    raise InputError(f"sentence {number} has no text in the column '{column}': {', '.join(sentence)}")
                sentence = sentence[column]
            kinds.add(isinstance(sentence, str))
            if not isinstance(sentence, Iterable) or isinstance(sentence, bytes):
                kind = type(sentence).__name__
                raise InputError(f"sentence {number} is of type {kind}, neither a string nor a list of words")
            words = [sentence] if isinstance(sentence, str) else [str(word) for word in sentence]
            if wrong := [word for word in words if word.split() != [word] and words[0] is not sentence]:
                raise InputError(f"sentence {number}: the word '{wrong[0]}' is empty or has a space in it")
            line = " ".join(" ".join(words).splitlines())
            file.write(f"{line}\n")
    if not kinds:
        raise InputError("there are no sentences to train on")
    if len(kinds) > 1:
        raise InputError("some sentences are strings and others lists of words: all must be of one kind")
    return kinds == {False}
