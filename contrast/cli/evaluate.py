"""contrast-evaluate: an encoder on labelled images, word vectors on human judgements, a language model on a text."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from contrast.cli.data import data_of, splits_of
from contrast.config.old_names import current
from contrast.config.trust import Config
from contrast.data.images.image_set import Splits
from contrast.data.images.subset import labelled_subset
from contrast.deploy.language import is_language_model, language_model
from contrast.deploy.load import CONFIG, exported
from contrast.encoders.pretrained import Weights, checkpoint_file, is_own, weights_of
from contrast.encoders.weights import read
from contrast.errors import InputError
from contrast.evaluation.encoder import from_checkpoint, from_source, subwords_of, word_vectors
from contrast.evaluation.features import EvaluationData
from contrast.evaluation.knn import knn
from contrast.evaluation.language import TextData, text_perplexity
from contrast.evaluation.linear_probe import linear
from contrast.evaluation.report import has_labels, labelled, wilson, write_metrics
from contrast.evaluation.retrieval import distinct, image_keys, retrieval, retrieval_names
from contrast.evaluation.words import WordData, as_list, score_names, words
from contrast.evaluation.zeroshot import zeroshot
from contrast.run.environment import write_environment
from contrast.run.folder import INSTEAD, metric_of
from contrast.training.build import is_square, plain
from contrast.training.finetune import finetune
from contrast.training.trainer import bare_trainer, print_once

Data: TypeAlias = WordData | TextData | EvaluationData
TEXT = ("path", "column", "unit", "on_error", "workers")  # settings of a text on which a language model is evaluated


def evaluate(cfg: DictConfig) -> float:
    """Runs `cfg.protocol` on what `cfg.checkpoint` holds; returns the metric `cfg.metric`."""
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    protocol = instantiate(cfg.protocol, _partial_=True)
    readers: dict[object, Callable[[DictConfig], tuple[Data, str]]] = {words: word_data, text_perplexity: text_data}
    data, description = readers.get(protocol.func, image_data)(cfg)
    names = metric_names(protocol.func, data, cfg.protocol)
    if names and not {cfg.metric, INSTEAD.get(cfg.metric)} & names:
        raise InputError(f"metric={cfg.metric} is none of the metrics: {', '.join(sorted(names))}")
    write_environment(run_dir)
    what = {"checkpoint": cfg.checkpoint, "protocol": HydraConfig.get().runtime.choices["protocol"]}
    print_once(f"{what['protocol']} of {what['checkpoint']} on {description}")
    metrics = protocol(data)
    details = getattr(data, "details", {})
    write_metrics(run_dir, {**what, "data": description.partition(":")[0], **metrics, **details})
    width = max([16, *(len(key) + 2 for key in metrics)])
    rows = [f"{key:<{width}}{value:>10.4g}{interval(key, value, data)}" for key, value in metrics.items()]
    print_once("\n".join([*rows, f"the run folder is {run_dir}"]))
    return metric_of(metrics, cfg.metric) if metrics else math.nan


def interval(key: str, value: float, data: Data) -> str:
    """The 95 % interval of a share of the test images, as text; empty for other metrics."""
    if key not in ("top1", "top5") or not isinstance(data, EvaluationData):
        return ""
    return "  (95 % interval {:.4f} to {:.4f})".format(*wilson(value, len(data.test)))


def metric_names(protocol: Callable[..., dict[str, float]], data: Data, options: Config) -> set[str]:
    """Names of the metrics of a protocol of this package, as far as they are defined; none of others are known."""
    if isinstance(data, WordData):
        return score_names(as_list(data.pairs), data.analogies)
    if isinstance(data, TextData):
        return data.model.metric_names() | {"unknown_share"}
    top5 = {"top5"} if len(data.train.classes) > 5 else set()
    means = {"macro_f1", "class_mean_accuracy"}
    known = {
        knn: {"top1", *top5},
        zeroshot: {"top1", *top5},
        linear: {"top1", "val_top1", "learning_rate", "weight_decay", *means, *top5},
        finetune: {"top1", "val_top1", "learning_rate", *means},
        retrieval: retrieval_names(data.test.text is not None, options.get("ks", (1, 5, 10))),
    }
    return known.get(protocol, set())


def word_data(cfg: DictConfig) -> tuple[WordData, str]:
    """Word vectors and the files that they are measured on, with a description."""
    files = {str(name): value for name, value in cfg.data.items() if value is not None}
    other = set(files) - {"pairs", "analogies"}
    if other:
        raise InputError(f"word vectors are measured on data.pairs and data.analogies, not data.{min(other)}")
    names, vectors = word_vectors(cfg.checkpoint)
    device = bare_trainer(cfg.trainer).strategy.root_device
    on = vectors if device.type == "mps" else vectors.to(device)  # float64 is needed
    description = f"{len(names):,} words, vectors of {vectors.shape[1]} numbers"
    return WordData(names, on, **files, subwords=subwords_of(cfg.checkpoint)), description


def text_data(cfg: DictConfig) -> tuple[TextData, str]:
    """A language model and the text that it is evaluated on, with a description."""
    file = checkpoint_file(cfg.checkpoint)
    saved = read(file)
    if not (is_own(saved) and is_language_model(saved)):
        raise InputError(f"{file} is of no language model (contrast-words model=language_model)")
    given = {str(name): value for name, value in cfg.data.items() if value is not None}
    if other := given.keys() - TEXT:
        wanted = ", ".join(f"data.{name}" for name in TEXT)
        raise InputError(f"the text is read as the run has read its own, and data.{max(other)} is none of {wanted}")
    model = language_model(saved, cfg.trust)
    corpus = model.corpus(**given)
    if not len(corpus.ids):
        raise InputError(f"none of the {corpus.total_words:,} words of {corpus.name} is in the vocabulary of the run")
    known = int(corpus.counts.sum()) - (0 if model.unknown is None else int(corpus.counts[model.unknown]))
    share = 1 - known / corpus.total_words
    unknown = f"{corpus.total_words - known:,} ({share:.2%}) are not in the vocabulary of {len(model.words):,}"
    model.to(bare_trainer(cfg.trainer).strategy.root_device)
    become = "are left out" if model.unknown is None else "count as <unk>"
    description = f"{corpus.name}: {corpus.total_words:,} words, of which {unknown} and {become}"
    return TextData(model.model, corpus.ids, share), description


def image_data(cfg: DictConfig) -> tuple[EvaluationData, str]:
    """The encoder of the checkpoint and the images that it is evaluated on, with a description.

    `cfg.data` is by default what the checkpoint was trained on, with `data.root` if it has moved. `label_fraction` or
    `labels_per_class` leave only so many labelled training images, the same in every class.
    """
    path = Path(str(cfg.checkpoint)).expanduser()
    # contrast-export wrote a folder with this file
    weights = Weights(str(path), exported(path), None) if (path / CONFIG).is_file() else weights_of(cfg.checkpoint)
    file, saved = weights.label, weights.contents
    own = is_own(saved)
    if "_target_" not in cfg.data and not (own and {"data", "model"} & set(saved["config"])):
        raise InputError(f"{file} does not say what it was trained on: give data=...")
    if own and saved["config"].get("model") is not None:
        instead = "protocol=perplexity data.path=FILE" if is_language_model(saved) else "protocol=words"
        raise InputError(f"{file} is of a run on text: {instead} evaluates it")
    encoder = from_checkpoint(saved, cfg.encoder, cfg.trust) if own else None
    config = current(saved["config"]) if own else {}
    given = cfg.data
    if own and "_target_" in given and given.get("image_size", 0) is None and config["images"].get("square"):
        given = OmegaConf.merge(given, {"image_size": config["images"]["size"]})  # as the encoder was trained
    splits = splits_of(*data_of(config, given, str(file), cfg.trust))
    protocol = HydraConfig.get().runtime.choices["protocol"]
    unlabelled = protocol == "retrieval" and splits.test is not None and splits.test.text is not None
    if splits.test is None or not (unlabelled or protocol == "zeroshot" or has_labels(splits)):
        raise InputError(f"{splits.name} has no test set, or no labels of two classes or more: nothing to evaluate on")
    if encoder is None:
        encoder = from_source(weights, cfg.encoder, splits.train, cfg.prefix)
    train, test = (images if unlabelled else labelled(images, None) for images in (splits.train, splits.test))
    if protocol == "zeroshot" and test.text is not None:
        test = test.select(distinct(image_keys(test))[0])  # an image with several captions has several rows
    if cfg.label_fraction is not None or cfg.labels_per_class is not None:
        train = train.select(labelled_subset(train.labels, cfg.label_fraction, cfg.labels_per_class, cfg.seed))
    data = EvaluationData(
        encoder.eval(),
        train,
        test,
        cache=Path(cfg.feature_cache),
        device=bare_trainer(cfg.trainer).strategy.root_device,
        trainer=cfg.trainer,
        batch_size=cfg.batch_size,
        workers=cfg.workers,
        seed=cfg.seed,
        folder=Path(HydraConfig.get().runtime.output_dir),
        config=described(cfg, config, splits),
    )
    learns = "" if protocol in ("retrieval", "zeroshot") else f"{len(train):,} labelled training images, "
    return data, f"{splits.name}: {learns}{len(test):,} test images"


def described(cfg: DictConfig, config: Config, splits: Splits) -> dict[str, object]:
    """The configuration of the run that trained the encoder; of plain weights what `cfg` and the data say of it."""
    given = {} if cfg.encoder is None else {"encoder": plain(cfg.encoder)}
    train = splits.train
    images = {"channels": train.channels, "size": train.size, "square": is_square(train)}
    return {"name": "finetune", "images": images, **config, **given}
