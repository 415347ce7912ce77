"""Accuracy on CIFAR-10 after the same minutes of training, for every method and for lightly's own examples.

    python benchmarks/which_method.py --speeds [--images FOLDER]
    python benchmarks/which_method.py [--minutes 20] [--seeds 0] [--methods simclr,moco] [--jobs 2] [--images FOLDER]
    python benchmarks/which_method.py --table

FOLDER contains CIFAR-10, as `data.root` takes it (default: $CONTRAST_DATA/cifar10). The network is that of
`encoder=small`, and a batch has 256 images. `--speeds` measures how many images a second each method trains on two
threads: three rounds over all methods, of which the median counts. Nothing else may run meanwhile. A run then takes the
number of steps that fill the minutes at this speed, and its schedules end with the training. Runs therefore do not
depend on what else the machine does, and `--jobs` of them run at a time, with one thread each.

The settings are those of conf/method/ with `views=simclr` and without probes. The captions of clip and siglip are made
from the names of the classes. seed and crd learn from the run of simclr with the same seed. lightly's SimCLR, MoCo and
BYOL are its examples for PyTorch (transforms without blur, heads, SGD at 0.06) with this network; they need
`pip install lightly`.

After the training both sides are evaluated by the same code: kNN and a linear probe on the frozen features, with all
labels. Each result is added to results/which_method.json as soon as it is there. A run whose result is in the file is
not repeated, so the benchmark can be interrupted and continued.
"""

import argparse
import csv
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "which_method.json"
PEERS = ("lightly_simclr", "lightly_moco", "lightly_byol")
CAPTIONS, TAUGHT = ("clip", "siglip"), ("seed", "crd")
SEES = {  # what a method learns from, if not from images alone
    **dict.fromkeys(("supcon", "full_softmax", "cosface", "arcface", "l_softmax"), "labels"),
    **dict.fromkeys(CAPTIONS, "names of classes"),
    **dict.fromkeys(TAUGHT, "a teacher"),
}
BATCH, ROUNDS, WARM_UP = 256, 3, 4  # images; rounds of --speeds; steps of lightly's before its clock starts


def methods() -> list[str]:
    """All methods; those that learn from another run stand after it."""
    names = sorted(path.stem for path in (HERE.parent / "conf" / "method").glob("*.yaml"))
    return ["simclr", *(name for name in names if name not in ("simclr", *TAUGHT)), *TAUGHT, *PEERS]


# --- one run, in a process of its own


def one(args: argparse.Namespace) -> dict[str, float]:
    """Trains `args.one` for `args.steps` steps and evaluates it, or measures its speed for `args.seconds`."""
    import torch

    torch.set_num_threads(args.threads)
    return of_lightly(args) if args.one in PEERS else ours(args)


def ours(args: argparse.Namespace) -> dict[str, float]:
    import contrast

    words = [
        *(f"method={args.one}", f"seed={args.seed}", "encoder=small", f"batch_size={BATCH}", "trainer.accelerator=cpu"),
        *("callbacks=none", "logger=none", "trainer.max_epochs=-1"),
        *("evaluation.untrained=false", "evaluation.pixels=false", "evaluation.per_class=[]"),
    ]
    if args.one in CAPTIONS:
        tables = [captions(args.images, split, args.runs) for split in ("train", "test")]
        words += ["data=captions", f"data.file={tables[0]}", f"data.test_file={tables[1]}", f"data.root={args.images}"]
        words += ["data.label_column=label", "data.image_size=32", "views=captions"]
    else:
        words += ["data=cifar10", f"data.root={args.images}", "views=simclr"]
    if args.one in TAUGHT:
        teacher = args.runs / f"simclr-{args.seed}"
        if args.steps and not (teacher / "metrics.json").is_file():
            raise ValueError(
                f"{teacher} holds no complete run: remove the result of simclr from {RESULT.name} to train it again"
            )
        words += [f"key.weights={teacher}", "projector.out_features=256"]
    words += [f"evaluation.max_train={args.max_train}"] if args.max_train else []
    folder = args.runs / f"{args.one}-{args.seed}"
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted
    if args.steps:
        found = contrast.pretrain(*words, f"+trainer.max_steps={args.steps}", run_dir=folder).metrics
        return {name: found[name] for name in ("knn_top1", "linear_top1")}
    # steps that no run reaches: the schedules need a number, and the time ends the run
    short = [f"+trainer.max_time='00:00:00:{args.seconds:02}'", "+trainer.max_steps=1000000"]
    found = contrast.pretrain(*words, *short, "evaluation.enabled=false", run_dir=folder).metrics
    return {"images_per_second": found["images_per_second"]}


def captions(images: str, split: str, folder: Path) -> Path:
    """A table of the images of a split, with "a photo of a CLASS" as caption."""
    from contrast.atomic import replacing

    files = sorted(Path(images, split).glob("*/*"))
    if not files:
        raise ValueError(f"{images} holds no {split}/CLASS/*, of which the captions are made")
    rows = [(f"{split}/{each.parent.name}/{each.name}", each.parent.name) for each in files]
    with replacing(folder / f"{split}.csv") as table, table.open("w", newline="") as out:
        csv.writer(out).writerows([("path", "caption", "label"), *((p, f"a photo of a {c}", c) for p, c in rows)])
    return folder / f"{split}.csv"


