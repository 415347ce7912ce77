import csv
import json
import logging
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import toy_task
from omegaconf import OmegaConf
from scipy import stats
from toy_conf import write_conf

import contrast
from contrast import run as entry
from contrast.errors import InputError
from contrast.run.folder import metric_of, prepare_folder
from contrast.run.sweep_report import (
    COMPLETE,
    FAILED,
    INTERRUPTED,
    NOT_RUN,
    Job,
    draw,
    estimate,
    grouped,
    is_logarithmic,
    paired,
    read_jobs,
    save_plot,
    swept_keys,
    table,
)

Call = Callable[..., int]


def job(number: int, status: str = COMPLETE, accuracy: float | None = 0.5, **swept: object) -> Job:
    values = {key.replace("__", "."): str(value) for key, value in swept.items()}
    metrics = {} if accuracy is None else {"accuracy": accuracy}
    return Job(str(number), Path(str(number)), values, status, metrics)


# --- estimates over seeds


def test_estimate_is_students_interval() -> None:
    values = [0.91, 0.93, 0.90, 0.97]
    low, high = stats.t.interval(0.95, 3, loc=sum(values) / 4, scale=stats.sem(values))
    result = estimate(values)
    assert (result.mean, result.n) == (pytest.approx(0.9275), 4)
    assert (result.mean - result.half, result.mean + result.half) == (pytest.approx(low), pytest.approx(high))
    # by hand: t_{0.975, 1} = 12.7062, s = sqrt(2) / 2 for a step of 1
    assert estimate([0.0, 1.0]).half == pytest.approx(12.7062 / 2, rel=1e-5)


def test_one_seed_has_no_interval() -> None:
    assert math.isnan(estimate([0.5]).half)
    assert str(estimate([0.5])) == "0.5000"


def test_groups_are_over_the_seeds() -> None:
    jobs = [job(i, tau=tau, seed=seed, steps=5) for i, (tau, seed) in enumerate([(1, 0), (1, 1), (2, 0), (2, 1)])]
    assert swept_keys(jobs) == ["tau", "seed"]  # steps is the same in all
    assert [(group.values, len(group.jobs)) for group in grouped(jobs, ["tau", "seed"])] == [(("1",), 2), (("2",), 2)]


def test_table_leaves_out_what_failed_and_names_it() -> None:
    jobs = [job(0, accuracy=0.2, tau=1, seed=0), job(1, accuracy=0.4, tau=1, seed=1), job(2, INTERRUPTED, None, tau=2)]
    jobs.append(Job("3", None, {"tau": "3", "seed": "0"}, FAILED, {"accuracy": 9.0}, "it broke"))
    lines = table(jobs, ["accuracy"]).splitlines()
    assert lines[0].split() == ["tau", "accuracy", "n"]
    assert lines[1].split() == ["1", "0.3000", "±", "1.2706", "2"]
    assert lines[2].split() == ["2", "-", "0"]
    assert lines[3].split() == ["3", "-", "0"]
    assert lines[4:] == ["interrupted: job 2 tau=2 seed=", "failed: job 3 tau=3 seed=0: it broke"]


def test_metric_of_names_those_that_were_measured() -> None:
    with pytest.raises(InputError, match=r"metric=acc .*: knn, linear"):
        metric_of({"linear": 1.0, "knn": 2.0}, "acc")


# --- plots


@pytest.mark.parametrize(
    ("values", "logarithmic"),
    [([0.05, 0.1, 0.2, 0.5], True), ([1, 2, 3], False), ([1, 2, 4], True), ([0, 1, 10], False), ([5], False)],
)
def test_is_logarithmic(values: list[float], logarithmic: bool) -> None:
    assert is_logarithmic(values) is logarithmic


def axes_of(jobs: list[Job]) -> list[Any]:
    drawn = draw(jobs, "accuracy")
    assert drawn is not None
    return drawn.axes


