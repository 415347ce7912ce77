"""Training images per second on a CPU: a run of this framework beside lightly's SimCLR example, for the same network.

    python benchmarks/training_step.py [--images FOLDER] [--cores 2]

Needs `pip install lightly` for the comparison; without it our figures come alone. FOLDER holds CIFAR-10, as
`data.root` takes it (default: $CONTRAST_DATA/cifar10).

Same on both sides: ResNet-18 without its classifier, a projector 512 -> 512 -> 128 with batch norm, NT-Xent at
temperature 0.5, plain SGD, SimCLR's augmentations at full strength with blur, the batch, the precision, the cores.
Ours is `trainer.fit` as contrast-pretrain calls it: progress bar, checks for NaN, metrics, online probes and all.
Lightly's is its plain PyTorch example: PIL images from memory as torchvision's CIFAR10 gives them, its transform in
a DataLoader, one forward pass for each view, no logging.

They take turns within one fit, a few steps each, so that whatever else the machine does falls on both. Lightly's
workers are stopped while it is not their turn. A ratio is the median over the rounds of ours / theirs: once by the
clock, and once by processor time, workers included, which a busy machine disturbs less. Linux only.
"""

import argparse
import json
import logging
import os
import platform
import signal
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torchvision
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from views import installed, processor

from contrast.data.images.image_set import Images, Splits
from contrast.data.loader import Batches
from contrast.training.data import PretrainData
from contrast.training.pretrain_images import callbacks, new_model
from contrast.training.trainer import make_trainer

try:
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform
except ImportError:
    SimCLRTransform = None

OURS = "contrast"
SAME = (  # as lightly's example has it
    "one_forward_pass=false",
    "views.strength=1.0",
    "views.blur=0.5",
    "head.temperature=0.5",
    "optimizer.lr=0.06",
    "optimizer.momentum=0.0",
    "optimizer.weight_decay=0.0",
)
Times = tuple[float, float]  # seconds by the clock, seconds of processor time
Turn = Callable[[int], Times]  # takes a number of steps, returns what they took
Turns = dict[str, list[Times]]  # of each side, turn by turn


@dataclass(frozen=True)
class Case:
    """One comparison: `steps` of each side a turn, `rounds` turns after one to warm up."""

    stem: str
    batch: int
    precision: str
    steps: int
    rounds: int

    def __str__(self) -> str:
        return f"{self.stem} stem, batch {self.batch}, {self.precision}"


CASES = (  # bf16 where it pays: with the ImageNet stem it is slower than fp32, for both
    Case("imagenet", 256, "32-true", steps=4, rounds=5),
    Case("cifar", 128, "32-true", steps=1, rounds=5),
    Case("cifar", 128, "bf16-mixed", steps=2, rounds=5),
)


def now(workers: Iterable[int] = ()) -> Times:
    """The time, and the processor time spent so far by this process and by workers with these ids."""
    stats = [Path(f"/proc/{worker}/stat").read_text().rsplit(")", 1)[1].split() for worker in workers]
    ticks = sum(int(stat[11]) + int(stat[12]) for stat in stats)  # user, system
    return time.perf_counter(), time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def since(start: Times, workers: Iterable[int] = ()) -> Times:
    clock, processor_time = now(workers)
    return clock - start[0], processor_time - start[1]


class Pictures(Dataset):
    """PIL images from memory, as torchvision.datasets.CIFAR10 gives them."""

    def __init__(self, images: Images, transform: Any) -> None:
        self.pixels = images.pixels.permute(0, 2, 3, 1).contiguous().numpy()  # [N, C, H, W] -> [N, H, W, C]
        self.labels, self.transform = images.labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[list[Tensor], int]:
        return self.transform(Image.fromarray(self.pixels[row])), self.labels[row]


