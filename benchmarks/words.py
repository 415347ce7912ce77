"""Word vectors under every output layer: ours beside gensim's and word2vec.c's, on the same text and settings.

    python benchmarks/words.py TEXT --pairs wordsim353.tsv --analogies questions-words.txt \\
        --gensim VENV/bin/python [--word2vec VENV/bin/word2vec] [--modes hierarchical_softmax cbow ...] [--workers 2 1]

TEXT is a plain file, an article or a sentence a line. A mode is an output layer of skip-gram, or of CBOW where its name
begins so; gensim has negative sampling and hierarchical softmax for both, and ratios of the others are to its negative
sampling. Ours runs as a user runs it, contrast-words experiment=skipgram; gensim in the environment of its own that
--gensim names, on `corpus_file`, its fastest way; word2vec.c where a binary is given (the package `word2vec` on PyPI
builds one), under skip-gram with negative sampling. All: dimension 100, window 5, 5 noise words, minimum count 5,
subsampling 1e-4, as many threads as --workers says, of one thread each. They take turns, seed by seed, each in a
process of its own; word2vec.c, which takes no seed, runs once.

Words per second are the words of the text times the epochs by the seconds of training, without those that read the
text and count it (word2vec.c tells only both together: its seconds are all); words per processor second likewise, by
the processor seconds of all processes. Memory is the most that a command and the processes it starts hold, what they
share counted once (Linux's proportional set size); that of a process which only imports torch, Lightning or gensim is
told too. Prints a table of medians with ratios and writes results/words.json.
"""

import argparse
import itertools
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from views import installed, processor

from contrast.data.text.vectors import load_vectors
from contrast.evaluation.words import score_names, word_scores

HERE = Path(__file__).resolve().parent
PSS = re.compile(r"^Pss:\s+(\d+) kB", re.MULTILINE)
OURS = """
import json, os, sys
from contrast.cli.commands import words as main
from contrast.words import WordVectors
start, end, out = WordVectors.on_fit_start, WordVectors.teardown, sys.argv.pop(1)
begun = []
def processor():
    return sum(os.times()[:4])
def on_fit_start(self):
    begun.append(processor())
    start(self)
def teardown(self, stage):
    end(self, stage)  # waits for the workers, so that their times are counted
    json.dump({"processor_seconds": processor() - begun[0]}, open(out, "w"))
WordVectors.on_fit_start, WordVectors.teardown = on_fit_start, teardown
main()
"""
GENSIM = """
import json, sys, time
from gensim.models import Word2Vec
import gensim
path, out, epochs, seed, workers, sg, hs = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
model = Word2Vec(vector_size=100, window=5, negative=0 if hs else 5, hs=hs, min_count=5, sample=1e-4, sg=sg,
                 workers=workers, seed=seed)
model.build_vocab(corpus_file=path)
start, processor = time.perf_counter(), time.process_time()
model.train(corpus_file=path, total_words=model.corpus_total_words, total_examples=model.corpus_count, epochs=epochs)
seconds, processor = time.perf_counter() - start, time.process_time() - processor
model.wv.save_word2vec_format(out + "/vectors.bin", binary=True)
report = {"seconds": seconds, "processor_seconds": processor, "version": gensim.__version__}
json.dump(report, open(out + "/told.json", "w"))
"""
MODES = {  # our settings, and gensim's sg and hs where it has the mode
    "negative_sampling": ([], (1, 0)),
    "nce": (["output=nce"], None),
    "sampled_softmax": (["output=sampled_softmax"], None),
    "hierarchical_softmax": (["output=hierarchical_softmax"], (1, 1)),
    "cbow": (["model.method=cbow"], (0, 0)),
    "cbow_hierarchical_softmax": (["model.method=cbow", "output=hierarchical_softmax"], (0, 1)),
}


def run(command: list[str], folder: Path) -> tuple[float, float]:
    """Seconds of a command, and the most memory in MiB that it and its workers held, looked at twice a second."""
    start, largest = time.perf_counter(), 0.0
    with open(folder / "log.txt", "wb") as log:
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        environment = os.environ | {"WANDB_MODE": "offline"} | threads
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        while process.poll() is None:
            largest = max(largest, held(process.pid))
            time.sleep(0.5)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}:\n{(folder / 'log.txt').read_text()[-2000:]}")
    return time.perf_counter() - start, largest


def held(pid: int) -> float:
    """Memory of a process and those that it started, in MiB; what they share counts once (proportional set size)."""
    total = 0.0
    try:
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            total += sum(held(int(child)) for child in children.read_text().split())
        total += int(PSS.search(Path(f"/proc/{pid}/smaps_rollup").read_text()).group(1)) / 1024
    except (OSError, AttributeError):  # it has ended
        pass
    return total


def imported(python: str, module: str) -> float:
    """Memory in MiB of a process that imports a module and does nothing."""
    status = "from pathlib import Path; print(Path('/proc/self/smaps_rollup').read_text())"
    told = subprocess.run([python, "-c", f"import {module}; {status}"], check=True, capture_output=True, text=True)
    return int(PSS.search(told.stdout).group(1)) / 1024


