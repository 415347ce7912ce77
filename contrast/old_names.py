"""Names in the configurations of older runs and checkpoints, and what they are called today."""

from typing import Any

KEYS = {  # of a run's configuration; a name that is gone from its place is renamed in that place
    "views_together": "one_forward_pass",
    "key.asking": "num_queries",
    "key.answering": "num_keys",
    "head.noise": "num_noise",
    "model.limit": "max_pairs_per_row",
    "model.span": "chunk",
}

TARGETS = {  # a module or a function -> its place today
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
}


def current(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a run under today's names; one that has them already comes back as it is."""
    renamed = _with_targets(config)
    for old, new in KEYS.items():
        *path, name = old.split(".")
        node = renamed
        for key in path:
            node = node.get(key) if isinstance(node.get(key), dict) else {}
        if name in node:
            items = [(new if key == name else key, value) for key, value in node.items()]
            node.clear()
            node.update(items)
    return renamed


def _with_targets(value: Any, key: str = "") -> Any:
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
