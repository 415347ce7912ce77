"""The configuration of the toy task, with the parts of the real one that belong to the entry point."""

import shutil
from pathlib import Path

from contrast.run.folder import conf_folder

FILES = {
    "toy.yaml": """
defaults:
  - _self_
  - runs
  - head: info_nce
  - encoder: small
  - optimizer: plain
  - data: null
  - experiment: null
  - launcher: basic
  - sweep: null

name: toy
seed: 0
batch_size: 512
record: record.jsonl
checkpoint: false
fails: null
stops: null
exits: null
dies: null
prunes: null
together: null
resume: null
metric: accuracy
direction: maximize
columns: []
""",
    "choosy.yaml": "defaults: [runs, _self_, {data: '???'}]\nname: choosy\n",
    "needy.yaml": "defaults: [toy, _self_]\nneeded: '???'\n",
    "head/info_nce.yaml": "temperature: 0.1\nbias: {initial: 0}\n",
    "head/nce.yaml": "temperature: 0.2\n",
    "encoder/small.yaml": "_target_: toy_task.Net\nwidths: [1, 2]\n",
    "encoder/resnet18.yaml": "_target_: toy_task.Net\nwidths: [3]\n",
    "encoder/nested.yaml": "_target_: toy_task.Net\nwidths: [1]\ninner: {_target_: toy_task.Net, widths: [0]}\n",
    "optimizer/plain.yaml": "_target_: toy_task.optimizer\n_partial_: true\nlearn: ${linear_lr:0.1,${batch_size}}\n",
    "data/some.yaml": "root: ???\n",
    "experiment/known.yaml": "# @package _global_\nseed: 7\n",
    "experiment/resuming.yaml": "# @package _global_\nresume: a\n",
    "experiment/broken.yaml": "# @package _global_\nseed: [7\n",
    "experiment/lost.yaml": "# @package _global_\ndefaults:\n  - override /encoder: resnt\n",
}


def write_conf(folder: Path) -> Path:
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    shutil.copy(conf_folder() / "runs.yaml", folder)
    shutil.copytree(conf_folder() / "launcher", folder / "launcher")
    shutil.copytree(conf_folder() / "hydra", folder / "hydra")
    optuna = (conf_folder() / "sweep" / "optuna.yaml").read_text()
    (folder / "sweep").mkdir()
    (folder / "sweep" / "optuna.yaml").write_text(optuna.partition("hydra:\n")[0])  # the toy has other parameters
    return folder
