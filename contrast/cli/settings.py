"""What the primary configurations hold beside nodes with a `_target_`: the types and ranges of these values."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, with_config
from typing_extensions import NotRequired, TypedDict

Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what numpy accepts
Workers = Annotated[int, Field(ge=0, le=1024)]  # processes
Text = Annotated[str, Field(min_length=1)]
Part = dict[str, object]  # checked by the signature of its `_target_`


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
    neighbours: list[Text | int]  # [10,150] are the words 10 and 150
    k: Positive
    max_train: NotRequired[int]  # debug=quick sets these of images, too
    max_test: NotRequired[int]


def unless_of_images(evaluation: object) -> object:
    """None for what debug=quick alone sets, where there are no word vectors to evaluate."""
    return None if isinstance(evaluation, dict) and evaluation.keys() <= {"max_train", "max_test"} else evaluation


class Trainer(TypedDict):
    """Arguments of Lightning's Trainer whose range it does not check."""

    accumulate_grad_batches: Positive
    gradient_clip_val: Annotated[float, Field(gt=0)] | None
    log_every_n_steps: NotNegative


class Command(TypedDict):
    """What commands have that train or evaluate. The class of a command lists all of its keys: others are refused."""

    name: Text | int
    seed: Seed
    metric: Text
    direction: Literal["maximize", "minimize"]
    trainer: Trainer


class Training(Command):
    """What both commands have that train. What a run cannot do without is a `Part`, any other group an `object`."""

    data: Part
    negatives: Part
    head: Part
    optimizer: object
    scheduler: object
    logger: object
    callbacks: object
    resume: object
    trust: object  # checked by contrast.config.trust
    columns: object


@with_config(extra="forbid")
class Pretrain(Training):
    """conf/pretrain.yaml."""

    views: Part
    encoder: Part
    projector: Part
    key: object
    predictor: object
    batch_size: Positive
    same_label: Literal["negative", "positive", "ignored"]
    probe_images: Positive
    micro_batch: Positive | None
    activation_checkpointing: bool | None  # absent from older runs
    report: bool | None  # absent from older runs
    one_forward_pass: bool
    workers: Workers
    checkpoints: Checkpoints
    evaluation: FrozenEvaluation


@with_config(extra="forbid")
class Words(Training):
    """conf/words.yaml."""

    model: Part
    table: object  # where an output layer has one
    encoder: Part
    probe_images: object  # debug=quick sets this of images, too
    checkpoints: Checkpoints
    evaluation: Annotated[WordEvaluation | None, BeforeValidator(unless_of_images)]


class Reader(TypedDict):
    """What every command has that reads a checkpoint."""

    name: Text | int
    checkpoint: Text
    trust: object  # checked by contrast.config.trust


@with_config(extra="forbid")
class Neighbours(TypedDict, total=False):
    """What conf/protocol/words.yaml adds to conf/evaluate.yaml."""

    neighbours: list[Text | int]  # [10,150] are the words 10 and 150


@with_config(extra="forbid")
class Evaluate(Command, Reader):
    """conf/evaluate.yaml."""

    protocol: object
    data: object
    encoder: object
    evaluation: Neighbours | None
    columns: object
    prefix: Text | None
    label_fraction: Annotated[float, Field(gt=0, le=1)] | None
    labels_per_class: Positive | None
    batch_size: Positive
    workers: Workers
    feature_cache: Text


@with_config(extra="forbid")
class Embed(Reader):
    """conf/embed.yaml."""

    data: object
    trainer: object
    out: Text
    split: Text | None
    neighbours: NotNegative
    batch_size: Positive
    workers: Workers


@with_config(extra="forbid")
class Export(Reader):
    """conf/export.yaml."""

    format: Literal["safetensors", "torch", "onnx", "hub"]
    out: Text


@with_config(extra="forbid")
class Report(Reader):
    """conf/report.yaml."""

    data: object
    trainer: object
    out: Text | None
    images: Annotated[int, Field(ge=2)]
    seed: Seed
    workers: Workers