def ours(args: argparse.Namespace, mode: str, workers: int, seed: int, folder: Path) -> dict[str, Any]:
    settings = [f"data.path={args.text}", f"seed={seed}", f"trainer.max_epochs={args.epochs}", "logger=none"]
    settings += [f"hydra.run.dir={folder}/run", f"model.workers={workers}", *MODES[mode][0], *args.set]
    command = [sys.executable, "-c", OURS, str(folder / "told.json"), "experiment=skipgram", *settings]
    whole, memory = run(command, folder)
    told = json.loads((folder / "told.json").read_text())
    told["seconds"] = json.loads((folder / "run" / "metrics.json").read_text())["seconds"]
    return {**told, "whole": whole, "memory": memory, "file": folder / "run/vectors.safetensors"}


def gensim(args: argparse.Namespace, mode: str, workers: int, seed: int, folder: Path) -> dict[str, Any]:
    options = [args.epochs, seed, workers, *MODES[mode][1]]
    whole, memory = run([args.gensim, "-c", GENSIM, args.text, str(folder), *map(str, options)], folder)
    told = json.loads((folder / "told.json").read_text())
    return {**told, "whole": whole, "memory": memory, "file": folder / "vectors.bin"}


def word2vec(args: argparse.Namespace, mode: str, workers: int, seed: int, folder: Path) -> dict[str, Any]:
    options = f"-cbow 0 -size 100 -window 5 -negative 5 -hs 0 -sample 1e-4 -min-count 5 -iter {args.epochs}"
    file = folder / "vectors.bin"
    command = [args.word2vec, "-train", args.text, "-output", str(file), "-binary", "1", "-threads", str(workers)]
    whole, memory = run([*command, *options.split()], folder)
    return {"seconds": whole, "whole": whole, "memory": memory, "file": file}


def measured(found: dict[str, Any], args: argparse.Namespace, words: int) -> dict[str, Any]:
    """The figures of a run, quality included."""
    vectors = load_vectors(found.pop("file"))
    scores = word_scores(*vectors, args.pairs, args.analogies, 30_000)
    kept = {name: score for name, score in scores.items() if name.endswith("_spearman") or name == "analogies"}
    speed = {"words_per_second": words * args.epochs / found["seconds"]}
    if "processor_seconds" in found:
        speed["words_per_processor_second"] = words * args.epochs / found["processor_seconds"]
    return found | speed | kept


def table(runs: dict[str, list[dict[str, Any]]]) -> str:
    """A line for each mode, number of workers and program: medians over the seeds, and ratios of ours to gensim's."""
    first = next(iter(runs.values()))[0]
    names = [name for name in first if isinstance(first[name], float)]
    speeds = [name for name in names if name.startswith("words_per")]
    median = {
        who: {name: statistics.median(one[name] for one in found) for name in names if name in found[0]}
        for who, found in runs.items()
    }
    lines = ["| | " + " | ".join(names) + " | ratios to gensim |", "|---" * (len(names) + 2) + "|"]
    for who, values in median.items():
        mode, workers, program = who.split(", ")
        beside = [median.get(f"{other}, {workers}, gensim") for other in (mode, "negative_sampling")]
        other = next((each for each in beside if each is not None), None)
        ratios = [f"{values[name] / other[name]:.2f}" for name in speeds if other and name in values]
        cells = [f"{values[name]:,.4g}" if name in values else "" for name in names]
        lines.append(f"| {who} | " + " | ".join(cells) + f" | {', '.join(ratios) if program != 'gensim' else ''} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text")
    parser.add_argument("--pairs", nargs="*", default=[])
    parser.add_argument("--analogies")
    parser.add_argument("--gensim", help="the Python of an environment that has gensim")
    parser.add_argument("--word2vec", help="the binary of word2vec.c")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["negative_sampling"])
    parser.add_argument("--workers", type=int, nargs="+", default=[2])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], help="our settings, such as model.max_pairs_per_row=32")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "words.json")
    args = parser.parse_args()
    score_names(args.pairs, args.analogies)  # for its errors, before anything is run
    with open(args.text, encoding="utf-8", errors="replace") as file:
        words = sum(len(line.split()) for line in file)
    runs: dict[str, list[dict[str, Any]]] = {}
    bare = {module: round(imported(sys.executable, module)) for module in ("torch", "pytorch_lightning")}
    bare |= {"gensim": round(imported(args.gensim, "gensim.models"))} if args.gensim else {}
    for seed, workers, mode in itertools.product(args.seeds, args.workers, args.modes):
        sides = {"ours": ours}
        if args.gensim and MODES[mode][1] is not None:
            sides["gensim"] = gensim
        if args.word2vec and mode == "negative_sampling" and seed == args.seeds[0]:
            sides["word2vec.c"] = word2vec
        for program, side in sides.items():
            with tempfile.TemporaryDirectory() as folder:
                found = measured(side(args, mode, workers, seed, Path(folder)), args, words)
            who = f"{mode}, {workers} worker{'s' * (workers > 1)}, {program}"
            runs.setdefault(who, []).append(found)
            print(f"{who}, seed {seed}: " + json.dumps(found), flush=True)
            facts = {
                "processor": processor(),
                "python": platform.python_version(),
                "torch": torch.__version__,
                "pytorch-lightning": installed("pytorch-lightning"),
                "words": words,
                "epochs": args.epochs,
                "MiB of the imports alone": bare,
            }
            args.out.write_text(json.dumps({"versions": facts, "runs": runs}, indent=2) + "\n")
    print(table(runs))
    print("MiB of the imports alone: " + ", ".join(f"{module} {size:,}" for module, size in bare.items()))


if __name__ == "__main__":
    main()
