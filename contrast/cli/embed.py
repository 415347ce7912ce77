"""contrast-embed: a vector for each image of a folder or a data set, in a file."""

import shutil
from contextlib import suppress
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from contrast.cli.data import data_of, splits_of
from contrast.data.images.image_set import ImageFiles, Images
from contrast.data.store import digest
from contrast.deploy.load import ImageEncoder, load_images
from contrast.deploy.parts import Parts
from contrast.deploy.table import Table, check_out, nearest_neighbours, save_table
from contrast.errors import InputError
from contrast.evaluation.features import content
from contrast.run.environment import write_environment
from contrast.training.predict import PART_BATCHES, Predictor
from contrast.training.trainer import bare_trainer, print_once, strategy

FOLDER = "contrast.data.images.folder.folder"
SEVERAL = (FOLDER, "contrast.data.images.hugging_face.hugging_face")  # may have splits that no training uses


def embed(cfg: DictConfig) -> None:
    """Writes `cfg.out`: the vectors of all images of `cfg.data` by the encoder `cfg.checkpoint`."""
    out = check_out(cfg.out)
    encoder = load_images(cfg.checkpoint, cfg.trust)
    name, root, splits = image_sets(cfg, encoder)
    write_environment(HydraConfig.get().runtime.output_dir)
    counts = {split: len(images) for split, images in splits.items()}
    # vectors of another encoder or of other images are in another folder, so that they are never mixed
    key = digest(repr(encoder), encoder, *map(content, splits.values()), cfg.batch_size, str(cfg.trainer.precision))
    scratch = out.with_name(f"{out.name}.parts")
    parts = Parts(scratch / key, counts, PART_BATCHES * cfg.batch_size)
    trainer = bare_trainer(cfg.trainer, strategy=strategy(cfg.trainer), use_distributed_sampler=False)
    each = ", ".join(f"{split} {count:,}" for split, count in counts.items())
    print_once(f"{parts.total:,} images of {name} ({each}); vectors of {encoder.num_features} numbers to {out}")
    predictor = Predictor(encoder, splits, parts, cfg.batch_size, cfg.workers)
    try:
        trainer.predict(predictor, return_predictions=False)
    except BaseException:
        for folder in (parts.folder, scratch):
            with suppress(OSError):  # it holds parts, from which the same command goes on, or was never made
                folder.rmdir()
        raise
    finally:
        predictor.bar.close()
    trainer.strategy.barrier()
    if trainer.is_global_zero:
        table = Table(*columns(splits, root), parts.joined())
        if cfg.neighbours:
            unit = parts.folder / "unit.npy"
            near = nearest_neighbours(table.vectors, cfg.neighbours, unit, trainer.strategy.root_device)
            table = table._replace(neighbours=near)
        save_table(out, table)
        shutil.rmtree(scratch)
        print(f"{out}: {parts.total:,} rows")


def image_sets(cfg: DictConfig, encoder: ImageEncoder) -> tuple[str, Path, dict[str, Images | ImageFiles]]:
    """The name of the data set, its folder, and the images to embed, split by split.

    A folder is read batch by batch, however small it is, so that every image has its name.
    """
    given = {str(key): value for key, value in cfg.data.items() if value is not None}
    if "_target_" not in given and "root" in given:
        given = {
            "_target_": FOLDER,
            "channels": encoder.channels,
            "range": encoder.range,
            "fast_jpeg": encoder.fast_jpeg,
            "memory_limit_gb": 0.0,
            "test_fraction": 0.0,
            **given,
        }
    node, text, _ = data_of(encoder.config, given, str(cfg.checkpoint), cfg.trust)
    if "memory_limit_gb" in node:
        node.image_size = node.get("image_size") or encoder.crop
        node.memory_limit_gb = 4.0 if node.image_size is None else 0.0
    if str(node.get("_target_")) in SEVERAL:
        node.every_split = True
    splits = splits_of(node, text, None if "_target_" in cfg.data else str(cfg.checkpoint))
    known = {"train": splits.train, "test": splits.test, "unlabelled": splits.unlabelled, **splits.others}
    sets = {split: images for split, images in known.items() if images is not None and len(images)}
    if cfg.split is not None and cfg.split not in sets:
        raise InputError(f"split={cfg.split} is none of the splits of {splits.name}: {', '.join(sets)}")
    root = Path(str(node.get("root") or "")).expanduser()
    return splits.name, root, {split: images for split, images in sets.items() if cfg.split in (None, split)}


def columns(sets: dict[str, Images | ImageFiles], root: Path) -> tuple[list[str], list[str], list[str]]:
    """The file of each image, relative to the root, the name of its class, and its split.

    An image of a data set in memory has its row for a name.
    """
    files: list[str] = []
    labels: list[str] = []
    splits: list[str] = []
    for split, images in sets.items():
        if isinstance(images, ImageFiles):
            place = images.root.relative_to(root) if images.root.is_relative_to(root) else Path()
            files += [(place / str(name)).as_posix() for name in images.names]
        else:
            files += [str(row) for row in range(len(images))]
        labels += [images.classes[label] if label >= 0 else "" for label in images.labels.tolist()]
        splits += [split] * len(images)
    return files, labels, splits
