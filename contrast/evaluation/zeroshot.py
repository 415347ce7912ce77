"""Zero-shot classification: which name of a class is most similar to an image, without a training image.

N images, K classes, T templates, L tokens, D dimensions.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from contrast.data.text.tokenizer import tokenizer_of
from contrast.errors import InputError, named_errors
from contrast.evaluation.encoder import Towers
from contrast.evaluation.features import EvaluationData
from contrast.evaluation.retrieval import distinct, in_common_space, recall
from contrast.losses.similarity import unit


def zeroshot(
    data: EvaluationData, templates: Sequence[str] = ("a photo of a {}.",), classes: Sequence[str] | str | None = None
) -> dict[str, float]:
    """The protocol: top1, and top5 with more than five classes, of the labelled test images (Radford et al. 2021, 3.1).

    templates  texts with {} in place of the name. The vector of a class is the mean of the unit vectors of its texts
    classes    names in the order of the data set's classes: a list, or a file with a name on each line; None: those of
               the data set

    A tie counts against an image. Raises InputError without an encoder of captions, for templates without {}, another
    number of names than classes, and two classes whose texts are the same tokens, such as two unknown words.
    """
    if not isinstance(data.encoder, Towers):
        raise InputError("zero-shot classification needs a checkpoint with an encoder of captions (clip, siglip)")
    if not templates or any("{}" not in template for template in templates):
        raise InputError(f"templates are texts with {{}} in place of the name of a class, not {list(templates)}")
    names = list(data.test.classes if classes is None else read_names(classes) if isinstance(classes, str) else classes)
    if len(names) != len(data.test.classes):
        raise InputError(f"{len(names)} names for the {len(data.test.classes)} classes of the data set")
    facts = data.config["text"]
    texts = [template.replace("{}", name) for name in names for template in templates]
    tokens = tokenizer_of(facts["tokenizer"]).encode(texts, facts["length"])  # [K T, L]
    first, same = distinct(tokens.unflatten(0, (len(names), -1)).flatten(1).numpy())
    if len(first) < len(names):
        one, two = (same == same.bincount().argmax()).nonzero().flatten()[:2].tolist()
        raise InputError(f"'{names[one]}' and '{names[two]}' are the same tokens: give names that the captions have")
    pictures, vectors = in_common_space(data, data.test, tokens)  # [N, D], [K T, D]
    of_class = unit(vectors).unflatten(0, (len(names), -1)).mean(dim=1)  # [K, D]
    pairs = torch.stack([torch.arange(len(pictures)), data.test.labels.cpu()], dim=1)
    shares = recall(pictures, of_class, pairs, (1, 5) if len(names) > 5 else (1,))
    return {f"top{k}": share for k, share in shares.items()}


def read_names(file: str) -> list[str]:
    """The lines of a file that are not empty. Raises InputError if it cannot be read."""
    with named_errors((OSError, UnicodeDecodeError), f"protocol.classes={file} cannot be read"):
        lines = Path(file).expanduser().read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip()]
