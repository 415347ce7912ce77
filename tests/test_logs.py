"""Metrics, W&B, curves and the record of the environment: what lies in a run folder besides the weights."""

import inspect
import json
import math
import multiprocessing
import os
import pty
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra.utils import get_method
from omegaconf import OmegaConf
from pytorch_lightning.utilities import rank_zero_only

from contrast.errors import InputError
from contrast.run import environment, loggers
from contrast.run.compose import config_loader, irregular_file, load_config
from contrast.run.curves import CurvesLog, figure_of, read_curves, save_curves
from contrast.run.metrics import MetricsLog, read_rows
from contrast.run.signals import Signals
from contrast.training.trainer import closing

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["contrast.run.checkpoints"])  # the slow imports, once for all children
CONF = Path(__file__).resolve().parents[1] / "conf" / "logger"


# metrics.jsonl


def test_metrics_are_appended_as_json_lines_and_read_by_step(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.log_metrics({"epoch": 0, "train/loss": 2.5}, step=9)
    log.log_metrics({"epoch": 0, "train/loss": torch.tensor(0.25)}, step=19)
    log.log_metrics({"epoch": 0, "online/knn_top1": 0.75}, step=19)
    log.log_metrics({"epoch": 0, "train/loss": 0.5}, step=19)  # a value logged again replaces the first
    assert log.path.read_text().splitlines() == [
        '{"step": 9, "epoch": 0, "train/loss": 2.5}',
        '{"step": 19, "epoch": 0, "train/loss": 0.25}',
        '{"step": 19, "epoch": 0, "online/knn_top1": 0.75}',
        '{"step": 19, "epoch": 0, "train/loss": 0.5}',
    ]
    assert read_rows(log.path) == [
        {"step": 9, "epoch": 0, "train/loss": 2.5},
        {"step": 19, "epoch": 0, "train/loss": 0.5, "online/knn_top1": 0.75},
    ]


def test_a_row_is_on_disk_before_the_run_ends(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    for step in range(3):
        log.log_metrics({"loss": step / 2}, step)
        assert read_rows(log.path)[-1] == {"step": step, "loss": step / 2}


def test_numbers_that_are_not_finite_are_plain_json(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    for step, value in enumerate((float("nan"), torch.tensor(float("inf")), 1.0)):
        log.log_metrics({"loss": value}, step)
    lines = [json.loads(line, parse_constant=pytest.fail) for line in log.path.read_text().splitlines()]
    assert [line["loss"] for line in lines] == [None, None, 1.0]
    assert [math.isnan(row["loss"]) for row in read_rows(log.path)] == [True, True, False]


def test_a_float32_comes_back_exactly(tmp_path: Path) -> None:
    log, values = MetricsLog(tmp_path), torch.randn(200, generator=torch.Generator().manual_seed(0)).exp()
    for step, value in enumerate(values):
        log.log_metrics({"x": value}, step)
    assert torch.equal(torch.tensor([row["x"] for row in read_rows(log.path)]), values)


def test_resuming_voids_the_rows_that_come_again_and_no_others(tmp_path: Path) -> None:
    def train(log: MetricsLog, first: int, last: int) -> None:
        for step in range(first, last):
            log.log_metrics({"epoch": step // 10, "loss": 1 / (step + 1)}, step)
            if step % 10 == 9:
                log.log_metrics({"epoch": step // 10, "knn": step / 100}, step)

    whole, parts = MetricsLog(tmp_path / "whole"), tmp_path / "parts"
    train(whole, 0, 40)
    train(MetricsLog(parts), 0, 27)  # killed
    resumed = MetricsLog(parts)
    before = resumed.path.read_bytes()
    resumed.resume_at(20)
    assert [row["step"] for row in read_rows(resumed.path)] == list(range(20))
    train(resumed, 20, 40)
    assert resumed.path.read_bytes().startswith(before)  # never rewritten
    assert read_rows(resumed.path) == read_rows(whole.path)
    resumed.resume_at(0)  # from scratch
    assert read_rows(resumed.path) == []


def test_a_line_cut_off_by_a_crash_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "lo')
    assert read_rows(path) == [{"step": 1, "loss": 0.5}]
    MetricsLog(tmp_path).log_metrics({"loss": 0.25}, 2)
    assert read_rows(path) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]


@pytest.mark.parametrize("line", ["a,b", "[1]", '{"loss": 1.0}', "3"])
def test_what_is_no_row_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{line}\n')
    with pytest.raises(InputError, match=r"metrics.jsonl, line 2"):
        read_rows(tmp_path / "metrics.jsonl")


def test_metrics_need_their_step(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs the step"):
        MetricsLog(tmp_path).log_metrics({"loss": 1.0})


def test_only_rank_zero_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    log = MetricsLog(tmp_path / "run")
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

    started = []
    for name in ("a", "b", "a"):  # the third resumes the first; the first is never finished by its job
        start = time.perf_counter()
        logger = loggers.wandb_logger(
            root / "sweep" / name, name=name, group="sweep", config={"head": {"temperature": 0.1}}
        )
        seconds = time.perf_counter() - start
        run = logger.run
        started.append([run.id, run.group, run.config.as_dict(), logger.version, run.settings.mode, seconds])
        logger.log_metrics({"train/loss": 1.0}, 3)
        if len(started) > 1:
            wandb.finish()
    (root / "started.json").write_text(json.dumps(started))
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
    started = json.loads((root / "started.json").read_text())
    return SimpleNamespace(root=root, started=started, printed=b"".join(printed).decode())


def test_each_job_has_its_own_offline_run_and_a_resumed_one_continues(jobs: SimpleNamespace) -> None:
    (first, *rest), second, resumed = jobs.started
    assert first != second[0]
    assert resumed[0] == first
    assert rest[:4] == ["sweep", {"head": {"temperature": 0.1}}, first, "offline"]
    for name, count in (("a", 2), ("b", 1)):
        folder = jobs.root / "sweep" / name
        run_id = (folder / "wandb_id").read_text().strip()
        assert len(list(folder.glob(f"wandb/offline-run-*-{run_id}/run-{run_id}.wandb"))) == count
        assert len(list(folder.glob("wandb/offline-run-*"))) == count


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_copied_run_has_no_link_that_leads_out_of_it(jobs: SimpleNamespace, name: str, tmp_path: Path) -> None:
    copy = shutil.copytree(jobs.root / "sweep" / name, tmp_path / "copy", symlinks=True)
    assert irregular_file(copy) is None


def test_a_run_resumed_within_the_second_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    taken = tmp_path / "wandb" / f"offline-run-{time.strftime('%Y%m%d_%H%M%S')}-id"
    taken.mkdir(parents=True)
    (tmp_path / "wandb_id").write_text("id\n")
    assert loggers.run_path(tmp_path) == {"id": "id"}
    assert time.strftime("%Y%m%d_%H%M%S") not in taken.name


def test_w_and_b_writes_nothing_outside_the_run_folders(jobs: SimpleNamespace) -> None:
    # the fonts that matplotlib lists are no doing of W&B
    written = [p for folder in ("home", "cwd") for p in (jobs.root / folder).rglob("*") if p.is_file()]
    assert [p for p in written if "matplotlib" not in p.parts] == []


def test_the_mode_is_printed_in_one_line_without_questions(jobs: SimpleNamespace) -> None:
    lines = jobs.printed.replace("\r", "").splitlines()
    assert len(lines) == 3, lines
    assert lines[0].startswith("W&B: offline (no W&B login")
    assert f"wandb sync {jobs.root}/sweep/a/wandb/offline-run-" in lines[0]
    assert max(seconds for *_, seconds in jobs.started) < 10


# What `wandb agent` sets for a job, and what its history holds in the end.


def _agent_jobs(root: Path) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        del os.environ[name]
    agent = {"WANDB_SWEEP_ID": "sweep1", "WANDB_RUN_ID": "agent1", "WANDB_PROJECT": "theirs", "WANDB_MODE": "offline"}
    os.environ |= agent | {"HOME": str(root)}
    os.chdir(root)
    import wandb

    logged: list[tuple[str, int]] = []
    for resumed in (False, True):  # the second by hand, after the agent has ended
        if resumed:
            for name in ("WANDB_SWEEP_ID", "WANDB_RUN_ID"):
                del os.environ[name]
            wandb.teardown()
        logger = loggers.wandb_logger(root / "run", "run", None, {}, project="contrast", entity="mine")
        assert logger is not None
        send = logger.run.log

        def log(row: dict[str, Any], run: str = logger.run.id, send: Any = send) -> None:
            logged.append((run, row["trainer/global_step"]))
            send(row)

        logger.run.log = log  # type: ignore[method-assign,assignment]
        for each in (MetricsLog(root / "run"), logger):
            each.resume_at(2 if resumed else 0)
        for step in range(2, 4) if resumed else range(3):
            for each in (MetricsLog(root / "run"), logger):
                each.log_metrics({"train/loss": 1.0}, step)
        project = logger.run.project
        wandb.finish()
        logged.append((project, -1))
    (root / "logged.json").write_text(json.dumps(logged))
    wandb.teardown()


def test_a_run_keeps_the_id_that_an_agent_gave_it_and_each_offline_part_has_all_rows(tmp_path: Path) -> None:
    process = PROCESSES.Process(target=_agent_jobs, args=(tmp_path,))
    process.start()
    process.join(timeout=100)
    assert process.exitcode == 0
    logged = [tuple(each) for each in json.loads((tmp_path / "logged.json").read_text())]
    first = [("agent1", 0), ("agent1", 1), ("agent1", 2), ("theirs", -1)]
    # the row of step 2 is logged again by the training, those before it by the logger
    assert logged == [*first, ("agent1", 0), ("agent1", 1), ("agent1", 2), ("agent1", 3), ("theirs", -1)]
    assert (tmp_path / "run" / "wandb_id").read_text() == "/theirs/agent1\n"
    assert len(list((tmp_path / "run" / "wandb").glob("offline-run-*-agent1"))) == 2


def test_an_agent_starts_the_command_with_keys_and_values() -> None:
    sweep = OmegaConf.to_container(OmegaConf.load(CONF.parents[1] / "docs" / "wandb_sweep.yaml"), resolve=False)
    assert isinstance(sweep, dict)
    assert sweep["command"] == ["contrast-pretrain", "${args_no_hyphens}"]  # key=value for each parameter
    words = [f"{key}={each.get('value', each.get('values', [each.get('min')])[0])}" for key, each in
             sweep["parameters"].items()]  # fmt: skip
    with config_loader(CONF.parent) as loader:
        cfg = load_config(loader, "pretrain", words)
    assert cfg.head.temperature == 0.05
    assert sweep["metric"]["name"] == f"final/{cfg.metric}"


def test_a_run_that_was_deleted_is_followed_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    ids: list[str] = []

    def init(id: str, **unused: Any) -> Any:
        ids.append(id)
        if id == "old":
            raise wandb.errors.CommError("run me/contrast/old was previously created and deleted; try a new run name")
        return SimpleNamespace(id=id, url="", dir=str(tmp_path), define_metric=lambda *args, **kwargs: None)

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tmp_path / "wandb_id").write_text("old\n")
    logger = loggers.wandb_logger(tmp_path, "run", None, {})
    assert logger is not None
    assert ids == ["old", logger.run.id]
    assert (tmp_path / "wandb_id").read_text().strip() == logger.run.id


@pytest.mark.parametrize(("name", "value"), [("WANDB_MODE", "disabled"), ("WANDB_DISABLED", "true")])
def test_no_run_starts_where_w_and_b_is_disabled(
    name: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, value)
    assert loggers.wandb_logger(tmp_path, "run", None, {}) is None
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == f"W&B: disabled ({name})\n"


def test_nothing_depends_on_names_that_wandb_keeps_to_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb.sdk.lib", None)  # a name that Lightning's logger imports from here is going
    rows: list[Any] = []
    run: Any = SimpleNamespace(id="a", log=rows.append, resumed=False)
    log = loggers.WandbLog(run, tmp_path)
    log.log_metrics({"train/loss": 1.0}, 3)
    log.finalize("success")
    assert rows == [{"train/loss": 1.0, "trainer/global_step": 3}]


def _settings(**given: Any) -> Any:
    return SimpleNamespace(**{"mode": "online", "api_key": None, "base_url": "https://api.wandb.ai"} | given)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server on this machine that responds to every request with 404."""
    for name in os.environ:
        if name == "WANDB_MODE" or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    http = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{http.server_port}"
    http.shutdown()
    http.server_close()


def test_the_mode_is_offline_without_login_or_network(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert loggers.wandb_mode(_settings())[0] == "offline"
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        assert loggers.wandb_mode(_settings(api_key="k", base_url=url)) == ("offline", f"{url} does not respond")
    assert loggers.wandb_mode(_settings(api_key="k", base_url=f"http://{server}")) == ("online", "logged in")
    assert loggers.wandb_mode(_settings(base_url=f"http://{server}"))[0] == "offline"
    (tmp_path / "netrc").write_text(f"machine {server}\n  login user\n  password k\n")
    assert loggers.wandb_mode(_settings(base_url=f"http://{server}")) == ("online", "logged in")


def test_a_silent_server_is_no_network(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("contrast.network.TIMEOUT", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        assert not loggers.is_reachable(f"http://127.0.0.1:{silent.getsockname()[1]}")


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
        assert loggers.wandb_mode(_settings(mode=mode, api_key=api_key, base_url="http://localhost:1"))[0] == expected


@pytest.mark.parametrize("url", ["", "server", "http://[1", "http://server:port"])
def test_what_is_no_url_is_not_reachable(url: str) -> None:
    assert not loggers.is_reachable(url)


def test_behind_a_proxy_it_is_the_proxy_that_has_to_respond(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not loggers.is_reachable("http://server.invalid")
    monkeypatch.setenv("http_proxy", f"http://{server}")
    assert loggers.is_reachable("http://server.invalid")
    monkeypatch.setenv("no_proxy", "server.invalid")
    assert not loggers.is_reachable("http://server.invalid")


# conf/logger and TensorBoard


@pytest.mark.parametrize("name", ["wandb", "csv", "tensorboard", "mlflow", "none"])
def test_every_logger_needs_what_a_run_knows(name: str) -> None:
    for node in OmegaConf.load(CONF / f"{name}.yaml").values():
        parameters = inspect.signature(get_method(node["_target_"])).parameters.values()
        needed = {each.name for each in parameters if each.default is each.empty and each.kind is not each.VAR_KEYWORD}
        assert needed - set(node) <= {"run_dir", "name", "group", "config"}


def test_tensorboard_writes_to_the_run_folder(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    logger = loggers.tensorboard_logger(tmp_path)
    logger.log_metrics({"train/loss": 1.0}, 0)
    logger.finalize("success")
    assert list((tmp_path / "tensorboard").glob("events.out.*"))


def test_tensorboard_names_the_extra_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(InputError, match=r"contrast-learning\[tensorboard\]"):
        loggers.tensorboard_logger(tmp_path)


def test_mlflow_continues_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    ids = []
    for step in (0, 1):
        logger = loggers.mlflow_logger(tmp_path / "run", name="name", group="sweep_1", config={"seed": 7})
        logger.log_metrics({"train/loss": 0.5}, step)
        logger.finalize("success")
        ids.append((tmp_path / "run" / "mlflow_id").read_text().split()[0])
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / "elsewhere")  # the run is continued from any folder
    client: Any = logger.experiment
    assert client.get_run(ids[0]).data.params == {"seed": "7"}
    assert ids[0] == ids[1]
    assert [each.step for each in client.get_metric_history(ids[0], "train/loss")] == [0, 1]
    (tmp_path / "run" / "mlflow_id").write_text("0123456789abcdef0123456789abcdef")  # of a store that is gone
    assert loggers.mlflow_logger(tmp_path / "run", "name", None, {}).version != ids[0]
    assert {path.name for path in tmp_path.iterdir()} == {"elsewhere", "run", "runs"}


def test_mlflow_names_the_extra_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(InputError, match=r"contrast-learning\[mlflow\]"):
        loggers.mlflow_logger(tmp_path, "name", None, {})


# curves.png


def _png_size(path: Path) -> tuple[int, int]:
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:])
    return width, height


def test_curves_show_the_panels_whose_metrics_exist(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    for step in range(300):
        log.log_metrics({"train/loss": 1 / (step + 1) if step != 5 else float("nan"), "other": 1.0}, step)
    assert save_curves(tmp_path) == tmp_path / "curves.png"
    one = _png_size(tmp_path / "curves.png")
    log.log_metrics({"online/knn_top1": 0.5, "train/alignment": 1.0, "train/uniformity": -1.0}, 300)
    (tmp_path / "metrics.json").write_text('{"knn_top1": 0.6, "untrained_knn_top1": 0.4}')
    save_curves(tmp_path)
    wide, high = _png_size(tmp_path / "curves.png")
    assert wide == 3 * one[0]  # four panels in rows of three
    assert 1.5 * one[1] < high < 2 * one[1]
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()

    steps, values = read_curves(tmp_path / "metrics.jsonl")["train/loss"]
    assert steps.tolist() == [step for step in range(300) if step != 5]  # the NaN is left out
    assert values[0] == 1.0


def test_no_legend_covers_a_line_and_panels_say_which_way_is_better(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    for step in range(5):
        log.log_metrics({"train/loss": 1.0, "online/knn_top1": step / 5, "online/linear_top1": 1 - step / 5}, step)
    (tmp_path / "metrics.json").write_text('{"knn_top1": 0.6, "untrained_knn_top1": 0.4}')
    (tmp_path / "config.yaml").write_text("{name: mine, data: {_target_: m.digits}, encoder: {_target_: m.net}}")
    figure = figure_of(tmp_path)
    assert figure is not None
    figure.draw_without_rendering()
    assert figure.get_suptitle() == f"mine on digits, encoder net\n{tmp_path.name}"
    loss, frozen = figure.axes
    assert [axes.get_title(loc="right") for axes in (loss, frozen)] == ["lower is better", "higher is better"]
    legend = frozen.get_legend()
    assert legend is not None
    assert legend.get_window_extent().y1 < frozen.get_window_extent().y0


def test_curves_are_drawn_while_a_run_goes_on_and_when_it_is_interrupted(tmp_path: Path) -> None:
    MetricsLog(tmp_path).log_metrics({"train/loss": 1.0}, 0)
    with pytest.raises(KeyboardInterrupt), closing(tmp_path, Signals(tmp_path)):
        raise KeyboardInterrupt
    (tmp_path / "curves.png").unlink()
    refresh = CurvesLog(tmp_path)
    refresh.log_metrics({"train/loss": 1.0}, 1)
    assert not (tmp_path / "curves.png").exists()  # it is too early
    refresh.due = 0.0
    refresh.log_metrics({"train/loss": 1.0}, 2)
    assert (tmp_path / "curves.png").exists()
    assert refresh.due > time.perf_counter() + 50


def test_nothing_to_draw_is_no_file(tmp_path: Path) -> None:
    MetricsLog(tmp_path).log_metrics({"epoch": 0}, 0)
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
    assert environment.git_state(package) is None
    git("init")
    git("add", "package")
    git("-c", "user.name=n", "-c", "user.email=e", "commit", "-m", "m")
    assert environment.git_state(package) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (package / "__init__.py").write_text("changed = True")
    assert environment.git_state(package) == {"commit": git("rev-parse", "HEAD"), "dirty": True}
    assert environment.git_state(installed) is None  # inside the checkout, but not of it
