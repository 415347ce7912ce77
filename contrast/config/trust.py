"""What a configuration from a file may call, unless the user trusts the file.

Hydra calls whatever a configuration names, with whatever arguments it gives. That is right for what users type, and for
their own files in conf/. A checkpoint or a run folder may come from a stranger, so its configuration may call only what
the lists below name. Every such configuration is checked by `from_file`.
"""

import functools
import os
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeAlias, cast

from contrast.config.old_names import current
from contrast.errors import InputError

Config: TypeAlias = Mapping[str, Any]  # a configuration in plain values, nested
Trust: TypeAlias = bool | str | Collection[str] | None  # True: everything; or names that a file may call as well

# the parts of a model: no argument of theirs names anything to call, and they open only what `_opened` lists
OWN = {
    "contrast.encoders": "GRU SubwordTable WordTable conv_net hf_text mlp open_clip_image open_clip_text predictor "
    "resnet text_transformer timm_model vit",
    "contrast.heads": "AdaptiveSoftmax Alignment ArcFace CosFace Cosine Covariance CrossCorrelation Estimated Fixed "
    "FixedBias InfoNCE LSoftmax Learnable LearnedBias NCE",
    "contrast.keys": "Momentum Second Shared",
    "contrast.negatives": "Bank Dimensions InBatch Nearest Paired PositivesOnly Prototypes Queue Table Targets Tree",
    "contrast.optim": "LARS constant warmup_cosine",
    "contrast.samplers": "Alias LogUniform Poisson Uniform Unigram",
    "contrast.training.teacher": "FrozenTeacher",
    "contrast.views": "OwnViews SimCLRViews natural",
    "contrast.words": "LanguageModel WordVectors",
    "torchvision.transforms.v2": "CenterCrop ColorJitter Compose GaussianBlur RandomAffine RandomErasing "
    "RandomGrayscale RandomHorizontalFlip RandomInvert RandomPerspective RandomResizedCrop RandomRotation "
    "RandomSolarize RandomVerticalFlip Resize",
    "torch.nn.functional": "celu elu gelu hardswish leaky_relu mish relu relu6 selu sigmoid silu softplus tanh",
    "torch.optim": "ASGD Adadelta Adafactor Adagrad Adam AdamW Adamax LBFGS NAdam RAdam RMSprop Rprop SGD SparseAdam",
    "torch.optim.lr_scheduler": "ConstantLR CosineAnnealingLR CosineAnnealingWarmRestarts CyclicLR ExponentialLR "
    "LinearLR MultiStepLR OneCycleLR PolynomialLR ReduceLROnPlateau StepLR",
}
PARTS = {f"{module}.{name}" for module, names in OWN.items() for name in names.split()}

# callables that read data, write logs or train -> the only section of a configuration that may name them
PLACES = {
    f"{module}.{name}": place
    for place, module, names in (
        ("trainer", "pytorch_lightning", "Trainer"),
        (
            "data",
            "contrast.data",
            "images.captions.captions images.digits.digits images.digits.digits_words images.folder.folder "
            "images.hugging_face.hugging_face images.shards.webdataset text.corpus.corpus text.docstrings.docstrings",
        ),
        ("data", "contrast.data.images.torchvision_sets", "cifar10 cifar100 fashion_mnist mnist stl10 svhn"),
        (
            "callbacks",
            "contrast.training.callbacks",
            "collapse.WarnOfCollapse ema.EncoderEMA held_out.HeldOut measured.Best measured.EarlyStopping "
            "measured.Prune online.OnlineKNN online.OnlineLinear",
        ),
        (
            "callbacks",
            "pytorch_lightning.callbacks",
            "DeviceStatsMonitor EarlyStopping GradientAccumulationScheduler LearningRateMonitor "
            "StochasticWeightAveraging Timer",
        ),
        ("logger", "contrast.run.loggers", "mlflow_logger tensorboard_logger wandb_logger"),
    )
    for name in names.split()
}

