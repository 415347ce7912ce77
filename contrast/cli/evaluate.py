"""contrast-evaluate: evaluate a checkpoint's encoder on a labelled data set, or word vectors on human judgements."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from contrast import run as entry
from contrast.data.images.subset import labelled_subset
from contrast.data.text.tokenizer import tokenizer_of
from contrast.encoders.weights import read
from contrast.errors import InputError
from contrast.evaluation.encoder import checkpoint_file, from_checkpoint, from_weights, is_own, word_vectors
from contrast.evaluation.features import EvaluationData
from contrast.evaluation.report import has_labels, labelled, write_metrics
from contrast.evaluation.words import WordData, words
from contrast.old_names import current
from contrast.run.environment import write_environment
from contrast.run.folder import metric_of
from contrast.run.quiet import quiet
from contrast.training.trainer import bare_trainer


def evaluate(cfg: DictConfig) -> float:
    """Runs `cfg.protocol` on what `cfg.checkpoint` holds; returns the metric `cfg.metric`."""
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    quiet()
    protocol = instantiate(cfg.protocol, _partial_=True)
    data, description = word_data(cfg) if protocol.func is words else image_data(cfg)
    write_environment(run_dir)
    print(f"{HydraConfig.get().runtime.choices['protocol']} on {description}")
    metrics = protocol(data)
    write_metrics(run_dir, metrics)
    width = max(16, *(len(key) + 2 for key in metrics))
    for key, value in metrics.items():
        print(f"{key:<{width}}{value:>10.4g}")
    print(f"the run folder is {run_dir}")
    return metric_of(metrics, cfg.metric)


def word_data(cfg: DictConfig) -> tuple[WordData, str]:
    """Word vectors and the files that they are measured on, with a description."""
    files = {str(name): value for name, value in (cfg.data or {}).items()}
    other = set(files) - {"pairs", "analogies"}
    if other:
        raise InputError(f"word vectors are measured on data.pairs and data.analogies, not data.{min(other)}")
    names, vectors = word_vectors(cfg.checkpoint)
    device = bare_trainer(cfg.trainer).strategy.root_device
    on = vectors if device.type == "mps" else vectors.to(device)  # float64 is needed
    return WordData(names, on, **files), f"{len(names):,} words, vectors of {vectors.shape[1]} numbers"


def image_data(cfg: DictConfig) -> tuple[EvaluationData, str]:
    """The encoder of the checkpoint and the images that it is evaluated on, with a description.

    `cfg.data` is by default what the checkpoint was trained on. `label_fraction` or `labels_per_class` leave only so
    many labelled training images, the same in every class.
    """
    file = checkpoint_file(cfg.checkpoint)
    saved = read(file)
    own = is_own(saved)
    if cfg.data is None and not own:
        raise InputError(f"{file} does not say what it was trained on: give data=...")
    if own and saved["config"].get("model") is not None:
        words = saved["config"]["model"]["_target_"].endswith("WordVectors")
        instead = "protocol=words evaluates it" if words else "its perplexity is measured at the end of training"
        raise InputError(f"{file} is of a run on text: {instead}")
    text = saved["config"].get("text") if own else None
    node = OmegaConf.create(current(saved["config"])["data"]) if cfg.data is None else cfg.data
    if text and "tokenizer" in node:  # captions become token ids of the checkpoint's vocabulary
        splits = instantiate(node, tokenizer=tokenizer_of(text["tokenizer"]), length=text["length"])
    else:
        splits = instantiate(node)
    unlabelled = HydraConfig.get().runtime.choices["protocol"] == "retrieval"
    if splits.test is None or not (unlabelled or has_labels(splits)):
        raise InputError(f"{splits.name} has no labelled training images or no test set: nothing to evaluate on")
    encoder = from_checkpoint(saved, cfg.encoder) if own else from_weights(saved, cfg.encoder, splits.train)
    train, test = (images if unlabelled else labelled(images, None) for images in (splits.train, splits.test))
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
    )
    learns = "" if unlabelled else f"{len(train):,} labelled training images, "
    return data, f"{splits.name}: {learns}{len(test):,} test images"


def main() -> None:
    entry.run(evaluate, "evaluate")
