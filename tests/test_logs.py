"""Metrics, W&B, curves and the record of the environment: what lies in a run folder besides the weights."""

import inspect
import json
import multiprocessing
import os
import pty
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra.utils import get_method
from omegaconf import OmegaConf
from pytorch_lightning.utilities import rank_zero_only

from contrast.errors import InputError
from contrast.run import environment, tensorboard, wandb_run
from contrast.run.csv_log import CSVLog, read_rows
from contrast.run.curves import read_curves, save_curves

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["contrast.run.checkpoints"])  # the slow imports, once for all children
CONF = Path(__file__).resolve().parents[1] / "conf" / "logger"


# metrics.csv


def test_metrics_of_one_step_share_a_row_and_new_ones_add_columns(tmp_path: Path) -> None:
    log = CSVLog(tmp_path)
    log.log_metrics({"epoch": 0, "train/loss": 2.5}, step=9)
    log.log_metrics({"epoch": 0, "train/loss": torch.tensor(0.1)}, step=19)
    log.log_metrics({"epoch": 0, "online/knn_top1": 0.75}, step=19)
    log.log_metrics({"epoch": 1, "train/loss": float("nan")}, step=29)
    assert (tmp_path / "metrics.csv").read_text() == (
        "step,epoch,train/loss,online/knn_top1\n9,0,2.5,\n19,0,0.100000001,0.75\n29,1,nan,\n"
    )


def test_a_row_is_on_disk_before_the_file_is_closed(tmp_path: Path) -> None:
    log = CSVLog(tmp_path)
    for step in range(3):
        log.log_metrics({"loss": step / 2}, step)
        assert read_rows(log.path)[1][-1] == {"step": str(step), "loss": f"{step / 2:g}"}


def test_a_value_logged_again_replaces_a_longer_one(tmp_path: Path) -> None:
    log = CSVLog(tmp_path)
    log.log_metrics({"loss": 0.123456789}, step=1)
    log.log_metrics({"loss": 0.5}, step=1)
    log.log_metrics({"loss": 0.25}, step=2)
    assert log.path.read_text() == "step,epoch,loss\n1,,0.5\n2,,0.25\n"


def test_nine_digits_give_a_float32_back(tmp_path: Path) -> None:
    log, values = CSVLog(tmp_path), torch.randn(200, generator=torch.Generator().manual_seed(0)).exp()
    for step, value in enumerate(values):
        log.log_metrics({"x": value}, step)
    assert torch.equal(torch.tensor([float(row["x"]) for row in read_rows(log.path)[1]]), values)