# the arguments that a file may give to callables that pass their arguments on to a library
ARGUMENTS = {
    "contrast.encoders.timm_model": "name in_channels image_size channels_last compile weights prefix frozen "
    "pretrained num_classes in_chans drop_rate drop_path_rate drop_block_rate proj_drop_rate pos_drop_rate "
    "patch_drop_rate attn_drop_rate img_size patch_size dynamic_img_size dynamic_img_pad global_pool class_token "
    "reg_tokens embed_dim depth depths dims num_heads mlp_ratio init_values output_stride window_size fc_norm "
    "qkv_bias num_features",
    "contrast.encoders.hf_text": "name vocabulary length pretrained compile weights prefix frozen attention_dropout "
    "attention_probs_dropout_prob classifier_dropout dropout hidden_dropout_prob layerdrop hidden_size "
    "intermediate_size max_position_embeddings num_attention_heads num_hidden_layers",
    "contrast.run.loggers.mlflow_logger": "",
    "contrast.run.loggers.tensorboard_logger": "",
    "contrast.run.loggers.wandb_logger": "project entity group tags notes job_type",
    "pytorch_lightning.Trainer": "accelerator strategy devices num_nodes precision fast_dev_run max_epochs min_epochs "
    "max_steps min_steps max_time limit_train_batches limit_val_batches limit_test_batches limit_predict_batches "
    "overfit_batches val_check_interval check_val_every_n_epoch num_sanity_val_steps log_every_n_steps "
    "enable_checkpointing enable_progress_bar enable_model_summary accumulate_grad_batches gradient_clip_val "
    "gradient_clip_algorithm deterministic benchmark inference_mode use_distributed_sampler detect_anomaly barebones "
    "sync_batchnorm reload_dataloaders_every_n_epochs",
}
HYDRA = ("_partial_", "_recursive_", "_convert_")  # keys that say how Hydra calls a target

# settings that can allow foreign code, wherever they stand, and their harmless values
SWITCHES: Mapping[str, tuple[object, ...]] = {
    "trust_remote_code": (False, None),
    "use_safetensors": (True, None),
    "weights_only": (True, None),
}
# keys whose values are paths or URLs, and keys whose values are paths or names
PATHS = ("root", "file", "test_file", "path", "urls", "test_urls", "cache", "pairs", "analogies", "feature_cache")
PATHS_OR_NAMES = ("weights", "pretrained", "tokenizer", "checkpoint", "vectors", "output_vectors")
# arguments that name something to open, to download or to send to: `entity` is whose project of W&B a run is logged to;
# `_opened` adds `name` of published models and data sets
OPENED = (*PATHS, *PATHS_OR_NAMES, "download", "weights_backbone", "entity")
# where data of a stranger's configuration may come from: other file systems of fsspec can run templates
SCHEMES = ("abfs", "abfss", "az", "file", "gcs", "gs", "http", "https", "hf", "s3")
PLAIN = {bool, int, float, str, type(None)}
MAX_DEPTH, MAX_VALUES, CONTAINER = 50, 10_000_000, 1000  # a mapping or list itself counts as CONTAINER values


def from_file(
    config: Config, source: str, trust: Trust = False, typed: Collection[str] = (), ignored: Collection[str] = ()
) -> Config:
    """Checks the configuration `config` from the file `source`; returns it in plain values under current names.

    Prints the paths, URLs and published models that it would open.

    trust    True if the user trusts the file, or names that it may call in addition to those on the lists above
    typed    keys that the user has set on the command line ("encoder.width"): their values are not checked
    ignored  names of arguments that are not taken from the file

    Raises InputError with the names that the configuration would call and that are neither on the lists nor trusted;
    also for Hydra's own sections and for values that are not plain, which no saved run contains.
    """
    plain = current({key: value for key, value in _plain(config, source).items() if key != "trust"})
    if own := [key for key in plain if key == "defaults" or key.startswith("hydra")]:
        raise InputError(f"{source} sets {shown(own[0])}: that is Hydra's own part, which no run keeps in a file")
    if trust is True:
        return plain
    trusted = {trust} if isinstance(trust, str) else set(trust or ())
    skipped = {*typed, *(f".{name}" for name in ignored)}
    named = {name: key for key, name in _calls(plain, "", skipped) if name not in trusted}
    if named:
        listed = ", ".join(f"{shown(name)} ({shown(key)})" for name, key in sorted(named.items())[:8])
        more = f" and {len(named) - 8} more" if len(named) > 8 else ""
        simple = all(re.fullmatch(r"[\w.]+", name) for name in named) and not more
        these = f" or trust=[{','.join(sorted({*named, *trusted}))}] for these alone" if simple else ""
        could = f"{source} names what could run code or write files: {listed}{more}"
        raise InputError(f"{could}; if you trust it, give trust=true{these}")
    if lines := [f"{shown(key)}={shown(str(value))}" for key, value in _opened(plain, "", skipped)]:
        _tell(f"{source} says what to open: {', '.join(lines)}")
    return plain


def needs_trust(config: Config) -> bool:
    """Whether a file with this configuration is read only if the user trusts it."""
    return next(_calls(config, "", ()), None) is not None


