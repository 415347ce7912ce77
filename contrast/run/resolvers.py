"""The values that a configuration may compute, and the options that it may choose by others.

`${linear_lr:0.3,${batch_size}}`, `${sqrt_lr:...}`, `${scaled:2.0,0.1}`, `${run_name:method,data}`,
`${suited:views,${data}}`, `${usual_draws:cbow}`, `${sweep_digest:}`.
"""

import hashlib
import json
import re
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf

from contrast.run.folder import NOT_OF_A_RUN
from contrast.scaling import linear_scaled, sqrt_scaled

OWN_NAMES = {"folder": "root", "captions": "file", "corpus": "path", "webdataset": "urls"}  # keys that name these data
DIGITS = ("digits", "digits_words", "mnist", "fashion_mnist", "svhn")  # small images that must not be mirrored
TABLE = r"\.(csv|tsv|txt|parquet)$"


def run_name(*groups: str, _root_: DictConfig) -> str:
    """What a run is, by the options of these groups: `moco-photos-resnet18`. A group that is swept is left out.

    Your own images or text are named after their folder or file, shards after their folder, a checkpoint after its run.
    """
    own = _root_.hydra if "hydra" in _root_ else HydraConfig.get() if HydraConfig.initialized() else None
    swept = [] if own is None else [item.partition("=")[0] for item in own.overrides.task if "," in item]
    words = []
    for group in groups:
        option = None if own is None else own.runtime.choices.get(group)
        key = f"{group}.{OWN_NAMES.get(option, 'name')}" if option else group
        value = OmegaConf.select(_root_, key, throw_on_missing=False) or option
        value = value[0] if isinstance(value, ListConfig) else value
        if isinstance(value, str) and group not in swept:
            path = Path(value).absolute()
            path = path.parent if option == "webdataset" else path
            words += label(value) if option is None else [re.sub(TABLE, "", path.name)]
    return re.sub(r"[^\w.+-]+", "_", "-".join(words)) or "several"


def suited(group: str, data: str) -> str:
    """The option of `group` (views or encoder) that suits this data set, where the user chooses none."""
    if group == "encoder":
        return "small" if data in DIGITS or data.startswith("cifar") else "resnet18"
    return "digits" if data in DIGITS else "captions" if data == "captions" else "natural"


def usual_draws(method: str) -> int:
    """Draws of noise for a block of 32 centre words, each of which has one pair in CBOW and several in skip-gram."""
    return 8 if method == "cbow" else 32


def label(checkpoint: str) -> list[str]:
    """A checkpoint by its run, without the run's date, and by its file, unless that is the last one."""
    parts = [part for part in Path(checkpoint).parts if part not in ("checkpoints", "last.ckpt")]
    file = [Path(parts.pop()).stem] if len(parts) > 1 and parts[-1].endswith(".ckpt") else []
    dated = len(parts) > 1 and re.match(r"\d{4}-\d\d-\d\d_", parts[-1])
    return [*parts[-2 if dated else -1 :][:1], *file]


def sweep_digest(*, _root_: DictConfig) -> str:
    """Ten hexadecimal digits that are the same for the same overrides of the same configuration.

    What belongs to Hydra does not count, so that a sweep begun with one launcher is continued with another, and neither
    does what shapes no job, such as the columns of its table.
    """
    own = OmegaConf.masked_copy(_root_, [str(key) for key in _root_ if key not in ("hydra", *NOT_OF_A_RUN)])
    uncounted = tuple(f"{key}=" for key in ("launcher", *NOT_OF_A_RUN))
    sweep = {
        "config": OmegaConf.to_container(own, resolve=False),
        "name": _root_.hydra.job.config_name,
        "overrides": [item for item in _root_.hydra.overrides.task if not item.startswith(uncounted)],
        "params": OmegaConf.to_container(OmegaConf.create({"params": _root_.hydra.sweeper.get("params")})),
    }
    return hashlib.sha256(json.dumps(sweep, sort_keys=True, default=str).encode()).hexdigest()[:10]


OmegaConf.register_new_resolver("run_name", run_name, replace=True)
OmegaConf.register_new_resolver("suited", suited, replace=True)
OmegaConf.register_new_resolver("usual_draws", usual_draws, replace=True)
OmegaConf.register_new_resolver("scaled", lambda value, factor: value * factor, replace=True)
OmegaConf.register_new_resolver("linear_lr", linear_scaled, replace=True)
OmegaConf.register_new_resolver("sqrt_lr", sqrt_scaled, replace=True)
OmegaConf.register_new_resolver("sweep_digest", sweep_digest, replace=True)