def of_lightly(args: argparse.Namespace) -> dict[str, float]:
    """docs/examples/pytorch/{simclr,moco,byol}.py of lightly, with a number of steps in place of that of epochs."""
    import copy

    import torch
    from lightly import loss, transforms
    from lightly.models import modules
    from lightly.models.utils import deactivate_requires_grad, update_momentum
    from lightly.transforms.byol_transform import BYOLView1Transform, BYOLView2Transform
    from lightly.utils.scheduler import cosine_schedule
    from omegaconf import OmegaConf
    from PIL import Image
    from torch import nn

    from contrast.data.images.torchvision_sets import cifar10
    from contrast.encoders import conv_net
    from contrast.encoders.normalize import Normalize
    from contrast.evaluation.encoder import Frozen
    from contrast.evaluation.report import frozen_data, frozen_metrics

    torch.manual_seed(args.seed)
    kind, splits = args.one.removeprefix("lightly_"), cifar10(args.images)
    backbone = conv_net(in_channels=3, image_size=32)
    width = backbone.num_features
    transform, head, criterion = {
        "simclr": lambda: (
            transforms.SimCLRTransform(input_size=32, gaussian_blur=0.0),
            modules.SimCLRProjectionHead(width, width, 128),
            loss.NTXentLoss(),
        ),
        "moco": lambda: (
            transforms.MoCoV2Transform(input_size=32, gaussian_blur=0.0),
            modules.MoCoProjectionHead(width, width, 128),
            loss.NTXentLoss(memory_bank_size=(4096, 128)),
        ),
        "byol": lambda: (
            transforms.BYOLTransform(
                BYOLView1Transform(input_size=32, gaussian_blur=0.0),
                BYOLView2Transform(input_size=32, gaussian_blur=0.0),
            ),
            modules.BYOLProjectionHead(width, 1024, 256),
            loss.NegativeCosineSimilarity(),
        ),
    }[kind]()
    predictor = modules.BYOLPredictionHead(256, 1024, 256) if kind == "byol" else nn.Identity()
    net = nn.Sequential(backbone, head)
    follower = copy.deepcopy(net)
    deactivate_requires_grad(follower)

    class Views(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(splits.train)

        def __getitem__(self, row: int) -> Any:
            return transform(Image.fromarray(splits.train.pixels[row].permute(1, 2, 0).numpy()))

    loader = torch.utils.data.DataLoader(
        Views(), batch_size=BATCH, shuffle=True, drop_last=True, num_workers=args.threads, persistent_workers=True
    )
    optimizer = torch.optim.SGD([*net.parameters(), *predictor.parameters()], lr=0.06)
    steps, start = 0, time.monotonic()
    while not ended(args, steps, start):
        for x0, x1 in loader:
            if kind != "simclr":
                progress = steps / args.steps if args.steps else 0.0
                update_momentum(net, follower, m=cosine_schedule(int(1000 * progress), 1001, 0.996, 1))
            if kind == "simclr":
                value = criterion(net(x0), net(x1))
            elif kind == "moco":
                value = criterion(net(x0), follower(x1).detach())
            else:
                p0, p1 = predictor(net(x0)), predictor(net(x1))
                with torch.no_grad():
                    z0, z1 = follower(x0), follower(x1)
                value = 0.5 * (criterion(p0, z1) + criterion(p1, z0))
            value.backward()
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
            if steps == WARM_UP and not args.steps:
                start = time.monotonic()
            if ended(args, steps, start):
                break
    if not args.steps:
        return {"images_per_second": (steps - WARM_UP) * BATCH / (time.monotonic() - start)}
    del loader
    # lightly's transforms normalise by ImageNet's mean and standard deviation
    frozen = Frozen(Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), backbone).eval()
    how = OmegaConf.create({"k": 200, "temperature": 0.07, "per_class": [], "max_train": args.max_train or None})
    found = frozen_metrics(how, frozen_data(how, frozen, splits, torch.device("cpu")))
    return {"knn_top1": found["knn_top1"], "linear_top1": found["linear_top1"]}


def ended(args: argparse.Namespace, steps: int, start: float) -> bool:
    """Whether the steps are done, or, where the speed is measured, the seconds after the first steps."""
    return steps >= args.steps if args.steps else steps > WARM_UP and time.monotonic() - start >= args.seconds


# --- all of them

WRITING = threading.Lock()


def read() -> dict[str, Any]:
    return json.loads(RESULT.read_text()) if RESULT.is_file() else {"versions": {}, "speeds": {}, "runs": []}


def write(results: dict[str, Any]) -> None:
    """The file is whole at every moment."""
    from views import installed, processor

    from contrast.atomic import replacing

    packages = ("torch", "pytorch-lightning", "lightly")
    facts = {"processor": processor(), "python": platform.python_version()}
    facts |= {name: version for name in packages if (version := installed(name)) is not None}
    with replacing(RESULT) as file:
        file.write_text(json.dumps(results | {"versions": facts}, indent=1) + "\n")


