"""A campaign of faults: runs that are killed with -9 and resumed, and the tests of full disks, files and mistakes.

    python benchmarks/faults.py [--kills 24] [--seed 0] [--only kills soak disk survival hostile mistakes]

Writes results/faults.json. A run of each method is trained without interruption. The same run is then killed at random
moments, three times one after the other, and resumed each time. At its end the weights, the optimiser and the step must
be equal to those of the uninterrupted run in every bit. The soak is a run of 2,000 steps whose memory and open files
are measured. The other rows count the cases of the tests that do each fault.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch

from contrast.run import curves
from contrast.run.metrics import read_rows

HERE = Path(__file__).resolve().parent
KILLS_OF_A_RUN = 3
IMAGES = (
    "batch_size=64",
    "encoder.widths=[8,16,32]",
    "projector.hidden_features=32",
    "projector.out_features=16",
    "trainer.max_epochs=5",
    "trainer.limit_train_batches=6",
    "evaluation.enabled=false",
    "callbacks=none",
)
TEXT = ("data=corpus", "data.path=text.txt", "trainer.max_epochs=2")
COMMON = ("trainer.accelerator=cpu", "logger=csv", "trainer.log_every_n_steps=1")
RUNS: dict[str, tuple[str, ...]] = {
    "simclr": ("pretrain", *IMAGES),
    "simclr, learned temperature": ("pretrain", *IMAGES, "+head/temperature=learnable"),
    "supcon": ("pretrain", *IMAGES, "method=supcon"),
    "moco": ("pretrain", *IMAGES, "method=moco", "negatives.size=256"),
    "mocov3": ("pretrain", *IMAGES, "method=mocov3"),
    "nnclr": ("pretrain", *IMAGES, "method=nnclr", "negatives.size=256"),
    "instdisc": ("pretrain", *IMAGES, "method=instdisc", "negatives.draws=20"),
    "full_softmax": ("pretrain", *IMAGES, "method=full_softmax"),
    "skip-gram": (
        "words",
        *TEXT,
        "experiment=skipgram",
        "model.chunk=1000",
        "model.workers=1",
        "encoder.num_features=8",
    ),
    "language model": (
        "words",
        *TEXT,
        "experiment=language_model",
        "encoder.dim=8",
        "callbacks.held_out.max_seconds=null",
        "metric=loss",
    ),
}
# A checkpoint after each step, so that many kills hit one that is half written, or after each epoch
PERIODS = ("checkpoints.every_n_steps=1", "checkpoints.every_n_steps=0")
TESTS = {
    "disk": "test_disk.py",
    "survival": "test_survival.py",
    "hostile": "test_trust.py",
    "mistakes": "test_mistakes.py",
}
# Children are forked from one server that has done the slow imports.
PROCESSES = multiprocessing.get_context("forkserver")


def command(name: str, words: tuple[str, ...], folder: Path) -> None:
    """`contrast-<name>` with these words, called from `folder`, where its output goes to log.txt."""
    os.chdir(folder)
    log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    sys.argv = [f"contrast-{name}", *words]
    if name == "words":
        from contrast.cli.commands import words as main
    else:
        from contrast.cli.commands import pretrain as main
    main()


def drawing(words: tuple[str, ...], folder: Path) -> None:
    """A run that draws its curves early, so that the memory that matplotlib takes once is there when it is measured."""
    curves.EVERY = 2.0
    command("pretrain", words, folder)


def started(name: str, words: tuple[str, ...], folder: Path) -> multiprocessing.process.BaseProcess:
    process = PROCESSES.Process(target=command, args=(name, words, folder))
    process.start()
    return process


def complete(name: str, words: tuple[str, ...], folder: Path) -> None:
    process = started(name, words, folder)
    process.join()
    if process.exitcode:
        raise SystemExit(f"{' '.join(words)}: status {process.exitcode}\n{(folder / 'log.txt').read_text()[-3000:]}")


def same(one: object, other: object) -> bool:
    """Whether two parts of checkpoints are equal in every bit."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return type(one) is type(other) and one == other