def test_one_numeric_value_is_a_line() -> None:
    jobs = [job(i, accuracy=i / 10, tau=tau, seed=i % 2) for i, tau in enumerate([0.5, 0.5, 0.05, 0.05, 0.1, 0.1])]
    (axes,) = axes_of(jobs)
    (bars,) = axes.containers
    x, y = bars.lines[0].get_data()
    assert list(x) == [0.05, 0.1, 0.5]  # in order
    assert list(y) == pytest.approx([0.25, 0.45, 0.05])
    assert {label.get_text() for label in axes.get_xticklabels()} == {"0.05", "0.1", "0.5"}
    assert (axes.get_xscale(), axes.get_xlabel(), axes.get_ylabel()) == ("log", "tau", "accuracy")


def test_each_key_has_a_panel_with_a_line_for_each_value_of_the_other() -> None:
    jobs = [job(4 * i + j, tau=tau, head=head) for i, tau in enumerate([1, 2, 3]) for j, head in enumerate("ab")]
    over_tau, over_head = axes_of(jobs)
    for axes, title, labels in ((over_tau, "head", ["a", "b"]), (over_head, "tau", ["1", "2", "3"])):
        assert len(axes.containers) == len(labels)
        assert axes.get_legend().get_title().get_text() == title
        assert [text.get_text() for text in axes.get_legend().get_texts()] == labels


def test_names_are_points() -> None:
    (axes,) = axes_of([job(i, encoder=name) for i, name in enumerate(["small", "resnet18"])])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["small", "resnet18"]


def test_many_numbers_are_a_panel_each() -> None:
    jobs = [job(i, accuracy=i, a=i, b=i * i, c=-i) for i in range(12)]
    assert [axes.get_xlabel() for axes in axes_of(jobs)] == ["a", "b", "c"]
    assert all(axes.get_legend() is None for axes in axes_of(jobs))  # of 12 lines


def test_seeds_alone_and_nothing_at_all(tmp_path: Path) -> None:
    assert len(axes_of([job(i, seed=i) for i in range(3)])) == 1
    assert not save_plot(tmp_path / "a.png", [job(0, FAILED, None, tau=1)], "accuracy")
    assert save_plot(tmp_path / "a.png", [job(0, tau=1), job(1, tau=2)], "accuracy")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


# --- job folders


def write_job(folder: Path, config: dict[str, Any], overrides: list[str], checkpoint: bool = False) -> None:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    (folder / "overrides.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(overrides)))
    if checkpoint:
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "last.ckpt").touch()


def test_read_jobs(tmp_path: Path) -> None:
    for number in (0, 1, 2, 10):
        write_job(tmp_path / str(number), {}, [f"a={number}", "+b='x'"])
    (tmp_path / "0" / "metrics.json").write_text('{"x": 1, "y": "text", "z": 0.5}')
    (tmp_path / "1" / "error.txt").write_text("reason\n\nTraceback")
    jobs = read_jobs(tmp_path)
    assert [each.name for each in jobs] == ["0", "1", "2", "10"]
    assert [each.status for each in jobs] == [COMPLETE, FAILED, INTERRUPTED, INTERRUPTED]
    assert jobs[0].metrics == {"x": 1, "z": 0.5}
    assert jobs[0].swept == {"a": "0", "b": "x"}
    assert jobs[1].reason == "reason"
    expected = [["a=0", "+b='x'"], ["a=5", "+b='x'"]]
    assert [(each.name, each.status) for each in read_jobs(tmp_path, expected)] == [("0", COMPLETE), ("1", NOT_RUN)]


def test_prepare_continues_only_the_same_job(tmp_path: Path) -> None:
    config = {"rate": 1e-3, "widths": [1, 2], "none": None}
    write_job(tmp_path / "0", config, [], checkpoint=True)
    (tmp_path / "0" / "error.txt").touch()
    assert prepare_folder(tmp_path / "0", config)
    assert not (tmp_path / "0" / "error.txt").exists()
    assert not prepare_folder(tmp_path / "0", {**config, "rate": 2e-3})
    assert list((tmp_path / "0").iterdir()) == []
    assert (tmp_path / "0.aside-1" / "checkpoints" / "last.ckpt").exists()
    write_job(tmp_path / "1", config, [])
    assert not prepare_folder(tmp_path / "1", config)  # nothing to continue from
    assert not prepare_folder(tmp_path / "2", config)
    assert [each.name for each in read_jobs(tmp_path)] == []