class Lightly:
    """Lightly's example, a few steps at a time; `train=False` only takes the batches."""

    def __init__(self, case: Case, batches: "Paused", train: bool = True) -> None:
        resnet = torchvision.models.resnet18()
        if case.stem == "cifar":
            resnet.conv1, resnet.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
        backbone = nn.Sequential(*list(resnet.children())[:-1])
        self.model = nn.Sequential(backbone, nn.Flatten(), SimCLRProjectionHead(512, 512, 128))
        self.criterion = NTXentLoss()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.06)
        self.bfloat16 = case.precision == "bf16-mixed"
        self.batches, self.train = batches, train

    def __call__(self, steps: int) -> Times:
        self.batches.signal(signal.SIGCONT)
        start = now(self.batches.workers)
        for _ in range(steps):
            (x0, x1), _ = next(self.batches.iterator)
            if self.train:
                self.step(x0, x1)
        took = since(start, self.batches.workers)
        self.batches.signal(signal.SIGSTOP)
        return took

    def step(self, x0: Tensor, x1: Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            loss = self.criterion(self.model(x0), self.model(x1))
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


class Paused:
    """An iterator over a DataLoader whose workers stand still but for their turn, with as much done as they had."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self.iterator: Iterator[Any] = iter(batches)
        self.workers = [worker.pid for worker in getattr(self.iterator, "_workers", ())]
        self.signal(signal.SIGSTOP)

    def signal(self, number: signal.Signals) -> None:
        for worker in self.workers:
            os.kill(worker, number)

    def close(self) -> None:
        self.signal(signal.SIGCONT)  # what stands still does not hear that it is to end
        self.iterator = iter(())


class TakeTurns(pl.Callback):
    """Times every `steps` steps of a fit, then lets the others have as many."""

    def __init__(self, steps: int, others: Mapping[str, Turn]) -> None:
        self.steps, self.others = steps, others
        self.seconds: Turns = {name: [] for name in (OURS, *others)}
        self.start = now()

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.start = now()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step % self.steps:
            return
        self.seconds[OURS].append(since(self.start))
        for name, turn in self.others.items():
            self.seconds[name].append(turn(self.steps))
        self.start = now()


def configuration(case: Case, folder: Path) -> DictConfig:
    """The recipe simclr_cifar10, with lightly's hyperparameters. It logs once a turn: at least as often as a run."""
    overrides = [
        "experiment=simclr_cifar10",
        f"data.root={folder}",
        f"encoder.stem={case.stem}",
        f"batch_size={case.batch}",
        f"trainer.precision={case.precision}",
        f"+trainer.max_steps={case.steps * (1 + case.rounds)}",
        f"trainer.log_every_n_steps={case.steps}",
        "trainer.accelerator=cpu",
        "logger=none",
        *SAME,
    ]
    with initialize_config_dir(str(Path(__file__).resolve().parents[1] / "conf"), version_base="1.3"):
        cfg = compose("pretrain", overrides, return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])


def fit(case: Case, cfg: DictConfig, images: Images, others: Mapping[str, Turn], premade: bool = False) -> Turns:
    """A fit of ours with the others' turns in between; the first turn, which warmed up, is left out."""
    turns = TakeTurns(case.steps, others)
    with tempfile.TemporaryDirectory() as folder:
        model = new_model(cfg, Splits("cifar10", images, None))
        ours = callbacks(cfg, Splits("cifar10", images, None), Path(folder))
        trainer = make_trainer(cfg, Path(folder), ours)
        trainer.callbacks.append(turns)  # type: ignore[attr-defined]  # the last
        if premade:
            two = [torch.rand(case.batch, 3, 32, 32) for _ in range(2)]
            model.views.forward = lambda pixels, uniforms: two
        trainer.fit(model, PretrainData(images, cfg.batch_size, cfg.seed))
    return {name: seconds[1:] for name, seconds in turns.seconds.items()}


def loaded(case: Case, images: Images, workers: int) -> "Paused":
    """Lightly's batches."""
    pictures = Pictures(images, SimCLRTransform(input_size=32))
    return Paused(DataLoader(pictures, case.batch, shuffle=True, drop_last=True, num_workers=workers))


def end_to_end(case: Case, cfg: DictConfig, images: Images, workers: Iterable[int]) -> Turns:
    """What a user gets; lightly once for each number of workers."""
    with ExitStack() as stack:
        others = {
            f"lightly, {count} workers": Lightly(case, stack.enter_context(closing(loaded(case, images, count))))
            for count in (workers if SimCLRTransform else ())
        }
        return fit(case, cfg, images, others)


def step_only(case: Case, cfg: DictConfig, images: Images) -> Turns:
    """The views are there already."""
    views = [torch.randn(case.batch, 3, 32, 32) for _ in range(2)]
    others = {"lightly": Lightly(case, Paused(repeat((views, None))))} if SimCLRTransform else {}
    return fit(case, cfg, images, others, premade=True)


