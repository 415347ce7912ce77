"""Names in the configurations of older runs and checkpoints, and what they are called today."""

from typing import Any

from contrast.errors import InputError

KEYS = {  # of a run's configuration: the old key -> its last name today, in the same section
    "views_together": "one_forward_pass",
    "key.asking": "num_queries",
    "key.answering": "num_keys",
    "head.noise": "num_noise",
    "model.limit": "max_pairs_per_row",
    "model.span": "chunk",
}

TARGETS = {  # the old name of a module or a function -> its name today
    "contrast.callbacks": "contrast.training.callbacks",
    "contrast.data.captions": "contrast.data.images.captions",
    "contrast.data.corpus": "contrast.data.text.corpus",
    "contrast.data.digits": "contrast.data.images.digits",
    "contrast.data.docstrings": "contrast.data.text.docstrings",
    "contrast.data.folder": "contrast.data.images.folder",
    "contrast.data.torchvision_sets": "contrast.data.images.torchvision_sets",
    "contrast.finetune": "contrast.training.finetune",
    "contrast.logs.tensorboard": "contrast.run.loggers",
    "contrast.logs.wandb_run": "contrast.run.loggers",
    "contrast.protocols.knn": "contrast.evaluation.knn.knn",
    "contrast.protocols.linear": "contrast.evaluation.linear_probe.linear",
    "contrast.protocols.retrieval": "contrast.evaluation.retrieval.retrieval",
    "contrast.protocols.words": "contrast.evaluation.words.words",
    "contrast.teacher": "contrast.training.teacher",
}


def current(config: dict[str, object]) -> dict[str, Any]:
    """The configuration of a run under today's names; other names stay as they are."""
    try:
        renamed = {name: _with_targets(item, name) for name, item in config.items()}
    except RecursionError as error:
        raise InputError("this is no configuration of a run: it is nested too deeply") from error
    for old, new in KEYS.items():
        *path, name = old.split(".")
        node = renamed
        for key in path:
            inner = node.get(key)
            node = inner if isinstance(inner, dict) else {}
        if name in node:
            items = [(new if key == name else key, value) for key, value in node.items()]
            node.clear()
            node.update(items)
    return renamed


def _with_targets(value: object, key: str = "") -> object:
    """A copy of the tree, with every `_target_` under today's name."""
    if isinstance(value, dict):
        return {name: _with_targets(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_with_targets(item) for item in value]
    if key == "_target_" and isinstance(value, str):
        for old, new in TARGETS.items():
            if f"{value}.".startswith(f"{old}."):
                return new + value.removeprefix(old)
    return value
