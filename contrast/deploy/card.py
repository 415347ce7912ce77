"""What a run says of its encoder: the model card in Markdown, the parts of the training, the command, the metrics."""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence

from contrast.config.trust import PATHS, Config
from contrast.deploy.export import torchvision_hint
from contrast.deploy.load import ImageEncoder
from contrast.evaluation.report import metric_rows, recall_rows, wilson
from contrast.network import without_secrets

PARTS = ("encoder", "projector", "predictor", "views", "key", "negatives", "head", "optimizer", "scheduler")
NUMBERS = ("batch_size", "same_label", "micro_batch", "seed")

CARD = """\
---
library_name: contrast
pipeline_tag: image-feature-extraction
tags:
- contrastive-learning
- pytorch_model_hub_mixin
---
# {name}

An encoder of images of {channels} x {size} x {size} to {features} features, trained by a contrastive loss.

```python
import contrast

encoder = contrast.load("hf:OWNER/NAME")  # or the path of this folder
features = encoder.embed(["a.jpg", "b.jpg"])  # [2, {features}]
```

## Training

| | |
|---|---|
"""


def model_card(encoder: ImageEncoder, run: Config) -> str:
    """The model card in Markdown: what the encoder is, how to use it, how it was trained, and its metrics."""
    name, size, channels = encoder.config.get("name", "encoder"), encoder.image_size, encoder.channels
    text = CARD.format(name=name, channels=channels, size=size, features=encoder.num_features)
    text += "".join(f"| {key} | {value} |\n" for key, value in training(encoder.config))
    if command := shown_command(run.get("overrides", ())):
        text += f"\n```bash\n{command}\n```\n"
    if packages := run.get("packages"):
        text += "\nVersions: " + ", ".join(f"{key} {value}" for key, value in sorted(packages.items())) + ".\n"
    if rows := list(measured(run.get("metrics", {}), encoder.config)):
        text += "\n## Evaluation\n\n" + "\n".join(rows) + "\n"
    if hint := torchvision_hint(encoder):
        text += f"\n## Weights\n\nThe keys below `encoder.` are torchvision's; {hint}.\n"
    return text


def training(config: Config) -> Iterator[tuple[str, str]]:
    """Rows of the card about training; an exported folder contains only a part of the run's configuration."""
    if config.get("data"):
        yield "data", shown({key: value for key, value in config["data"].items() if key not in PATHS})
    yield "training images", f"{config['images'].get('train', 'unknown')}"
    for key in PARTS:
        if config.get(key):
            yield key, shown(config[key])
    for key in NUMBERS:
        if config.get(key) is not None:
            yield key, f"{config[key]}"
    for key in ("max_epochs", "max_steps", "precision"):
        if config.get("trainer", {}).get(key) is not None:
            yield key, f"{config['trainer'][key]}"


def shown(node: object) -> str:
    """A node of a configuration written as a call: `InfoNCE(temperature=0.2)`."""
    if isinstance(node, Mapping):
        given = ", ".join(
            f"{key}={shown(value)}" for key, value in node.items() if not key.startswith("_") and value is not None
        )
        return f"{str(node['_target_']).rpartition('.')[2]}({given})" if "_target_" in node else f"({given})"
    return f"[{', '.join(map(shown, node))}]" if isinstance(node, list) else without_folders(str(node))


def shown_command(overrides: Sequence[str]) -> str:
    """The command of the run, without the folders of the machine; empty if it is not known."""
    words = []
    for word in overrides:
        key, _, value = word.partition("=")
        if key != "hydra.run.dir":
            words.append(shlex.quote(f"{key}={without_folders(value)}"))
    return " ".join(["contrast-pretrain", *words]) if words else ""


def without_folders(text: str) -> str:
    """Without the folders of absolute paths, which are those of a machine, and without the secrets of URLs.

    Names such as hf:OWNER/NAME stay.
    """
    return re.sub(r"(?<![\w:/.~-])(~|\.\.?)?/([^/,\]\s]+/)*", "", without_secrets(text))


def measured(metrics: Mapping[str, float], config: Config) -> Iterator[str]:
    """The metrics as a table, with 95 % intervals over the test images if their number is known."""
    count = config["images"].get("test")

    def cell(key: str) -> str:
        if key not in metrics:
            return "-"
        low, high = wilson(metrics[key], count or 1)
        return f"{metrics[key]:.4f}" + (f" ({low:.4f} to {high:.4f})" if count else "")

    heads, rows = metric_rows(metrics)
    if heads:
        yield f"| | {' | '.join(heads.values())} |"
        yield f"|---|{'---:|' * len(heads)}"
        for key, label in rows.items():
            yield f"| {label} | {' | '.join(cell(prefix + key) for prefix in heads)} |"
        if count:
            yield ""
            yield f"95 % intervals over the {count:,} test images; they do not contain the variation between seeds."
    for label, recalls in recall_rows(metrics).items():
        yield ""
        yield f"{label}: " + ", ".join(f"recall@{k} {value:.4f}" for k, value in recalls.items())
