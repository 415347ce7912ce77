"""Text in, vectors or a language model out: the heads and the sources of negatives of the images, on words."""

from contrast.words.language import LanguageModel
from contrast.words.model import WordVectors

__all__ = ["LanguageModel", "WordVectors"]
