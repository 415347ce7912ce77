"""What a configuration may compute: `${linear_lr:0.3,${batch_size}}`, `${sqrt_lr:...}`, `${sweep_digest:}`.

Registered on import, so that a worker process of any launcher knows them as soon as it unpickles its job.
"""

import hashlib
import json

from omegaconf import DictConfig, OmegaConf

from contrast.optim.schedule import linear_scaled, sqrt_scaled
from contrast.run.folder import without_hydra


def sweep_digest(*, _root_: DictConfig) -> str:
    """Ten hexadecimal digits that are the same for the same overrides of the same configuration.

    What belongs to Hydra does not count, so that a sweep begun with one launcher is continued with another.
    """
    sweep = {
        "config": OmegaConf.to_container(without_hydra(_root_), resolve=False),
        "name": _root_.hydra.job.config_name,
        "overrides": [item for item in _root_.hydra.overrides.task if not item.startswith("launcher=")],
        "params": OmegaConf.to_container(OmegaConf.create({"params": _root_.hydra.sweeper.get("params")})),
    }
    return hashlib.sha256(json.dumps(sweep, sort_keys=True, default=str).encode()).hexdigest()[:10]


OmegaConf.register_new_resolver("linear_lr", linear_scaled, replace=True)
OmegaConf.register_new_resolver("sqrt_lr", sqrt_scaled, replace=True)
OmegaConf.register_new_resolver("sweep_digest", sweep_digest, replace=True)
