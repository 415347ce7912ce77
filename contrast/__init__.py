"""contrast: contrastive learning, from noise-contrastive estimation to InfoNCE, in one vocabulary.

    contrast.load(WHAT)                    an encoder of images, word vectors or a language model: of a run, a file, ...
    contrast.words.train(TEXT)             word vectors of a file or of sentences
    contrast.pretrain("method=moco", ...)  what the command contrast-pretrain does; also pretrain_words, evaluate,
                                           embed, export and report

Each is imported when it is first used, so that `import contrast` takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contrast import words
    from contrast.cli.python import embed, evaluate, export, pretrain, pretrain_words, report
    from contrast.deploy.load import load

__version__ = "0.1.0"
__all__ = ["__version__", "embed", "evaluate", "export", "load", "pretrain", "pretrain_words", "report", "words"]


def __getattr__(name: str) -> object:
    if name == "words":
        return import_module("contrast.words")
    if name.startswith("_") or name not in __all__:
        raise AttributeError(f"module 'contrast' has no attribute '{name}'")
    return getattr(import_module("contrast.deploy.load" if name == "load" else "contrast.cli.python"), name)


def __dir__() -> list[str]:
    return __all__
