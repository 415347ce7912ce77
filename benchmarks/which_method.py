"""Accuracy on CIFAR-10 after the same minutes of training, for every method and for lightly's own examples.

    python benchmarks/which_method.py [--minutes 20] [--seeds 0,1,2] [--methods simclr,moco] [--images FOLDER]
    python benchmarks/which_method.py --table

FOLDER contains CIFAR-10, as `data.root` takes it (default: $CONTRAST_DATA/cifar10). Every run has 2 threads, the
network of `encoder=small` and batches of 256 images. A run of this library first takes a tenth of the minutes (a minute
at most) to measure its speed. It then trains for as many steps as fill the minutes, so that its schedules end with the
training. The settings are those of conf/method/ with `views=simclr` and without probes. lightly's SimCLR, MoCo and BYOL
are its examples for PyTorch (transforms without blur, heads, SGD at 0.06) with this network; they need
`pip install lightly`.

After the training both sides are evaluated by the same code: kNN and a linear probe on the frozen features, with all
labels. Each result is added to results/which_method.json as soon as it is there. A run whose result is in the file is
not repeated, so the benchmark can be interrupted and continued. Methods that learn from captions or a teacher are left
out, unless `--teacher RUN` says which teacher.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "which_method.json"
PEERS = ("lightly_simclr", "lightly_moco", "lightly_byol")
CAPTIONS, TAUGHT = ("clip", "siglip"), ("seed", "crd")
LABELS = ("supcon", "full_softmax", "cosface", "arcface", "l_softmax")
BATCH = 256


def methods(taught: bool) -> list[str]:
    names = sorted(path.stem for path in (HERE.parent / "conf" / "method").glob("*.yaml"))
    return [name for name in names if name not in CAPTIONS and (taught or name not in TAUGHT)] + list(PEERS)


# --- one run, in a process of its own


def one(args: argparse.Namespace) -> dict[str, float]:
    """Trains `args.one` and evaluates it."""
    import torch

    torch.set_num_threads(args.threads)
    return of_lightly(args) if args.one in PEERS else ours(args)


def ours(args: argparse.Namespace) -> dict[str, float]:
    import contrast

    seconds = 60 * args.minutes
    words = [
        *(f"method={args.one}", f"seed={args.seed}", "data=cifar10", f"data.root={args.images}", "encoder=small"),
        *("views=simclr", f"batch_size={BATCH}", "trainer.accelerator=cpu", "callbacks=none", "logger=none"),
        *("evaluation.untrained=false", "evaluation.pixels=false", "evaluation.per_class=[]", "trainer.max_epochs=-1"),
    ]
    if args.one in TAUGHT:
        words += [f"key.weights={args.teacher}", f"projector.out_features={args.width}"]
    words += [f"evaluation.max_train={args.max_train}"] if args.max_train else []
    with tempfile.TemporaryDirectory() as folder:
        # steps that no run reaches: the schedules need a number, and the time ends the run
        short = [f"+trainer.max_time='00:00:00:{max(5, min(59, int(seconds / 10))):02}'", "+trainer.max_steps=1000000"]
        probe = contrast.pretrain(*words, *short, "evaluation.enabled=false", run_dir=f"{folder}/speed").metrics
        steps = max(1, int(seconds * probe["images_per_second"] / BATCH))
        found = contrast.pretrain(*words, f"+trainer.max_steps={steps}", run_dir=f"{folder}/run").metrics
    names = ("knn_top1", "linear_top1", "seconds", "images_per_second")
    return {name: found[name] for name in names} | {"steps": steps}


def of_lightly(args: argparse.Namespace) -> dict[str, float]:
    """docs/examples/pytorch/{simclr,moco,byol}.py of lightly, with a clock in place of the number of epochs."""
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
    start, steps, seconds = time.monotonic(), 0, 60 * args.minutes
    while (spent := time.monotonic() - start) < seconds:
        for x0, x1 in loader:
            progress = min(1.0, (time.monotonic() - start) / seconds)
            if kind != "simclr":
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
            if (spent := time.monotonic() - start) >= seconds:
                break
    del loader
    # lightly's transforms normalise by ImageNet's mean and standard deviation
    frozen = Frozen(Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), backbone).eval()
    how = OmegaConf.create({"k": 200, "temperature": 0.07, "per_class": [], "max_train": args.max_train or None})
    found = frozen_metrics(how, frozen_data(how, frozen, splits, torch.device("cpu")))
    speed = {"seconds": spent, "images_per_second": steps * BATCH / spent, "steps": steps}
    return {"knn_top1": found["knn_top1"], "linear_top1": found["linear_top1"]} | speed


# --- all of them


def read() -> dict[str, Any]:
    return json.loads(RESULT.read_text()) if RESULT.is_file() else {"versions": {}, "runs": []}


def add(run: dict[str, Any]) -> None:
    """Adds a result to the file, which is whole at every moment."""
    from views import installed, processor

    from contrast.atomic import replacing

    packages = ("torch", "pytorch-lightning", "lightly")
    facts = {"processor": processor(), "python": platform.python_version()}
    facts |= {name: version for name in packages if (version := installed(name)) is not None}
    with replacing(RESULT) as file:
        file.write_text(json.dumps({"versions": facts, "runs": [*read()["runs"], run]}, indent=1) + "\n")


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
        sees = "labels" if name in LABELS else "a teacher" if name in TAUGHT else "images"
        speed = sum(run["images_per_second"] for run in found[name]) / len(found[name])
        cells = f"{cell(name, 'knn_top1')} | {cell(name, 'linear_top1')} | {speed:,.0f} | {len(found[name])}"
        lines.append(f"| `{name}` | {sees} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--methods", help="names separated by commas; default: all, with lightly's")
    parser.add_argument("--images", default=str(Path(os.environ.get("CONTRAST_DATA", "data")) / "cifar10"))
    parser.add_argument("--teacher", help="a run that seed and crd learn from")
    parser.add_argument("--width", type=int, default=256, help="of the teacher's features")
    parser.add_argument("--max_train", type=int, default=0, help="so many training images of the evaluation; 0: all")
    parser.add_argument("--table", action="store_true", help="print the table of the results and stop")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--to", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        args.to.write_text(json.dumps(one(args)))
        return
    if args.table:
        print(table(args.minutes))
        return
    names = args.methods.split(",") if args.methods else methods(args.teacher is not None)
    if unknown := set(names) - {*methods(True)}:
        parser.error(f"no method is called {', '.join(sorted(unknown))}")
    # seed after seed, so that an interrupted benchmark has all methods with the first seeds
    wanted = [(name, seed) for seed in map(int, args.seeds.split(",")) for name in names]
    done = {(run["method"], run["seed"]) for run in read()["runs"] if run["minutes"] == args.minutes}
    left = [each for each in wanted if each not in done]
    print(
        f"{len(wanted) - len(left)} of {len(wanted)} runs are there; the others take {args.minutes:g} minutes each",
        flush=True,
    )
    given = [f"--{key}={getattr(args, key)}" for key in ("minutes", "threads", "images", "width", "max_train")]
    given += [f"--teacher={args.teacher}"] if args.teacher else []
    threads = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
    start = time.monotonic()
    for number, (name, seed) in enumerate(left, 1):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "result.json"
            command = [sys.executable, __file__, *given, f"--one={name}", f"--seed={seed}", f"--to={file}"]
            ended = subprocess.run(command, env=threads, capture_output=True, text=True)
            if ended.returncode:
                print(f"{name}, seed {seed} failed: {(ended.stderr.strip().splitlines() or ['?'])[-1]}", flush=True)
                continue
            run = {"method": name, "seed": seed, "minutes": args.minutes, "threads": args.threads}
            run |= {key: round(value, 4) for key, value in json.loads(file.read_text()).items()}
        add(run)
        rest = (time.monotonic() - start) / number * (len(left) - number) / 60
        scores = f"kNN {run['knn_top1']:.4f}, linear {run['linear_top1']:.4f}, {run['images_per_second']:,.0f} images/s"
        print(f"{number}/{len(left)} {name}, seed {seed}: {scores}; about {rest:,.0f} minutes left", flush=True)
    print(table(args.minutes))


if __name__ == "__main__":
    main()