def test_resuming_drops_the_rows_that_come_again_and_no_others(tmp_path: Path) -> None:
    def train(log: CSVLog, first: int, last: int) -> None:
        for step in range(first, last):
            log.log_metrics({"epoch": step // 10, "loss": 1 / (step + 1)}, step)
            if step % 10 == 9:
                log.log_metrics({"epoch": step // 10, "knn": step / 100}, step)

    whole, parts = CSVLog(tmp_path / "whole"), tmp_path / "parts"
    train(whole, 0, 40)
    train(CSVLog(parts), 0, 27)  # killed: its file is never closed
    resumed = CSVLog(parts)
    resumed.resume_at(20)
    assert [int(row["step"]) for row in read_rows(resumed.path)[1]] == list(range(20))
    train(resumed, 20, 40)
    resumed.finalize("success")
    assert resumed.path.read_bytes() == whole.path.read_bytes()
    resumed.log_metrics({"epoch": 3, "knn": 0.5}, 39)  # after the end, the last row still takes metrics
    assert read_rows(resumed.path)[1][-1]["knn"] == "0.5"


def test_a_line_cut_off_by_a_crash_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,epoch,loss\n1,0,0.5\n2,0,0.2")
    log = CSVLog(tmp_path)
    log.log_metrics({"loss": 0.25}, 2)
    assert path.read_text() == "step,epoch,loss\n1,0,0.5\n2,,0.25\n"


def test_what_is_no_metrics_csv_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="no column 'step'"):
        CSVLog(tmp_path).log_metrics({"loss": 1.0}, 1)
    (tmp_path / "metrics.csv").write_text("step,epoch\n1,2\n3,4,5\n")
    with pytest.raises(InputError, match="line 3: 3 cells for 2 columns"):
        CSVLog(tmp_path).resume_at(0)
    with pytest.raises(InputError, match="needs the step"):
        CSVLog(tmp_path / "new").log_metrics({"loss": 1.0})


def test_only_rank_zero_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    log = CSVLog(tmp_path / "run")
    log.log_metrics({"loss": 1.0}, 0)
    log.resume_at(0)
    log.finalize("success")
    assert not (tmp_path / "run").exists()


# W&B. The runs are real ones, offline, in a process of their own at a terminal, where W&B would be able to ask.


def _three_jobs(root: Path, terminal: str) -> None:
    descriptor = os.open(terminal, os.O_RDWR)
    for standard in range(3):
        os.dup2(descriptor, standard)
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        del os.environ[name]
    os.environ["HOME"] = str(root / "home")
    os.chdir(root / "cwd")
    import wandb

    told = []
    for name in ("a", "b", "a"):  # the third resumes the first; the first is never finished by its job
        start = time.perf_counter()
        logger = wandb_run.wandb_logger(
            root / "sweep" / name, name=name, group="sweep", config={"head": {"temperature": 0.1}}
        )
        seconds = time.perf_counter() - start
        run = logger.experiment
        told.append([run.id, run.group, run.config.as_dict(), logger.version, run.settings.mode, seconds])
        logger.log_metrics({"train/loss": 1.0}, 3)
        if len(told) > 1:
            wandb.finish()
    (root / "told.json").write_text(json.dumps(told))
    wandb.teardown()


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    root = tmp_path_factory.mktemp("wandb")
    (root / "home").mkdir()
    (root / "cwd").mkdir()
    ours, theirs = pty.openpty()
    printed: list[bytes] = []

    def drain() -> None:
        while chunk := os.read(ours, 4096):
            printed.append(chunk)

    threading.Thread(target=drain, daemon=True).start()
    process = PROCESSES.Process(target=_three_jobs, args=(root, os.ttyname(theirs)))
    process.start()
    process.join(timeout=100)
    assert process.exitcode == 0, b"".join(printed).decode()
    told = json.loads((root / "told.json").read_text())
    return SimpleNamespace(root=root, told=told, printed=b"".join(printed).decode())


def test_each_job_has_its_own_offline_run_and_a_resumed_one_continues(jobs: SimpleNamespace) -> None:
    (first, *rest), second, resumed = jobs.told
    assert first != second[0]
    assert resumed[0] == first
    assert rest[:4] == ["sweep", {"head": {"temperature": 0.1}}, first, "offline"]
    for name, count in (("a", 2), ("b", 1)):
        folder = jobs.root / "sweep" / name
        run_id = (folder / "wandb_id").read_text().strip()
        assert len(list(folder.glob(f"wandb/offline-run-*-{run_id}/run-{run_id}.wandb"))) == count
        assert len(list(folder.glob("wandb/offline-run-*"))) == count


def test_a_run_resumed_within_the_second_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    taken = tmp_path / "wandb" / f"offline-run-{time.strftime('%Y%m%d_%H%M%S')}-id"
    taken.mkdir(parents=True)
    wandb_run._await_new_second(tmp_path, "id")
    assert time.strftime("%Y%m%d_%H%M%S") not in taken.name


def test_w_and_b_writes_nothing_outside_the_run_folders(jobs: SimpleNamespace) -> None:
    # the fonts that matplotlib lists are no doing of W&B
    written = [p for folder in ("home", "cwd") for p in (jobs.root / folder).rglob("*") if p.is_file()]
    assert [p for p in written if "matplotlib" not in p.parts] == []


def test_the_mode_is_told_in_one_line_without_questions(jobs: SimpleNamespace) -> None:
    lines = jobs.printed.replace("\r", "").splitlines()
    assert len(lines) == 3, lines
    assert lines[0].startswith("W&B: offline (no W&B login")
    assert lines[0].endswith(f"wandb sync {jobs.root}/sweep/a/wandb/offline-run-*")
    assert max(seconds for *_, seconds in jobs.told) < 10


def _settings(**given: Any) -> Any:
    return SimpleNamespace(**{"mode": "online", "api_key": None, "base_url": "https://api.wandb.ai"} | given)


def test_the_mode_is_offline_without_login_or_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert wandb_run._mode(_settings())[0] == "offline"
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{server.getsockname()[1]}"
        logged_in = _settings(api_key="k", base_url=f"http://{address}")
        assert wandb_run._mode(logged_in) == ("offline", f"{address} does not answer")
        server.listen()
        assert wandb_run._mode(logged_in) == ("online", "logged in")
        assert wandb_run._mode(_settings(base_url=f"http://{address}"))[0] == "offline"
        (tmp_path / "netrc").write_text(f"machine {address}\n  login user\n  password k\n")
        assert wandb_run._mode(_settings(base_url=f"http://{address}")) == ("online", "logged in")


def test_wandb_mode_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for mode, api_key, expected in (
        ("offline", "k", "offline"),
        ("dryrun", "k", "offline"),
        ("disabled", None, "disabled"),
        ("online", "k", "online"),  # asked for: no look at the network
        ("online", None, "offline"),  # but never a question
    ):
        monkeypatch.setenv("WANDB_MODE", mode)
        assert wandb_run._mode(_settings(mode=mode, api_key=api_key, base_url="http://localhost:1"))[0] == expected


def test_behind_a_proxy_it_is_the_proxy_that_has_to_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert wandb_run._address("https://api.wandb.ai") == ("api.wandb.ai", 443)
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    assert wandb_run._address("https://api.wandb.ai") == ("proxy.example", 3128)
    monkeypatch.setenv("no_proxy", "wandb.ai")
    assert wandb_run._address("https://api.wandb.ai") == ("api.wandb.ai", 443)


# conf/logger and TensorBoard


@pytest.mark.parametrize("name", ["wandb", "csv", "tensorboard", "none"])
def test_every_logger_takes_what_the_entry_point_gives(name: str) -> None:
    for node in OmegaConf.load(CONF / f"{name}.yaml").values():
        given = {key: value for key, value in node.items() if key != "_target_"}
        inspect.signature(get_method(node["_target_"])).bind(
            run_dir="run", name="name", group="group", config={}, **given
        )


def test_tensorboard_lies_in_the_run_folder(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    logger = tensorboard.tensorboard_logger(tmp_path, name="name", group=None)
    logger.log_metrics({"train/loss": 1.0}, 0)
    logger.finalize("success")
    assert list((tmp_path / "tensorboard").glob("events.out.*"))


def test_tensorboard_names_the_extra_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorboard, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"contrast\[tensorboard\]"):
        tensorboard.tensorboard_logger(tmp_path)


# curves.png


def _png_size(path: Path) -> tuple[int, int]:
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:])
    return width, height


def test_curves_show_the_panels_whose_columns_exist(tmp_path: Path) -> None:
    log = CSVLog(tmp_path)
    for step in range(300):
        log.log_metrics({"train/loss": 1 / (step + 1) if step != 5 else float("nan"), "other": 1.0}, step)
    assert save_curves(tmp_path) == tmp_path / "curves.png"
    one = _png_size(tmp_path / "curves.png")
    log.log_metrics({"online/knn_top1": 0.5, "train/alignment": 1.0, "train/uniformity": -1.0}, 300)
    (tmp_path / "metrics.json").write_text('{"knn_top1": 0.6, "untrained_knn_top1": 0.4}')
    save_curves(tmp_path)
    assert _png_size(tmp_path / "curves.png") == (3 * one[0], one[1])
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()

    steps, values = read_curves(tmp_path / "metrics.csv")["train/loss"]
    assert steps.tolist() == [step for step in range(300) if step != 5]  # the NaN is left out
    assert values[0] == 1.0


def test_nothing_to_draw_is_no_file(tmp_path: Path) -> None:
    CSVLog(tmp_path).log_metrics({"epoch": 0}, 0)
    assert save_curves(tmp_path) is None
    assert not (tmp_path / "curves.png").exists()


# environment.json


def test_environment_is_recorded_at_every_start(tmp_path: Path) -> None:
    environment.write_environment(tmp_path)
    environment.write_environment(tmp_path)
    starts = json.loads((tmp_path / "environment.json").read_text())
    assert len(starts) == 2
    assert starts[0]["packages"]["torch"] == torch.__version__
    assert starts[1]["command"] == sys.argv
    assert starts[1]["python"] == ".".join(map(str, sys.version_info[:3]))


def test_git_is_of_the_checkout_that_tracks_the_package(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(tmp_path), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    package, installed = tmp_path / "package", tmp_path / ".venv" / "package"
    for folder in (package, installed):
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("")
    assert environment._git(package) is None
    git("init")
    git("add", "package")
    git("-c", "user.name=n", "-c", "user.email=e", "commit", "-m", "m")
    assert environment._git(package) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (package / "__init__.py").write_text("changed = True")
    assert environment._git(package) == {"commit": git("rev-parse", "HEAD"), "dirty": True}
    assert environment._git(installed) is None  # inside the checkout, but not of it
