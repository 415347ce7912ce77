"""Text in, vectors or a language model out: the heads and the sources of negatives of the images, on words.

`contrast.words.train(TEXT)` trains word vectors. It does what a command does, so it is imported when it is first used:
the commands stand above this folder.
"""

from importlib import import_module

from contrast.words.language import LanguageModel
from contrast.words.model import WordVectors

__all__ = ["LanguageModel", "WordVectors", "train"]


def __getattr__(name: str) -> object:
    if name != "train":
        raise AttributeError(f"module 'contrast.words' has no attribute '{name}'")
    return import_module("contrast.cli.word_vectors").train
