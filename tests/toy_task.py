"""A task of milliseconds for the tests of the entry point and of sweeps; run as a program it is a console command."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig

from contrast import run as entry
from contrast.errors import InputError
from contrast.run.compose import begin
from contrast.run.folder import PRUNED, metric_of


class Net:
    def __init__(self, widths: list[int], inner: object = None) -> None:
        if min(widths) < 1:
            raise InputError(f"a layer of width {min(widths)}: widths start at 1")
        self.widths = [width + 0 for width in widths]


def fragile(widths: list[int]) -> int:
    """What it raises is not an InputError."""
    return min(widths[:0])


def optimizer(parameters: list[int], learn: float) -> tuple[list[int], float]:
    return parameters, learn


def task(cfg: DictConfig) -> float | None:
    folder = Path(HydraConfig.get().runtime.output_dir)
    call: dict[str, object] = {"resume": cfg.resume, "seed": cfg.seed, "left": os.environ.get("LEFT_BEHIND")}
    call |= {"gpus": os.environ.get("CUDA_VISIBLE_DEVICES"), "pid": os.getpid(), "threads": torch.get_num_threads()}
    with Path(cfg.record).open("a") as file:
        file.write(json.dumps({**call, "folder": str(folder), "argv": sys.argv[1:]}) + "\n")
    deadline = time.monotonic() + 60
    while cfg.together is not None and len(Path(cfg.record).read_text().splitlines()) < cfg.together:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{cfg.together} jobs do not run at the same time")
        time.sleep(0.1)
    if cfg.resume is not None and HydraConfig.get().mode == RunMode.RUN:
        begin(cfg, folder)
    os.environ["LEFT_BEHIND"] = os.environ.get("LEFT_BEHIND", "") + str(cfg.seed)
    instantiate(cfg.encoder)
    build: Callable[[list[int]], object] = instantiate(cfg.optimizer)
    build([1])
    if cfg.checkpoint:
        (folder / "checkpoints").mkdir(exist_ok=True)
        (folder / "checkpoints" / "last.ckpt").touch()
    if cfg.seed == cfg.fails:
        raise RuntimeError("it broke\non two lines")
    if cfg.seed == cfg.stops:
        raise KeyboardInterrupt
    if cfg.seed == cfg.exits:  # as Lightning's trainer does
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)
    if cfg.seed == cfg.dies and cfg.resume is None:
        os.kill(os.getpid(), signal.SIGKILL)
    metrics = {"accuracy": 1 - cfg.head.temperature + 0.01 * cfg.seed, "linear_top1": 0.5, "loss": 1.0}
    if cfg.seed == cfg.prunes:
        metrics[PRUNED] = 3
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return metric_of(metrics, cfg.metric)


if __name__ == "__main__":
    import toy_task

    entry.run(entry.Command(toy_task.task, "toy"))