def process(args: argparse.Namespace, name: str, **options: object) -> dict[str, float]:
    """What `one` returns in a process of its own; empty where it failed, which is printed."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        options |= {"one": name, "to": file, "images": args.images, "max_train": args.max_train}
        command = [sys.executable, __file__, *(f"--{key}={value}" for key, value in options.items())]
        threads = os.environ | {"OMP_NUM_THREADS": str(options["threads"])}
        done = subprocess.run(command, env=threads, capture_output=True, text=True)
        if done.returncode:
            print(f"{name} failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}", flush=True)
            return {}
        return json.loads(file.read_text())


def measure_speeds(args: argparse.Namespace, names: list[str]) -> None:
    """Rounds over all methods, so that a slower quarter of an hour of the machine meets them all."""
    found: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(ROUNDS):
            args.runs = Path(folder) / str(number)
            args.runs.mkdir()
            for args.one in names:
                try:
                    found[args.one].append(round(one(args)["images_per_second"], 1))
                except (ImportError, ValueError) as error:
                    print(f"{args.one} is left out: {error}", flush=True)
                    continue
                print(f"round {number + 1} of {ROUNDS}, {args.one}: {found[args.one][-1]} images a second", flush=True)
            results = read()
            write(results | {"speeds": results.get("speeds", {}) | found})


def train(args: argparse.Namespace, name: str, seed: int) -> None:
    speed = statistics.median(read()["speeds"][name])
    steps = max(1, int(60 * args.minutes * speed / BATCH))
    began = time.monotonic()
    found = process(args, name, threads=1, seed=seed, runs=args.runs, steps=steps)
    if found:
        run = {"method": name, "seed": seed, "minutes": args.minutes, "steps": steps, "images_per_second": speed}
        run |= {key: round(value, 4) for key, value in found.items()}
        with WRITING:
            results = read()
            write(results | {"runs": [*results["runs"], run]})
        scores = f"kNN {run['knn_top1']:.4f}, linear {run['linear_top1']:.4f}, {steps:,} steps"
        print(f"{name}, seed {seed}: {scores}, {(time.monotonic() - began) / 60:.0f} minutes", flush=True)


def table(minutes: float) -> str:
    from contrast.run.sweep_report import estimate

    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for run in read()["runs"]:
        if run["minutes"] == minutes and "knn_top1" in run:
            found[run["method"]].append(run)

    def cell(name: str, figure: str) -> str:
        value = estimate([run[figure] for run in found[name]])
        return f"{value.mean:.4f}" + (f" ± {value.half:.4f}" if len(found[name]) > 1 else "")

    lines = ["| method | sees | kNN | linear | images a second | seeds |", "|---|---|---|---|---|---|"]
    for name in sorted(found, key=lambda name: -sum(run["linear_top1"] for run in found[name]) / len(found[name])):
        sees = SEES.get(name, "images")
        speed = sum(run["images_per_second"] for run in found[name]) / len(found[name])
        cells = f"{cell(name, 'knn_top1')} | {cell(name, 'linear_top1')} | {speed:,.0f} | {len(found[name])}"
        lines.append(f"| `{name}` | {sees} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--methods", help="names separated by commas; default: all, with lightly's")
    parser.add_argument("--images", default=str(Path(os.environ.get("CONTRAST_DATA", "data")) / "cifar10"))
    parser.add_argument("--runs", type=Path, default=Path("runs/which_method"), help="the folder of the trained runs")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, with one thread each")
    parser.add_argument("--max_train", type=int, default=0, help="so many training images of the evaluation; 0: all")
    parser.add_argument("--speeds", action="store_true", help="measure the speeds of the methods and stop")
    parser.add_argument("--seconds", type=int, default=12, help="of each measurement of a speed")
    parser.add_argument("--table", action="store_true", help="print the table of the results and stop")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=2, help=argparse.SUPPRESS)
    parser.add_argument("--to", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        args.to.write_text(json.dumps(one(args)))
        return
    if args.table:
        print(table(args.minutes))
        return
    names = args.methods.split(",") if args.methods else methods()
    if unknown := set(names) - {*methods()}:
        parser.error(f"no method is called {', '.join(sorted(unknown))}")
    if args.speeds:
        measure_speeds(args, names)
        return
    if missing := set(names) - {*read().get("speeds", {})}:
        parser.error(f"run --speeds first: there is no speed of {', '.join(sorted(missing))}")
    # seed after seed, so that an interrupted benchmark has all methods with the first seeds
    done = {(run["method"], run["seed"]) for run in read()["runs"] if run["minutes"] == args.minutes}
    left = [each for seed in map(int, args.seeds.split(",")) for name in names if (each := (name, seed)) not in done]
    print(f"{len(done)} runs are in the file, {len(left)} are left", flush=True)
    args.runs /= f"{args.minutes:g}_minutes"
    args.runs.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(args.jobs) as pool:
        for taught in (False, True):  # those that learn from another run after it
            list(pool.map(lambda each: train(args, *each), [each for each in left if (each[0] in TAUGHT) == taught]))
    print(table(args.minutes))


if __name__ == "__main__":
    main()