def data_only(case: Case, cfg: DictConfig, images: Images, cores: int) -> Turns:
    """Batches of views, nothing trained; lightly with a worker for every core."""
    views = new_model(cfg, Splits("cifar10", images, None)).views
    ours, generator = iter(Batches(images, case.batch, cfg.seed)), torch.Generator().manual_seed(0)

    def make(steps: int) -> Times:
        start = now()
        for _ in range(steps):
            pixels = next(ours).pixels
            views(pixels, views.draw(len(pixels), generator))
        return since(start)

    steps = 4 * cores  # more than the workers have ready, so that their pace counts and not their stock
    with ExitStack() as stack:
        sides: dict[str, Turn] = {OURS: make}
        if SimCLRTransform:
            theirs = stack.enter_context(closing(loaded(case, images, cores)))
            sides["lightly"] = Lightly(case, theirs, train=False)
        turns = [{name: side(steps) for name, side in sides.items()} for _ in range(1 + case.rounds)]
    each = case.steps / steps
    return {name: [(turn[name][0] * each, turn[name][1] * each) for turn in turns[1:]] for name in sides}


def figures(case: Case, turns: Turns) -> dict[str, Any]:
    """Median images per second of each side; the ratios ours / the best of the others, round by round."""
    images = case.steps * case.batch
    found: dict[str, Any] = {}
    for column, what in enumerate(("second", "processor_second")):
        speeds = {name: [images / times[column] for times in each] for name, each in turns.items()}
        middle = {name: round(statistics.median(each), 1) for name, each in speeds.items()}
        found[f"images_per_{what}"] = middle
        if len(speeds) > 1:
            best = max((name for name in speeds if name != OURS), key=lambda name: middle[name])
            ratios = [round(ours / theirs, 2) for ours, theirs in zip(speeds[OURS], speeds[best], strict=True)]
            found[f"ratio_per_{what}"] = {"to": best, "median": statistics.median(ratios), "rounds": ratios}
    return found


def line(told: dict[str, Any]) -> str:
    clock, cpu = told["images_per_second"], told["images_per_processor_second"]
    cells = [f"{name} {clock[name]} ({cpu[name]})" for name in clock]
    if len(clock) > 1:
        ratios = [told[f"ratio_per_{what}"]["median"] for what in ("second", "processor_second")]
        cells.append("ours / best {:.2f} ({:.2f})".format(*ratios))
    return "; ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, default=Path(os.environ.get("CONTRAST_DATA", "data")) / "cifar10")
    parser.add_argument("--cores", type=int, default=2, help="for threads and workers together")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "training_step.json")
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
    torch.set_num_threads(args.cores)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if SimCLRTransform is None:
        print("lightly is not installed: our figures only (pip install lightly)")
    packages = ("torch", "torchvision", "pytorch-lightning", "lightly", "pillow")
    results: dict[str, Any] = {
        "processor": processor(),
        "cores": args.cores,
        "wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "load_before": [round(each, 1) for each in os.getloadavg()],
        "python": platform.python_version(),
        "versions": {package: installed(package) for package in packages},
        "cases": {},
    }
    images = instantiate(configuration(CASES[0], args.images.resolve()).data).train
    workers = sorted({0, 1, args.cores})
    print("images per second; (per second of processor time)", flush=True)
    for case in CASES:
        cfg = configuration(case, args.images.resolve())
        parts: dict[str, Callable[[], Turns]] = {
            "data": partial(data_only, case, cfg, images, args.cores),
            "step": partial(step_only, case, cfg, images),
            "end to end": partial(end_to_end, case, cfg, images, workers),
        }
        if case is not CASES[0]:
            del parts["data"]  # does not depend on the network
        found = results["cases"][str(case)] = {}
        for part, measure in parts.items():
            found[part] = figures(case, measure())
            print(f"{case!s:35}{part:11}{line(found[part])}", flush=True)
        if "ratio_per_second" in found["end to end"]:  # its number of workers serves for the other cases
            workers = [int(found["end to end"]["ratio_per_second"]["to"].split()[1])]
    results["load_after"] = [round(each, 1) for each in os.getloadavg()]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    kept = json.loads(args.out.read_text()) if args.out.exists() else {}  # runs with other numbers of cores
    policy = os.environ.get("OMP_WAIT_POLICY")
    name = f"{args.cores} cores" + (f", OMP_WAIT_POLICY={policy}" if policy else "")
    args.out.write_text(json.dumps({**kept, name: results}, indent=2) + "\n")
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
