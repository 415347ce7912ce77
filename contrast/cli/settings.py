"""What the primary configurations hold beside nodes with a `_target_`: the types and ranges of these values."""

from typing import Annotated, Literal

from pydantic import Field, with_config
from typing_extensions import NotRequired, TypedDict

Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what numpy accepts
Text = Annotated[str, Field(min_length=1)]


@with_config(extra="forbid")
class Checkpoints(TypedDict):
    """Arguments of `contrast.run.checkpoints.Checkpoints`."""

    every_n_epochs: NotNegative
    last_every_n_epochs: Positive
    every_n_steps: NotNegative


@with_config(extra="forbid")
class FrozenEvaluation(TypedDict):
    """conf/evaluation/default.yaml."""

    enabled: bool
    untrained: bool
    pixels: bool
    k: Positive
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    per_class: list[Positive]
    max_train: Positive | None
    max_test: Positive | None


@with_config(extra="forbid")
class WordEvaluation(TypedDict):
    """conf/evaluation/words.yaml."""

    files: list[Text]
    output: NotRequired[Text | None]
    pairs: Text | list[Text] | None
    analogies: Text | None
    restrict: Positive | None
    neighbours: list[Text]
    k: Positive
    max_train: NotRequired[int]  # debug=quick sets these of images, too
    max_test: NotRequired[int]


class Trainer(TypedDict):
    """Arguments of Lightning's Trainer whose range it does not check."""

    accumulate_grad_batches: Positive
    gradient_clip_val: Annotated[float, Field(gt=0)] | None
    log_every_n_steps: NotNegative


class Command(TypedDict):
    """What every command has."""

    name: Text | int
    seed: Seed
    metric: Text
    direction: Literal["maximize", "minimize"]
    trainer: Trainer


class Pretrain(Command):
    """conf/pretrain.yaml."""

    batch_size: Positive
    same_label: Literal["negative", "positive", "ignored"]
    probe_images: Positive
    micro_batch: Positive | None
    activation_checkpointing: bool | None  # absent from older runs
    report: bool | None  # absent from older runs
    one_forward_pass: bool
    workers: Annotated[int, Field(ge=0, le=1024)]  # processes
    checkpoints: Checkpoints
    evaluation: FrozenEvaluation


class Words(Command):
    """conf/words.yaml."""

    checkpoints: Checkpoints
    evaluation: WordEvaluation | None


class Evaluate(Command):
    """conf/evaluate.yaml."""

    checkpoint: Text
    label_fraction: Annotated[float, Field(gt=0, le=1)] | None
    labels_per_class: Positive | None
    batch_size: Positive
    workers: Annotated[int, Field(ge=0, le=1024)]  # processes
    feature_cache: Text


class Embed(TypedDict):
    """conf/embed.yaml."""

    checkpoint: Text
    out: Text
    split: Text | None
    neighbours: NotNegative
    batch_size: Positive
    workers: Annotated[int, Field(ge=0, le=1024)]  # processes


class Export(TypedDict):
    """conf/export.yaml."""

    checkpoint: Text
    format: Literal["safetensors", "torch", "onnx", "hub"]
    out: Text


class Report(TypedDict):
    """conf/report.yaml."""

    checkpoint: Text
    out: Text | None
    images: Annotated[int, Field(ge=2)]
    seed: Seed
    workers: Annotated[int, Field(ge=0, le=1024)]  # processes