def trained(run: Path) -> object:
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return [saved[key] for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch")]


def killed(name: str, words: tuple[str, ...], folder: Path, dice: random.Random) -> list[int]:
    """Kills a run three times, each time after a new checkpoint, and lets it end; the steps that it had reached."""
    run, steps = folder / "cut", []
    last = run / "checkpoints" / "last.ckpt"
    words = (*words, "hydra.run.dir=cut")
    for _ in range(KILLS_OF_A_RUN):
        before = last.stat().st_mtime_ns if last.exists() else 0
        process = started(name, words, folder)
        while process.is_alive() and (not last.exists() or last.stat().st_mtime_ns == before):
            time.sleep(0.001)
        time.sleep(dice.uniform(0, 1.5))
        process.kill()
        process.join()
        if process.exitcode == -9:
            steps.append(int(torch.load(last, weights_only=True)["global_step"]))
        words = ("resume=cut",)
    if not (run / "metrics.json").exists():
        complete(name, words, folder)
    return steps


def kills(number: int, seed: int) -> Iterator[dict[str, object]]:
    """Runs of all methods in turn, until so many processes were killed; the state after each run."""
    dice, tried, equal, rows = random.Random(seed), 0, 0, []
    PROCESSES.set_forkserver_preload(["contrast.cli.pretrain", "contrast.cli.words"])
    with tempfile.TemporaryDirectory() as place:
        for (label, (name, *words)), period in zip(
            itertools.cycle(RUNS.items()), itertools.cycle((*PERIODS, *reversed(PERIODS))), strict=False
        ):
            if tried >= number:
                break
            folder = Path(tempfile.mkdtemp(dir=place))
            sentences = [" ".join(f"w{dice.randrange(200)}" for _ in range(20)) for _ in range(1000)]
            (folder / "text.txt").write_text("\n".join(sentences))
            setting = (*words, *COMMON, period)
            complete(name, (*setting, "hydra.run.dir=whole"), folder)
            steps = killed(name, setting, folder, dice)
            is_equal = same(trained(folder / "whole"), trained(folder / "cut"))
            tried, equal = tried + len(steps), equal + len(steps) * is_equal
            rows.append({"run": label, "checkpoints": period, "killed_after_step": steps, "equal": is_equal})
            print(
                f"{label:<28} {period:<28} killed at steps {steps}: {'equal' if is_equal else 'NOT EQUAL'}", flush=True
            )
            yield {"tried": tried, "equal": equal, "runs": rows}


def soak(steps: int = 2000, first: int = 200) -> dict[str, object] | None:
    """The growth of a run's resident memory from step `first` to its end, and its numbers of open files meanwhile.

    None where there is no /proc to read them from.
    """
    if not Path("/proc/self/status").exists():
        return None
    words = (*IMAGES[:4], "evaluation.enabled=false", *COMMON, f"+trainer.max_steps={steps}")
    words = (*words, "trainer.max_epochs=1000", "checkpoints.every_n_steps=50", "hydra.run.dir=run")
    samples = []
    with tempfile.TemporaryDirectory() as place:
        process = PROCESSES.Process(target=drawing, args=(words, Path(place)))
        process.start()
        run, here = Path(place, "run"), Path("/proc", str(process.pid))
        while process.is_alive():
            time.sleep(0.2)
            if not (run / "curves.png").exists():
                continue  # matplotlib's memory is there from the first picture on
            reached = int(read_rows(run / "metrics.jsonl")[-1]["step"])
            with suppress(OSError):  # the process may end meanwhile
                status = (here / "status").read_text()
                if reached >= first and "VmRSS:" in status:
                    resident = int(status.partition("VmRSS:")[2].split()[0])
                    samples.append((reached, resident, len(os.listdir(here / "fd"))))
        if process.exitcode:
            raise SystemExit(f"soak: status {process.exitcode}\n{Path(place, 'log.txt').read_text()[-3000:]}")
    before = samples[0][1]
    last = [resident for reached, resident, _ in samples if reached >= 0.9 * steps]
    return {
        "steps": steps,
        "samples": len(samples),
        "resident_kB": before,
        "growth": round(median(last) / before - 1, 4),
        "largest": round(max(resident for _, resident, _ in samples) / before - 1, 4),
        "open_files": sorted({files for _, _, files in samples}),
    }


def count(file: str) -> dict[str, int] | None:
    """How the cases of a test file end, those that are slow included; None if there is no such file."""
    path = HERE.parent / "tests" / file
    if not path.exists():
        return None
    with tempfile.TemporaryDirectory() as place:
        report = Path(place) / "report.xml"
        words = ["-m", "slow or not slow", "-p", "no:cacheprovider", f"--junitxml={report}"]
        subprocess.run([sys.executable, "-m", "pytest", str(path), *words], cwd=HERE.parent, check=False)
        suite = next(ElementTree.parse(report).iter("testsuite"))
    cases = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    failed = cases["failures"] + cases["errors"]
    return {"passed": cases["tests"] - failed - cases["skipped"], "failed": failed, "skipped": cases["skipped"]}


def results_of(part: str, number: int, seed: int) -> Iterator[dict[str, object] | dict[str, int] | None]:
    if part == "kills":
        yield from kills(number, seed)
    else:
        yield soak() if part == "soak" else count(TESTS[part])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parts = ["kills", "soak", *TESTS]
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "faults.json")
    args = parser.parse_args()
    results = json.loads(args.out.read_text()) if args.out.exists() else {}
    packages = {name: version(name) for name in ("torch", "pytorch-lightning")}
    results["versions"] = {"python": platform.python_version(), **packages}
    for part in args.only:
        for result in results_of(part, args.kills, args.seed):
            results[part] = result
            args.out.write_text(json.dumps(results, indent=2) + "\n")
    for part in args.only:
        print(part, {key: value for key, value in (results[part] or {}).items() if key != "runs"})


if __name__ == "__main__":
    main()
