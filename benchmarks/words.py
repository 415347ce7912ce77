"""Skip-gram with negative sampling: ours beside gensim's and word2vec.c's, on the same text with the same settings.

    python benchmarks/words.py TEXT --pairs wordsim353.tsv --analogies questions-words.txt \\
        --gensim VENV/bin/python [--word2vec VENV/bin/word2vec]

TEXT is a plain file, an article or a sentence a line. Ours runs as a user runs it, contrast-words
experiment=skipgram; gensim in the environment of its own that --gensim names, on `corpus_file`, its fastest way;
word2vec.c where a binary is given (the package `word2vec` on PyPI builds one). All: dimension 100, window 5, 5 noise
words, minimum count 5, subsampling 1e-4, two threads. They take turns, seed by seed, each in a process of its own;
word2vec.c, which takes no seed, runs once.

Words per second are the words of the text times the epochs by the seconds of training, without those that read the
text and count it (word2vec.c tells only both together: its seconds are all). Memory is the most that a command and the
processes it starts hold, what they share counted once (Linux's proportional set size); that of a process which only
imports torch, Lightning or gensim is told too. Prints a table with ratios and writes results/words.json.
"""

import argparse
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
GENSIM = """
import json, sys, time
from gensim.models import Word2Vec
import gensim
path, out, epochs, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
model = Word2Vec(vector_size=100, window=5, negative=5, min_count=5, sample=1e-4, sg=1, workers=2, seed=seed)
model.build_vocab(corpus_file=path)
start = time.perf_counter()
model.train(corpus_file=path, total_words=model.corpus_total_words, total_examples=model.corpus_count, epochs=epochs)
seconds = time.perf_counter() - start
model.wv.save_word2vec_format(out + "/vectors.bin", binary=True)
json.dump({"seconds": seconds, "version": gensim.__version__}, open(out + "/told.json", "w"))
"""


def run(command: list[str], folder: Path) -> tuple[float, float]:
    """Seconds of a command, and the most memory in MiB that it and its workers held, looked at twice a second."""
    start, largest = time.perf_counter(), 0.0
    with open(folder / "log.txt", "wb") as log:
        environment = os.environ | {"WANDB_MODE": "offline"}
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


def ours(args: argparse.Namespace, seed: int, folder: Path) -> dict[str, Any]:
    settings = [f"data.path={args.text}", f"seed={seed}", f"trainer.max_epochs={args.epochs}", "logger=none"]
    settings += [f"hydra.run.dir={folder}/run", *args.set]
    program = "from contrast.cli.words import main; main()"
    whole, memory = run([sys.executable, "-c", program, "experiment=skipgram", *settings], folder)
    told = json.loads((folder / "run" / "metrics.json").read_text())
    return {"seconds": told["seconds"], "whole": whole, "memory": memory, "file": folder / "run/vectors.safetensors"}


def gensim(args: argparse.Namespace, seed: int, folder: Path) -> dict[str, Any]:
    whole, memory = run([args.gensim, "-c", GENSIM, args.text, str(folder), str(args.epochs), str(seed)], folder)
    told = json.loads((folder / "told.json").read_text())
    return {**told, "whole": whole, "memory": memory, "file": folder / "vectors.bin"}


def word2vec(args: argparse.Namespace, seed: int, folder: Path) -> dict[str, Any]:
    options = f"-cbow 0 -size 100 -window 5 -negative 5 -hs 0 -sample 1e-4 -threads 2 -min-count 5 -iter {args.epochs}"
    file = folder / "vectors.bin"
    command = [args.word2vec, "-train", args.text, "-output", str(file), "-binary", "1", *options.split()]
    whole, memory = run(command, folder)
    return {"seconds": whole, "whole": whole, "memory": memory, "file": file}


def measured(found: dict[str, Any], args: argparse.Namespace, words: int) -> dict[str, Any]:
    """The figures of a run, quality included."""
    vectors = load_vectors(found.pop("file"))
    scores = word_scores(*vectors, args.pairs, args.analogies, 30_000)
    kept = {name: score for name, score in scores.items() if name.endswith("_spearman") or name == "analogies"}
    return found | {"words_per_second": words * args.epochs / found["seconds"]} | kept


def table(runs: dict[str, list[dict[str, Any]]]) -> str:
    names = [name for name in runs["ours"][0] if isinstance(runs["ours"][0][name], float)]
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for who, found in runs.items():
        cells = [f"{statistics.median(one[name] for one in found):,.4g}" for name in names]
        cells = [
            f"{statistics.median(one[name] for one in found):,.0f}" if name == "words_per_second" else cell
            for name, cell in zip(names, cells, strict=True)
        ]
        lines.append(f"| {who} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text")
    parser.add_argument("--pairs", nargs="*", default=[])
    parser.add_argument("--analogies")
    parser.add_argument("--gensim", help="the Python of an environment that has gensim")
    parser.add_argument("--word2vec", help="the binary of word2vec.c")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], help="our settings, such as model.max_pairs_per_row=32")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "words.json")
    args = parser.parse_args()
    score_names(args.pairs, args.analogies)  # for its errors, before anything is run
    with open(args.text, encoding="utf-8", errors="replace") as file:
        words = sum(len(line.split()) for line in file)
    sides = {"ours": ours}
    sides |= ({"gensim": gensim} if args.gensim else {}) | ({"word2vec.c": word2vec} if args.word2vec else {})
    runs: dict[str, list[dict[str, Any]]] = {who: [] for who in sides}
    bare = {module: round(imported(sys.executable, module)) for module in ("torch", "pytorch_lightning")}
    bare |= {"gensim": round(imported(args.gensim, "gensim.models"))} if args.gensim else {}
    for seed in args.seeds:
        for who, side in sides.items():
            if who == "word2vec.c" and runs[who]:
                continue
            with tempfile.TemporaryDirectory() as folder:
                found = measured(side(args, seed, Path(folder)), args, words)
            runs[who].append(found)
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
    speed = {who: statistics.median(one["words_per_second"] for one in found) for who, found in runs.items()}
    for who in list(runs)[1:]:
        print(f"ours / {who}: {speed['ours'] / speed[who]:.2f} times the words per second")


if __name__ == "__main__":
    main()