def test_a_metric_that_is_no_number_does_not_count() -> None:
    jobs = [job(0, accuracy=0.2, seed=0), job(1, accuracy=0.4, seed=1), job(2, accuracy=float("nan"), seed=2)]
    assert grouped(jobs, ["seed"])[0].measured("accuracy") == [0.2, 0.4]
    assert "0.3000" in table(jobs, ["accuracy"])


def test_differences_are_paired_by_seed() -> None:
    jobs = [
        job(number, accuracy=accuracy, method=method, seed=seed)
        for number, (method, seed, accuracy) in enumerate(
            [
                *[("simclr", 0, 0.5), ("simclr", 1, 0.7), ("moco", 0, 0.6), ("moco", 1, 0.81), ("moco", 2, 0.1)],
                *[("dcl", 0, 0.4), ("dcl", 1, 0.5), ("byol", 0, 0.9)],
            ]
        )
    ]
    jobs.append(job(9, FAILED, None, method="byol", seed=1))
    moco, dcl = estimate([0.1, 0.11]), estimate([0.1, 0.2])
    assert paired(jobs, "accuracy") == [
        f"moco: accuracy is higher than with simclr by 0.1050 ± {moco.half:.4f}, over 2 seeds",
        f"dcl: accuracy is lower than with simclr by 0.1500 ± {dcl.half:.4f}, over 2 seeds",
    ]
    assert moco.half < estimate([0.6, 0.81]).half / 10  # what the seeds have in common does not widen it
    assert paired([each for each in jobs if each.swept["method"] == "simclr"], "accuracy") == []
    assert paired([job(0, temperature=0.1), job(1, temperature=0.2)], "accuracy") == []


def test_gpus_are_spread_over_processes(tmp_path: Path) -> None:
    program = "import os, sys; from contrast.run.gpus import take_one, visible_gpus; take_one(visible_gpus()); "
    program += "print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); sys.stdin.read()"
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": "4,GPU-7",
        "TMPDIR": str(tmp_path),
        "PYTHONPATH": str(Path(contrast.__file__).parents[1]),
    }
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([sys.executable, "-c", program], env=environment, **pipes) for _ in range(4)]
    chosen = [process.stdout.readline().strip() for process in processes if process.stdout]
    for process in processes:
        process.communicate()
    assert sorted(chosen) == ["4", "4", "GPU-7", "GPU-7"]


# --- whole sweeps


@pytest.fixture(scope="module")
def conf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_conf(tmp_path_factory.mktemp("conf"))


@pytest.fixture
def call(conf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Call]:
    """`toy -m ...` in this process, called from an empty folder; returns its exit status."""
    monkeypatch.chdir(tmp_path)
    handlers = list(logging.getLogger().handlers)

    def run(*arguments: str) -> int:
        record = f"record={tmp_path / 'record.jsonl'}"  # a worker process may be older than this test and elsewhere
        monkeypatch.setattr(sys, "argv", ["toy", "--config-path", str(conf), "-m", *arguments, record])
        try:
            entry.run(entry.Command(toy_task.task, "toy"))
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    yield run
    logging.getLogger().handlers[:] = handlers  # Hydra's hold on to this test's stdout


