"""Facts of the data and of the model, with which the parts of a configuration are called.

A part of a configuration may need an argument that depends on the data or the model. `contrast.training.build` calls
the part with the facts that its signature names; a part within a part needs `_partial_: true` for this. Only parameters
without a default value are filled, and a value in the YAML file takes precedence:

    dim                 D, dimensions of a query: those of the projections, or of a text encoder's features
    in_features         the same number, for a predictor
    num_ids             number of different ids: of the classes with same_label=positive and on text, else of the images
    counts              [num_ids] int64, how often each id occurs
    words               [num_ids] of text, the word of each id
    normalize, encoder, projector   the trained modules, for a key encoder that copies them
    vocabulary, length  of captions: number of token ids, and number of tokens of a caption
    images              the training images, for a teacher; for a callback the labelled ones
    corpus              the encoded text, for a callback
    run_dir, name, group, config    for a logger: the run folder, the names of run and sweep (or None), all settings
"""

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from contrast.errors import InputError

CAPTIONS = ("vocabulary", "length")  # facts that only a data set with captions has
NO_CAPTIONS = (
    "needs captions, and this data set has none: data=captions, data=digits_words; data.captions=true reads those of "
    "data=webdataset, and data.caption_column=NAME those of data=hf"
)


def complete(part: object, facts: Mapping[str, object]) -> Any:
    """Calls a partial with the facts that it needs, after the partials among its own arguments; returns others as is.

    Raises InputError if a parameter without a default has no value, or if the partial has unknown arguments.
    """
    if not isinstance(part, functools.partial):
        return part
    given = {name: complete(value, facts) for name, value in part.keywords.items()}
    signature, called = inspect.signature(part.func), getattr(part.func, "__name__", part.func)
    required = [
        name
        for name, parameter in signature.parameters.items()
        if parameter.default is parameter.empty and name not in given
    ]
    if any(name in CAPTIONS and name not in facts for name in required):
        raise InputError(f"{called} {NO_CAPTIONS}")
    given |= {name: facts[name] for name in required if name in facts}
    try:
        signature.bind(*part.args, **given)
    except TypeError as error:
        raise InputError(f"{called}: {error}; it takes {', '.join(signature.parameters)}") from error
    return part.func(*part.args, **given)