def _plain(config: object, source: str) -> dict[str, object]:
    """A copy of nested mappings and lists of plain values; InputError for others, for too many, and for too deep."""
    left = MAX_VALUES

    def copied(value: object, depth: int) -> object:
        nonlocal left
        if isinstance(value, Mapping | list | tuple):
            left -= CONTAINER + len(value)
        if depth > MAX_DEPTH or left < 0:
            raise InputError(f"{source} holds no configuration of a run: it is nested too deeply, or too large")
        if isinstance(value, Mapping):
            return {str(key): copied(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            is_flat = PLAIN.issuperset(map(type, value))  # such as a vocabulary
            return list(value) if is_flat else [copied(item, depth + 1) for item in value]
        if type(value) not in PLAIN:
            raise InputError(f"{source} holds no configuration of a run: it has a {type(value).__name__} in it")
        return value

    if not isinstance(config, Mapping):
        raise InputError(f"{source} holds no configuration of a run: it is a {type(config).__name__}")
    return cast(dict[str, object], copied(config, 0))


def _calls(node: object, key: str, skipped: Collection[str]) -> Iterator[tuple[str, str]]:
    """Key and name of everything not on the lists that instantiating `node`, which stands at `key`, would call."""
    if isinstance(node, str) and "${" in node:
        names = re.findall(r"\$\{\s*([\w.]+)\s*:", node)
        yield from ((key, name) for name in names or [node])
    if isinstance(node, str):
        yield from ((key, f"{name}://") for name in re.findall(r"([\w.+-]+)://", node) if name not in SCHEMES)
        if key.startswith("data.") and "::" in node:  # one file system inside another
            yield key, "::"
    if isinstance(node, Mapping) and "_target_" in node and f"{key}._target_" not in skipped:
        target = node["_target_"]
        name = target if isinstance(target, str) else repr(target)
        listed = {"_target_", *HYDRA, *SWITCHES, *ARGUMENTS.get(name, "").split()}
        if not _is_listed(name, key):
            yield key, name
        elif "_args_" in node and not name.startswith("torch.nn."):  # positional arguments have no names to check
            yield key, f"{name}._args_"
        elif name in ARGUMENTS:
            for argument, value in _items(node, key, skipped):
                nested = name == "pytorch_lightning.Trainer" and isinstance(value, Mapping)
                if argument not in listed or nested:
                    yield f"{key}.{argument}", f"{name}.{argument}"
    for name, value in _items(node, key, skipped):
        below = f"{key}.{name}".lstrip(".")
        if name in SWITCHES and not any(value is safe for safe in SWITCHES[name]):
            yield below, name
        if below in ("evaluation.files", "evaluation.output") and re.search(r"[/\\:]|\.\.", str(value)):
            yield below, below  # vectors are saved under these names
        if name != "_target_" or "${" in str(value):
            yield from _calls(value, below, skipped)


def _opened(node: object, key: str, skipped: Collection[str]) -> Iterator[tuple[str, object]]:
    """Key and value of the paths, URLs and names of published models in a configuration."""
    target = str(node.get("_target_")) if isinstance(node, Mapping) else ""
    for name, value in _items(node, key, skipped):
        below = f"{key}.{name}".lstrip(".")
        published = name == "name" and (
            key == "text.tokenizer"
            or target.endswith((".hf_text", ".hugging_face", ".open_clip_text", ".open_clip_image"))
        )
        is_path = isinstance(value, str) and re.match(r"[/~\\]\S|\w+://|\w:\\|\.\./", value)
        if isinstance(value, Mapping) or (isinstance(value, list) and name not in OPENED):
            yield from _opened(value, below, skipped)
        elif value not in (None, False, "", "spaces", []) and (name in OPENED or published or is_path):
            yield below, value


def _items(node: object, key: str, skipped: Collection[str]) -> Iterator[tuple[str, object]]:
    """Names and values of a mapping or a list, except those that the user has set or that are ignored (`skipped`)."""
    items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for name, value in items:
        place = f"{key}.{str(name).replace('.', '/')}".lstrip(".")
        if place not in skipped and f".{name}" not in skipped:
            yield str(name).replace(".", "/"), value


def _is_listed(name: str, key: str) -> bool:
    """Whether the full name of a target that stands at `key` is on the lists."""
    if name in PLACES:
        return key.partition(".")[0] == PLACES[name]
    module, _, attribute = name.rpartition(".")
    if module == "torch.nn":
        from torch import nn

        return attribute in nn.modules.__all__
    if module == "torchvision.models":
        return attribute in _torchvision_models()
    return name in PARTS


@functools.cache
def _torchvision_models() -> set[str]:
    from torchvision import models

    return set(models.list_models(module=models))


def shown(text: str) -> str:
    """A text from a file in a form that is safe to print: one line, no control characters, not too long."""
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= 100 else f"{text[:100]}..."


@functools.cache
def _tell(line: str) -> None:
    """Prints a line once, on the first rank."""
    if all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID")):
        print(line, file=sys.stderr, flush=True)