def calls() -> list[dict[str, Any]]:
    path = Path("record.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def the_sweep() -> Path:
    (folder,) = Path("runs/toy").glob("sweep_*")
    return folder


def test_a_sweep_and_the_same_command_again(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["head.temperature=0.05,0.1", "seed=0,1", "fails=1"]
    assert call(*command) == 1
    out = capsys.readouterr()
    assert "failed: job 1 head.temperature=0.05 seed=1: RuntimeError: it broke; on two lines" in out.out
    assert "Traceback" not in out.err
    assert len(calls()) == 4  # a failure does not end the sweep
    assert "Traceback" in (the_sweep() / "1" / "error.txt").read_text()
    written = rows(the_sweep())
    assert [row["status"] for row in written] == ["complete", "failed", "complete", "failed"]
    assert [row["head.temperature"] for row in written] == ["0.05", "0.05", "0.1", "0.1"]
    assert [row["accuracy"] for row in written] == ["0.95", "", "0.9", ""]
    assert (the_sweep() / "sweep.png").exists()

    assert call(*command, "launcher=basic") == 1  # the launcher is no part of what is swept
    assert [each["seed"] for each in calls()[4:]] == [1, 1]  # only what failed
    assert call("head.temperature=0.05,0.1", "seed=0,1") == 0
    assert len(list(Path("runs/toy").glob("sweep_*"))) == 2


@pytest.mark.slow
def test_an_interrupted_sweep_continues(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["seed=0,1,2", "checkpoint=true", "hydra.sweep.dir=a"]
    assert call(*command, "stops=1") == 130
    assert [row["status"] for row in rows(Path("a"))] == ["complete", "interrupted", "not run"]
    for number in (0, 1):  # the same jobs, as if nothing had interrupted them
        config = OmegaConf.load(f"a/{number}/config.yaml")
        config.stops = None
        OmegaConf.save(config, f"a/{number}/config.yaml")
    assert call(*command) == 0
    assert [(each["seed"], each["resume"]) for each in calls()[2:]] == [(1, str(Path("a/1").absolute())), (2, None)]
    assert OmegaConf.load("a/1/config.yaml").resume is None
    assert [row["status"] for row in rows(Path("a"))] == ["complete"] * 3


@pytest.mark.slow
def test_another_sweep_in_the_same_folder(call: Call) -> None:
    assert call("seed=0,1", "hydra.sweep.dir=a") == 0
    assert call("seed=1", "hydra.sweep.dir=a") == 0
    assert len(calls()) == 3  # job 0 is another one now
    assert OmegaConf.load("a/0/config.yaml").seed == 1
    assert OmegaConf.load("a/0.aside-1/config.yaml").seed == 0
    assert len(rows(Path("a"))) == 1


def test_more_columns_run_no_job_again(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("head=info_nce,nce", "seed=0,1") == 0
    capsys.readouterr()
    assert call("head=info_nce,nce", "seed=0,1", "columns=[loss,absent]") == 0
    assert len(calls()) == 4
    lines = capsys.readouterr().out.splitlines()
    (head,) = [row for row, line in enumerate(lines) if line.split()[:2] == ["head", "accuracy"]]
    assert lines[head].split() == ["head", "accuracy", "loss", "absent", "linear_top1", "n"]
    assert lines[head + 1].split()[4:6] == ["1.0000", "±"]
    assert lines[head + 3] == "nce: accuracy is lower than with info_nce by 0.1000 ± 0.0000, over 2 seeds"


def test_swept_in_a_file(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "own" / "experiment"
    own.mkdir(parents=True)
    (own / "many.yaml").write_text("# @package _global_\nhydra: {mode: MULTIRUN, sweeper: {params: {seed: '1,2'}}}\n")
    assert call("--config-dir", "own", "experiment=many") == 0
    assert [each["seed"] for each in calls()] == [1, 2]
    assert len(rows(the_sweep())) == 2


def test_a_job_is_alone(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning starts further ranks of a job with the words of sys.argv, and leaves its rank in the environment."""
    monkeypatch.delenv("LEFT_BEHIND", raising=False)  # by a single run of another test
    assert call("seed=3,4", "head=nce,info_nce", "hydra.sweep.dir=a") == 0
    assert [each["argv"][-3:-1] for each in calls()[:2]] == [["seed=3", "head=nce"], ["seed=3", "head=info_nce"]]
    assert [each["argv"][0] for each in calls()] == ["--config-path"] * 4
    assert "-m" not in calls()[0]["argv"]
    assert "-m" in sys.argv
    assert [each["left"] for each in calls()] == [None] * 4
    assert "LEFT_BEHIND" not in os.environ


def test_a_pruned_job_is_no_result(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["head.temperature=0.05,0.1", "seed=0,1", "prunes=1", "hydra.sweep.dir=a"]
    assert call(*command) == 0
    out = capsys.readouterr().out
    assert "pruned: job 3 head.temperature=0.1 seed=1: after 3 epochs" in out
    assert ["0.1", "0.9000", "0.5000", "1"] in [line.split() for line in out.splitlines()]
    assert "is lower than" not in out  # the seeds in common are one
    assert [row["status"] for row in rows(Path("a"))] == ["complete", "pruned", "complete", "pruned"]
    assert call(*command) == 0
    assert len(calls()) == 4  # nothing runs again


@pytest.mark.slow
def test_two_processes_with_the_same_sweep_share_its_jobs(conf: Path, tmp_path: Path) -> None:
    paths = [str(Path(__file__).parent), str(Path(contrast.__file__).parents[1])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    words = ["--config-path", str(conf), "-m", f"seed={','.join(map(str, range(12)))}", "hydra.sweep.dir=a"]
    both = [
        subprocess.Popen([sys.executable, toy_task.__file__, *words], cwd=tmp_path, env=environment) for _ in range(2)
    ]
    assert 0 in [process.wait() for process in both]
    made = [json.loads(line) for line in (tmp_path / "record.jsonl").read_text().splitlines()]
    assert sorted(each["seed"] for each in made) == list(range(12))
    assert [row["status"] for row in rows(tmp_path / "a")] == ["complete"] * 12
    assert not list(tmp_path.rglob("*.aside-*"))
    assert not list(tmp_path.rglob("error.txt"))


def test_unknown_metric_fails_the_job(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("seed=0,1", "metric=acuracy", "hydra.sweep.dir=a") == 1
    assert "metric=acuracy is none of the metrics: accuracy" in rows(Path("a"))[0]["reason"]
    assert "linear_top1" in capsys.readouterr().out  # which the table always shows


# --- launchers and sweepers of the extras


@pytest.mark.slow
def test_joblib(call: Call) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="pip install 'contrast-learning[joblib]'")
    command = ["launcher=joblib", "head.temperature=0.05,0.1", "seed=0,1", "fails=1", "hydra.sweep.dir=a"]
    assert call(*command) == 1
    made = calls()
    assert len(made) == 4
    assert os.getpid() not in {each["pid"] for each in made}
    assert [row["status"] for row in rows(Path("a"))] == ["complete", "failed", "complete", "failed"]
    assert call(*command) == 1
    assert len(calls()) == 6


@pytest.mark.slow
def test_jobs_side_by_side_have_a_gpu_each(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="pip install 'contrast-learning[joblib]'")
    joblib = pytest.importorskip("joblib")
    joblib.externals.loky.get_reusable_executor().shutdown()  # workers with the environment of other tests
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert call("launcher=joblib", "seed=0,1,2,3", "hydra.launcher.n_jobs=2") == 0
    of_process: dict[int, set[str]] = {}
    for each in calls():
        of_process.setdefault(each["pid"], set()).add(each["gpus"])
    assert all(len(gpus) == 1 for gpus in of_process.values())  # CUDA keeps the first one that a process has seen
    assert set.union(*of_process.values()) == ({"4", "7"} if len(of_process) > 1 else {"4"})
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,7"


@pytest.mark.slow
def test_threads_of_jobs_side_by_side(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="pip install 'contrast-learning[joblib]'")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    joblib = pytest.importorskip("joblib")
    joblib.externals.loky.get_reusable_executor().shutdown()  # workers with the environment of other tests
    assert call("launcher=joblib", "seed=0,1", "hydra.launcher.n_jobs=2") == 0
    assert {each["threads"] for each in calls()} == {max(1, joblib.cpu_count() // 2)}


@pytest.mark.slow
def test_a_worker_that_dies_does_not_take_the_sweep_along(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="pip install 'contrast-learning[joblib]'")
    command = ["launcher=joblib", "seed=0,1,2", "dies=1", "checkpoint=true", "hydra.sweep.dir=a"]
    assert call(*command) == 1
    assert "the sweep broke off" in capsys.readouterr().err
    status = {row["seed"]: row["status"] for row in rows(Path("a"))}
    assert status["1"] == "interrupted"
    assert call(*command) == 0  # it continues from its checkpoint
    assert [row["status"] for row in rows(Path("a"))] == ["complete"] * 3


@pytest.mark.slow
def test_submitit(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="pip install 'contrast-learning[submitit]'")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    command = ["launcher=submitit_local", "seed=0,1", "fails=1", "hydra.sweep.dir=a"]
    assert call(*command) == 1
    assert [row["status"] for row in rows(Path("a"))] == ["complete", "failed"]


@pytest.mark.slow
def test_ray(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hydra_plugins.hydra_ray_launcher", reason="pip install 'contrast-learning[ray]'")
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    command = ["launcher=ray", "seed=0,1,2", "fails=1", "dies=2", "checkpoint=true", "hydra.sweep.dir=a"]
    try:
        assert call(*command) == 1
    finally:
        ray.shutdown()
    assert [row["status"] for row in rows(Path("a"))] == ["complete", "failed", "complete"]
    assert os.getpid() not in {each["pid"] for each in calls()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("share", "jobs", "gpus"),
    [(1, 2, ["0", "1"]), (0.5, 4, ["0", "0", "1", "1"]), (2, 1, ["0,1"]), (0, 2, ["4", "7"])],
    ids=["one_each", "two_share_one", "one_has_both", "not_by_ray"],
)
def test_gpus_of_jobs_under_ray(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, jobs: int, gpus: list[str]
) -> None:
    """Ray gives out the GPUs of a machine that claims to have two; of a share of 0, our own jobs each take another."""
    pytest.importorskip("hydra_plugins.hydra_ray_launcher", reason="pip install 'contrast-learning[ray]'")
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if not share:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
        monkeypatch.setenv("RAY_TMPDIR", tempfile.gettempdir())  # the path of a socket has to be short
        monkeypatch.setenv("TMPDIR", str(tmp_path))
    cluster = ["hydra.launcher.ray.init.num_cpus=4", "hydra.launcher.ray.init.num_gpus=2"]
    command = ["launcher=ray", *cluster, f"hydra.launcher.ray.remote.num_gpus={share}", f"together={jobs}"]
    try:
        assert call(*command, f"seed={','.join(str(seed) for seed in range(jobs))}") == 0
    finally:
        ray.shutdown()
    assert sorted(each["gpus"] for each in calls()) == gpus


@pytest.mark.slow
def test_optuna(call: Call) -> None:
    pytest.importorskip("optuna", minversion="3.2", reason="pip install 'contrast-learning[optuna]'")
    command = ["sweep=optuna", "head.temperature=interval(0.01, 0.5)", "seed=range(0, 4)", "fails=1"]
    assert call(*command, "hydra.sweeper.n_trials=8", "hydra.sweep.dir=a") == 1
    written = rows(Path("a"))
    failed = [row for row in written if row["status"] == "failed"]
    assert len(written) == 8
    assert failed  # a failed trial is no end
    best = OmegaConf.load("a/optimization_results.yaml")
    assert best.best_value == pytest.approx(max(float(row["accuracy"]) for row in written if row["accuracy"]))
    seen = len(calls())
    assert call(*command, "hydra.sweeper.n_trials=10", "hydra.sweep.dir=a") == 1  # the same values, and two more
    assert len(calls()) == seen + len(failed) + 2
    assert call("sweep=optuna", "seed=range(0, 4)", "prunes=3", "hydra.sweeper.n_trials=8", "hydra.sweep.dir=c") == 0
    assert {row["seed"] for row in rows(Path("c")) if row["status"] == "pruned"} == {"3"}
    highest = max(float(row["accuracy"]) for row in rows(Path("c")) if row["status"] == "complete")
    assert OmegaConf.load("c/optimization_results.yaml").best_value == highest  # 3 had a higher one
    assert call(*command, "hydra.sweeper.sampler.seed=5", "hydra.sweeper.n_trials=2", "hydra.sweep.dir=b") in (0, 1)
    assert rows(Path("b"))[0]["head.temperature"] != written[0]["head.temperature"]
