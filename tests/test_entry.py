import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import toy_task
from omegaconf import OmegaConf
from toy_conf import write_conf

import contrast
from contrast import run as entry
from contrast.run.compose import differences
from contrast.run.folder import claim, conf_folder, quoted

Call = Callable[..., int]


@pytest.fixture(scope="module")
def conf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_conf(tmp_path_factory.mktemp("conf"))


@pytest.fixture
def call(conf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Call]:
    """The command in this process, called from an empty folder; returns its exit status."""
    monkeypatch.chdir(tmp_path)
    handlers = list(logging.getLogger().handlers)

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["toy", "--config-path", str(conf), *arguments])
        try:
            entry.run(entry.Command(toy_task.task, "toy"))
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    yield run
    logging.getLogger().handlers[:] = handlers  # Hydra's hold on to this test's stdout


def calls(path: str = "record.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()] if Path(path).exists() else []


def program(*arguments: str) -> list[str]:
    return [sys.executable, toy_task.__file__, *arguments]


def environment() -> dict[str, str]:
    paths = [str(Path(contrast.__file__).parents[1]), str(Path(toy_task.__file__).parent)]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


# --- a run and its folder


def test_conf_folder_is_that_of_the_checkout() -> None:
    assert (conf_folder() / "runs.yaml").is_file()


def test_a_run_writes_what_it_is(call: Call) -> None:
    assert call("head.temperature=0.3", "experiment=known", "batch_size=1024", "hydra.run.dir=a") == 0
    config = OmegaConf.to_container(OmegaConf.load("a/config.yaml"), resolve=False)
    assert config["head"] == {"temperature": 0.3, "bias": {"initial": 0}}
    assert config["seed"] == 7
    assert config["optimizer"]["learn"] == pytest.approx(0.4)  # resolved
    assert "hydra" not in config
    assert list(OmegaConf.load("a/overrides.yaml")) == ["head.temperature=0.3", "experiment=known", "batch_size=1024"]
    assert calls()[0]["folder"] == str(Path("a").absolute())
    assert {path.name for path in Path("a").iterdir()} == {"config.yaml", "overrides.yaml", "metrics.json"}


def test_the_default_folder_lies_where_the_command_is_called(call: Call) -> None:
    assert call("name=mine") == 0
    assert [path.name for path in Path("runs").iterdir()] == ["mine"]


def test_two_runs_never_share_a_folder(call: Call) -> None:
    Path("a").mkdir()  # an empty folder is as good as none
    assert [call("hydra.run.dir=a", f"seed={seed}") for seed in range(3)] == [0, 0, 0]
    assert [Path(each["folder"]).name for each in calls()] == ["a", "a_2", "a_3"]
    assert OmegaConf.load("a/config.yaml").seed == 0


def test_claim_gives_a_folder_to_one_alone(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        claimed = list(pool.map(lambda _: claim(tmp_path / "run")[0], range(40)))
    assert len(set(claimed)) == 40


def test_a_run_that_took_no_step_removes_what_it_made_alone(call: Call) -> None:
    Path("mine").mkdir()
    Path("mine/train.log").write_text("of somebody else")
    assert call("encoder.widths=[0]", "hydra.run.dir=mine") == 2
    assert Path("mine/train.log").is_file()
    assert call("encoder.widths=[0]", "hydra.run.dir=.") == 2
    assert Path().absolute().is_dir()
    assert call("encoder.widths=[0]", "hydra.run.dir=new/a") == 2
    assert not Path("new").exists()
    Path("empty").mkdir()
    assert call("encoder.widths=[0]", "hydra.run.dir=empty") == 2
    assert list(Path("empty").iterdir()) == []


def test_any_folder_name(call: Call) -> None:
    name = """it's "a" = b,c (d)[e]{f}:\\"""
    assert call(f"hydra.run.dir={quoted(Path(name))}") == 0
    assert Path(name, "config.yaml").is_file()


def test_showing_the_configuration_creates_nothing(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--cfg", "job", "seed=5") == 0
    assert "seed: 5" in capsys.readouterr().out
    assert call("--cfg", "all", "--resolve") == 0
    assert list(Path.cwd().iterdir()) == []


def test_other_ranks_take_the_folder_and_write_nothing(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    Path("a").mkdir()
    Path("a/config.yaml").write_text("the first rank's")
    assert call("hydra.run.dir=a") == 0
    assert Path("a/config.yaml").read_text() == "the first rank's"
    assert calls()[0]["folder"] == str(Path("a").absolute())


def test_own_recipes(call: Call, tmp_path: Path) -> None:
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 11\n")
    assert call("--config-dir", "own", "experiment=mine", "hydra.run.dir=a") == 0
    assert calls()[0]["seed"] == 11
    assert call("experiment=mine") == 2


def test_flags_and_overrides_in_any_order(call: Call) -> None:
    assert call("seed=1,2", "-m", "metric=loss", "hydra.sweep.dir=a") == 0
    assert [each["seed"] for each in calls()] == [1, 2]


# --- errors


MISTAKES: list[tuple[list[str], list[str]]] = [
    (["head.temprature=0.1"], ["head has no key 'temprature'", "did you mean 'temperature'?"]),
    (["head.bias.initail=0.1"], ["head.bias has no key 'initail'", "did you mean 'initial'?"]),
    (
        ["head.temperature.initial=2"],
        ["head.temperature has no keys, and so no 'initial': head.temperature=... sets it as a whole"],
    ),
    (["--info", "config", "head.temperature.initial=2"], ["head.temperature has no keys, and so no 'initial'"]),
    (["sead=1"], ["no key or group 'sead'", "did you mean 'seed'?"]),
    (["exprimnt=known"], ["did you mean 'experiment'?"]),
    (["hed=info_nce"], ["no key or group 'hed'", "did you mean 'head'?"]),
    (["encoder=resnt"], ["encoder has no option 'resnt'", "did you mean 'resnet18'?", "nested, resnet18, small"]),
    (["experiment=lost"], ["encoder has no option 'resnt'"]),
    (["experiment=broken"], ["cannot read a configuration file", "line 3"]),
    (["--config-name", "needy"], ["needed must be given: needed=..."]),
    (["data=some"], ["data.root must be given"]),
    (["--config-name", "choosy"], ["data must be given: data=..."]),
    (["head.temperature=a=b"], ["cannot read head.temperature=a=b", "quotes"]),
    (["seed=1,2"], ["seed=1,2", "--multirun"]),
    (["seed=${sed}"], ["seed: ", "'sed' not found"]),
    (["batch_size=0"], ["not 0 by 256"]),
    (["encoder.widths=[0]"], ["a layer of width 0"]),
    (["encoder=nested"], ["a layer of width 0"]),
    (["+encoder.witdhs=3"], ["encoder: ", "unexpected keyword argument 'witdhs'", "did you mean 'widths'?"]),
    (["~encoder.widths"], ["encoder: ", "missing 1 required positional argument: 'widths'"]),
    (["encoder._target_=toy_task.Nett"], ["encoder._target_=toy_task.Nett"]),
    (["encoder.widths=[a]"], ["encoder.widths.0=a", "integer"]),
    (["encoder=resnet18", "+encoder.inner=3", "~encoder.widths"], ["encoder: ", "'widths'"]),
    (["encoder._target_=toy_task.fragile"], ["encoder: ", "min() arg is an empty sequence"]),
    (["+optimizer.larn=3"], ["optimizer: ", "unexpected keyword argument 'larn'", "did you mean 'learn'?"]),
    (["hydra/launcher=nope"], ["hydra/launcher has no option 'nope'", "basic"]),
    (["--config-dir", "nowhere"], ["--config-dir nowhere", "no such folder"]),
    (["--config-dir", "a\x1b[2Jb"], ["--config-dir a\\x1b[2Jb"]),  # a terminal would clear its screen
    (["--config-name", "nowhere"], ["nowhere"]),
    (["resume=nowhere"], ["resume=nowhere", "no such run folder"]),
    (["-m", "seed=1,2", "encoder=small,resnt"], ["encoder has no option 'resnt'"]),
    (["-m", "sead=1,2"], ["no key or group 'sead'"]),
    (["-m", "data=some", "seed=1,2"], ["data.root must be given"]),
    (["-m", "seed=interval(0, 1)"], ["seed=interval(0, 1)", "hydra/sweeper=basic"]),
]


@pytest.mark.parametrize(("arguments", "parts"), MISTAKES, ids=[" ".join(arguments) for arguments, _ in MISTAKES])
def test_mistakes_are_one_line(
    call: Call, capsys: pytest.CaptureFixture[str], arguments: list[str], parts: list[str]
) -> None:
    assert call(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    for part in parts:
        assert part in error
    assert not [path for path in Path.cwd().rglob("config.yaml") if "conf" not in str(path)]  # no run is left behind


def test_a_refused_run_leaves_the_folders_that_were_there(call: Call) -> None:
    Path("mine/empty").mkdir(parents=True)
    assert call("batch_size=0", "hydra.run.dir=mine/empty/new/run") == 2
    assert call("encoder=nested", "hydra.run.dir=mine/empty/new/run") == 2
    assert list(Path("mine/empty").iterdir()) == []


def test_unknown_metric(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("metric=acuracy") == 2
    assert capsys.readouterr().err == "error: metric=acuracy is none of the metrics: accuracy, linear_top1, loss\n"


@pytest.mark.parametrize("file", sorted((conf_folder() / "launcher").glob("*.yaml")), ids=lambda file: file.stem)
def test_launchers_compose_or_name_their_extra(call: Call, capsys: pytest.CaptureFixture[str], file: Path) -> None:
    extra = {"basic": "hydra", "submitit_local": "submitit"}.get(file.stem, file.stem)
    plugins = find_spec("hydra_plugins")  # absent without any plugin, and then nothing below it can be looked for
    installed = extra == "hydra" or bool(plugins and find_spec(f"hydra_plugins.hydra_{extra}_launcher"))
    assert call("--cfg", "hydra", f"launcher={file.stem}") == (0 if installed else 2)
    assert (f"pip install 'contrast-learning[{extra}]'" in capsys.readouterr().err) is not installed


def test_other_errors_keep_their_traceback(call: Call) -> None:
    with pytest.raises(RuntimeError, match="it broke"):
        call("fails=0")


def test_full_errors_on_request(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(Exception, match="a layer of width 0"):
        call("encoder.widths=[0]")
    with pytest.raises(Exception, match="temprature"):
        call("head.temprature=0")


@pytest.mark.parametrize("how", ["stops", "exits"])
def test_interrupt(call: Call, capsys: pytest.CaptureFixture[str], how: str) -> None:
    assert call(f"{how}=0") == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.slow
def test_as_a_program(conf: Path, tmp_path: Path) -> None:
    common: dict[str, Any] = {"cwd": tmp_path, "env": environment(), "capture_output": True, "text": True}
    done = subprocess.run(program("--config-path", str(conf), "head.temprature=1"), check=False, **common)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    done = subprocess.run(program("--config-path", str(conf), "fails=0"), check=False, **common)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("it broke\non two lines\n")


# --- resume


@pytest.fixture
def begun(call: Call) -> Path:
    """A run that left a checkpoint, and no metrics yet."""
    assert call("encoder=resnet18", "head.temperature=0.3", "checkpoint=true", "hydra.run.dir=a") == 0
    Path("a/metrics.json").unlink()
    return Path("a")


def test_nothing_is_left_to_do_of_a_complete_run(call: Call, begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("a/metrics.json").write_text("{}")
    assert call("resume=a") == call("resume=a/checkpoints/last.ckpt") == 0
    assert len(calls()) == 1
    assert capsys.readouterr().out.count("is complete") == 2
    assert Path("a/metrics.json").read_text() == "{}"
    assert call("resume=a", "head.temperature=0.4") == 0  # whoever changes a value wants another outcome
    assert len(calls()) == 2


def test_a_resume_that_fails_at_its_start_leaves_the_folder_as_it_was(
    call: Call, begun: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()}
    with pytest.raises(FileNotFoundError):
        call("resume=a", "record=nowhere/x")
    assert call("resume=a", "record=.") == 2
    assert "error: .: Is a directory" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()} == before


def test_resume_takes_the_configuration_of_the_run(call: Call, begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = OmegaConf.load(begun / "config.yaml")
    assert call("resume=a") == 0
    assert calls()[1]["resume"] == "a"
    assert calls()[1]["folder"] == calls()[0]["folder"]
    assert OmegaConf.load(begun / "config.yaml") == before  # encoder=resnet18 and all
    assert "other than" not in capsys.readouterr().out
    assert not Path("runs").exists()


def test_resume_with_other_values_says_so(call: Call, begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("resume=a/checkpoints/last.ckpt", "head.temperature=0.4", "+head.extra=1", "encoder.widths=[4]") == 0
    assert [line for line in capsys.readouterr().out.splitlines() if "other than" in line] == [
        "other than when the run began: head.temperature: 0.3 -> 0.4",
        "other than when the run began: head.extra: (absent) -> 1",
        "other than when the run began: encoder.widths: [3] -> [4]",
    ]
    assert OmegaConf.load("a/config.yaml").head.temperature == 0.4
    assert OmegaConf.load("a/config.yaml").resume is None
    assert list(OmegaConf.load("a/overrides.yaml"))[:2] == ["encoder=resnet18", "head.temperature=0.3"]
    assert call("resume=a") == 0  # and the next one goes on from there
    assert "other than" not in capsys.readouterr().out


def test_resume_from_elsewhere(call: Call, begun: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert call("resume=../a") == 0
    assert Path(calls()[0]["folder"]).resolve() == (tmp_path / "a").resolve()


def test_showing_what_would_be_resumed(call: Call, begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("resume=a", "--cfg", "job") == 0
    assert "temperature: 0.3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["resume=a", "encoder=small"], "encoder=small cannot be combined with resume="),
        (["resume=a", "experiment=known"], "experiment=known cannot be combined with resume="),
        (["resume=a", "head.temprature=1"], "did you mean 'temperature'?"),
        (["-m", "resume=a", "seed=1,2"], "resume= continues a single run"),
        (["resume=empty"], "no run folder"),
        (["resume=unstarted"], "no checkpoints/last.ckpt"),
        (["resume=other"], "no run that this command can continue"),
        (["resume=stray.ckpt"], "no run folder"),
        (["experiment=resuming"], "resume belongs on the command line"),
    ],
)
def test_resume_refuses(
    call: Call, begun: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], part: str
) -> None:
    for name, config in (("empty", None), ("unstarted", "resume: null"), ("other", "name: x")):
        Path(name).mkdir()
        if config:
            Path(name, "config.yaml").write_text(config)
    Path("other/checkpoints").mkdir()
    Path("other/checkpoints/last.ckpt").touch()
    Path("stray.ckpt").touch()
    assert call(*arguments) == 2
    assert part in capsys.readouterr().err
    assert len(calls()) == 1


def test_differences() -> None:
    before = {"a": 1, "b": {"c": [1], "d": None}, "e": 0}
    assert differences(before, before) == []
    assert differences(before, {"a": 2, "b": {"c": [1], "d": 3}, "f": 1}) == [
        "a: 1 -> 2",
        "b.d: None -> 3",
        "e: 0 -> (absent)",
        "f: (absent) -> 1",
    ]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c(conf: Path, tmp_path: Path) -> None:
    sleepy = tmp_path / "sleepy.py"
    sleepy.write_text(
        "import time\nfrom contrast import run as entry\n"
        "def task(cfg):\n    print('ready', flush=True)\n    time.sleep(60)\n"
        "if __name__ == '__main__':\n    entry.run(entry.Command(task, 'toy'))\n"
    )
    command = [sys.executable, str(sleepy), "--config-path", str(conf)]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (130, "interrupted\n")
