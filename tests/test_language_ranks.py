"""A language model on two gloo processes is that of one: losses and gradients in float64, and whole runs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from conftest import Command, figures
from test_distributed import free_port, join, leave
from test_perplexity import HIDDEN, V, model, outputs, text

from contrast.data.loader import Span
from contrast.distributed import average_gradients, mean_over_ranks
from contrast.heads import NCE, Estimated
from contrast.negatives import Table, Tree
from contrast.samplers import Uniform

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "words.py"
# 4 windows; 3, so that the ranks have different numbers; 1, so that one rank has none; a word, of which nothing follows
SPANS = {20: 16, 15: 12, 5: 4, 3: 2, 1: 0}  # places, and predicted words


def cases() -> dict[str, tuple[Any, Any]]:
    dim = HIDDEN + 1
    more = {
        "sparse tree": (Tree(torch.arange(1, V + 1), dim, sparse=True), NCE(1.0, cosine=False)),
        "estimated Z": (Table(V, dim, Uniform(V), 4), NCE(1.0, cosine=False, bias=Estimated())),
    }
    return outputs() | more


def steps(name: str, averaged: bool) -> list[dict[str, Any]]:
    """The loss of each span on all ranks, and its gradients."""
    made, found = model(*cases()[name], length=4, batch=4), []
    for number, places in enumerate(SPANS):
        made.batch_number = number
        made.zero_grad()
        loss = made.training_step(Span(text(places).long()), 0)["loss"]
        loss.backward()
        if averaged:
            average_gradients(made.parameters())
        grads = {key: p.grad for key, p in made.named_parameters() if p.grad is not None}
        is_sparse = {key: grad.is_sparse for key, grad in grads.items()}
        dense = {key: grad.to_dense().clone() for key, grad in grads.items()}
        found.append({"loss": mean_over_ranks(loss.detach()), "grads": dense, "is_sparse": is_sparse})
    return found


def ranked(rank: int, world: int, port: int, folder: str) -> None:
    join(rank, world, port)
    torch.save({name: steps(name, True) for name in cases()}, Path(folder) / f"{rank}.pt")
    leave()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(ranked, (2, free_port(), str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", cases())
def test_two_ranks_have_the_loss_and_the_gradients_of_one(name: str, ranks: list[dict[str, Any]]) -> None:
    one = steps(name, False)
    # an estimate of Z is a number of single precision, and the mean of those of equal parts
    spans, precision = (one[:1], 1e-5) if name == "estimated Z" else (one, 1e-9)
    for number, expected in enumerate(spans):
        for rank in ranks:
            found = rank[name][number]
            torch.testing.assert_close(found["loss"], expected["loss"], rtol=precision, atol=1e-12)
            assert found["grads"].keys() == expected["grads"].keys()
            for key, grad in expected["grads"].items():
                torch.testing.assert_close(found["grads"][key], grad, rtol=precision, atol=precision * 1e-3)
            assert found["is_sparse"] == expected["is_sparse"]
        for key, grad in ranks[0][name][number]["grads"].items():
            assert torch.equal(ranks[1][name][number]["grads"][key], grad)  # or the ranks would part


def test_words_of_a_batch_are_counted_once() -> None:
    made = model(*outputs()["full_softmax"], length=4, batch=4)
    assert [made.count(Span(text(places).long())) for places in SPANS] == list(SPANS.values())


# --- runs


def begin(*words: str) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), *words]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)


def on_two_ranks(*words: str) -> None:
    with begin(*words) as process:
        _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said


def setting(text_file: str, *more: str) -> tuple[str, ...]:
    few = ("model.length=4", "model.batch=6", "encoder.dim=8", "encoder.hidden=8", "trainer.log_every_n_steps=1")
    few += ("trainer.accelerator=cpu", "logger=none", "callbacks.held_out.max_seconds=null")
    data = ("data=corpus", f"data.path={text_file}", "data.min_count=1", "data.held_out=0.1")
    return ("experiment=language_model", *data, *few, *more)


def state(run: str) -> dict[str, torch.Tensor]:
    return torch.load(f"{run}/checkpoints/last.ckpt", weights_only=True)["state_dict"]


@pytest.fixture
def lines(workplace: Path) -> str:
    words = [f"w{i}" for i in range(12)]
    lines = [" ".join(words[(start + 5 * i) % 12] for i in range(20)) for start in range(31)]
    Path("text.txt").write_text("\n".join(lines) + "\n")
    return "text.txt"


@pytest.mark.slow
@pytest.mark.parametrize("output", ["sampled_softmax", "adaptive_softmax"])
def test_two_ranks_train_as_one_process(words: Command, lines: str, output: str) -> None:
    options = {"sampled_softmax": "negatives.draws=6", "adaptive_softmax": "head.cutoffs=[5]"}
    more = setting(lines, f"output={output}", options[output], "trainer.max_epochs=2", "trainer.gradient_clip_val=0.5")
    assert words(*more, "hydra.run.dir=one") == 0
    on_two_ranks(*more, "trainer.devices=2", "hydra.run.dir=two")
    one, two = state("one"), state("two")
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-4, atol=1e-5)
    for name in ("loss", "perplexity", "held_out_words"):
        assert figures("two")[name] == pytest.approx(figures("one")[name], rel=1e-4)
    count = [torch.load(f"{run}/checkpoints/last.ckpt")["callbacks"]["Throughput"]["words"] for run in ("one", "two")]
    assert count[0] == count[1]


@pytest.mark.slow
def test_two_ranks_that_were_killed_go_on(lines: str) -> None:
    """Killed after a step in the middle of an epoch, they end bit for bit as without the interruption."""
    more = setting(lines, "output=sampled_softmax", "negatives.draws=6", "+encoder.dropout=0.1", "trainer.devices=2")
    more = (*more, "trainer.max_epochs=3", "checkpoints.every_n_steps=5")
    on_two_ranks(*more, "hydra.run.dir=whole")
    with begin(*more, "hydra.run.dir=cut") as process:
        while not Path("cut/checkpoints/last.ckpt").exists():
            assert process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
    assert not Path("cut/metrics.json").exists()
    on_two_ranks("resume=cut")
    whole, cut = state("whole"), state("cut")
    assert all(torch.equal(value, cut[key]) for key, value in whole.items())
    assert figures("whole")["perplexity"] == figures("cut")["perplexity"]


@pytest.mark.slow
def test_ranks_end_together_after_so_many_seconds(lines: str) -> None:
    more = setting(lines, "trainer.devices=2", "trainer.max_epochs=100000", "callbacks.held_out.first=0.3")
    ends = ("max_seconds=null", "max_seconds=2")
    on_two_ranks(*(word.replace(*ends) for word in more), "hydra.run.dir=run")
    assert 2 <= figures("run")["seconds"] < 60
