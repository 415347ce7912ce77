"""Files of strangers: none of them runs code, writes a file or takes memory that it does not have."""

import functools
import gzip
import inspect
import json
import os
import pickle
import re
import resource
import shutil
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from conftest import TINY, Command
from hydra.utils import get_object
from omegaconf import OmegaConf
from torch import nn

from contrast.cli.belongs import TEXT
from contrast.config.trust import ARGUMENTS, PARTS, PLACES, from_file
from contrast.data.images.digits import digits
from contrast.data.text.vectors import load_vectors
from contrast.encoders import conv_net
from contrast.encoders.weights import read
from contrast.errors import InputError
from contrast.evaluation.encoder import from_checkpoint
from contrast.run import folder
from contrast.run.compose import config_loader, load_config
from contrast.run.folder import conf_folder, resume_command, run_config
from contrast.run.whole import newest
from contrast.training.build import build

CONF = conf_folder()
SECRET = "the value of an environment variable"
SCRIPT = "open({witness!r}, 'w').write('code of the stranger')\n"


class Hostile(NamedTuple):
    """What a stranger changed in a configuration, by key, and what the one line says."""

    changes: dict[str, Any]
    says: str


def call(target: str, /, *positional: Any, **named: Any) -> dict[str, Any]:
    return {"_target_": target, **({"_args_": list(positional)} if positional else {}), **named}


def written(text: str = "code of the stranger") -> dict[str, Any]:
    return call("pathlib.Path.write_text", self=call("pathlib.Path", "WITNESS"), data=text)


def argument(payload: Any) -> dict[str, Any]:
    """An encoder of this package, one of whose arguments is the payload: Hydra makes arguments first."""
    return {"encoder.widths": payload}


# changes of a checkpoint, whose encoder is then built
IN_CHECKPOINT = {
    # those that were shown to get through
    "write_text": Hostile(argument(written()), "pathlib.Path.write_text"),
    "torch.load": Hostile(argument(call("torch.load", f="PICKLE", weights_only=False)), "torch.load"),
    "torch.hub.load": Hostile(
        argument(call("torch.hub.load", repo_or_dir="FOLDER", model="entry", source="local")), "torch.hub.load"
    ),
    "torch.distributed.run": Hostile(
        argument(call("torch.distributed.run.main", args=["--standalone", "SCRIPT"])), "torch.distributed.run.main"
    ),
    "joblib.load": Hostile(argument(call("joblib.load", filename="PICKLE")), "joblib.load"),
    "urlretrieve": Hostile(
        argument(call("urllib.request.urlretrieve", url="file://SCRIPT", filename="WITNESS")),
        "urllib.request.urlretrieve",
    ),
    "open": Hostile(argument(call("builtins.open", file="WITNESS", mode="w")), "builtins.open"),
    "sympify": Hostile(argument(call("sympy.sympify", a="open('WITNESS', 'w').write('x')")), "sympy.sympify"),
    "oc.env": Hostile(argument(written("${oc.env:CONTRAST_SECRET}")), "oc.env"),
    "remote code": Hostile(
        {
            "text": {"vocabulary": 5, "length": 4, "tokenizer": {"vocabulary": ["a", "b", "c"]}},
            "key": call(
                "contrast.keys.Second",
                encoder=call("contrast.encoders.hf_text", name="FOLDER", trust_remote_code=True, _partial_=True),
            ),
        },
        "trust_remote_code (key.encoder.trust_remote_code)",
    ),
    # others
    "runpy": Hostile(argument(call("runpy.run_path", path_name="SCRIPT")), "runpy.run_path"),
    "np.load": Hostile(argument(call("numpy.load", file="PICKLE", allow_pickle=True)), "numpy.load"),
    "np.savetxt": Hostile(argument(call("numpy.savetxt", fname="WITNESS", X=[1.0])), "numpy.savetxt"),
    "torch.save": Hostile(argument(call("torch.save", obj=[1], f="WITNESS")), "torch.save"),
    "copyfile": Hostile(argument(call("shutil.copyfile", src="SCRIPT", dst="WITNESS")), "shutil.copyfile"),
    "FileHandler": Hostile(argument(call("logging.FileHandler", filename="WITNESS")), "logging.FileHandler"),
    "os.system": Hostile(argument(call("os.system", command="touch WITNESS")), "os.system"),
    "os.mkdir": Hostile(argument(call("os.mkdir", path="WITNESS")), "os.mkdir"),
    "subprocess": Hostile(argument(call("subprocess.run", args=["touch", "WITNESS"])), "subprocess.run"),
    "putenv": Hostile(argument(call("os.environ.setdefault", key="CONTRAST_WITNESS", value="x")), "os.environ"),
    "eval": Hostile(argument(call("builtins.eval", "open('WITNESS', 'w')")), "builtins.eval"),
    "instantiate": Hostile(argument(call("hydra.utils.instantiate", config=written())), "hydra.utils.instantiate"),
    "Lightning's logger": Hostile(
        argument(call("pytorch_lightning.loggers.CSVLogger", save_dir="WITNESS")), "pytorch_lightning.loggers.CSVLogger"
    ),
    # names below trusted names
    "below contrast": Hostile(argument(call("contrast.data.store.os.mkdir", path="WITNESS")), "contrast.data.store.os"),
    "below torch.nn": Hostile(
        argument(call("torch.nn.functional.torch.save", obj=[1], f="WITNESS")), "torch.nn.functional.torch.save"
    ),
    "below models": Hostile(argument(call("torchvision.models.resnet.torch.save", obj=[1], f="WITNESS")), "torch.save"),
    "contrast, but it writes": Hostile(
        argument(call("contrast.run.folder.claim", folder=call("pathlib.Path", "WITNESS"))), "contrast.run.folder.claim"
    ),
    "contrast, but elsewhere": Hostile(
        argument(call("contrast.run.loggers.wandb_logger", run_dir="WITNESS", name="x")),
        "wandb_logger (encoder.widths)",
    ),
    # ways of calling
    "partial": Hostile(argument({**written(), "_partial_": True}), "pathlib.Path.write_text"),
    "in a list": Hostile(argument([8, [written()]]), "pathlib.Path.write_text"),
    "in a mapping": Hostile({"encoder.other": {"a": {"b": written()}}}, "pathlib.Path.write_text"),
    "not recursive": Hostile({"encoder._recursive_": False, **argument(written())}, "pathlib.Path.write_text"),
    "positional": Hostile(
        {"encoder": call("contrast.encoders.hf_text", "FOLDER", None, None, True, True)},
        "contrast.encoders.hf_text._args_",
    ),
    "computed target": Hostile(argument(call("${oc.decode:'builtins.open'}", file="WITNESS", mode="w")), "oc.decode"),
    "target that is no text": Hostile(argument({"_target_": ["builtins.open"]}), "builtins.open"),
    "oc.env alone": Hostile({"encoder.compile": "${oc.env:CONTRAST_SECRET}"}, "oc.env (encoder.compile)"),
    "nested resolver": Hostile({"encoder.compile": "${oc.decode:${oc.env:CONTRAST_SECRET}}"}, "oc.decode"),
    "as the projector": Hostile(
        {"text": {"vocabulary": 5, "length": 4}, "key": call("contrast.keys.Second"), "projector": written()},
        "pathlib.Path.write_text (projector)",
    ),
    # arguments
    "truth in other words": Hostile({"encoder.trust_remote_code": 1}, "trust_remote_code"),
    "pickled weights": Hostile({"encoder.use_safetensors": False}, "use_safetensors"),
    "pickled weights again": Hostile({"encoder.weights_only": 0}, "weights_only"),
    "an option of transformers": Hostile(
        {"encoder": call("contrast.encoders.hf_text", name="FOLDER", attn_implementation="owner/kernel")},
        "contrast.encoders.hf_text.attn_implementation",
    ),
    "an option of timm": Hostile(
        {"encoder": call("contrast.encoders.timm_model", name="resnet18", pretrained_cfg={"file": "PICKLE"})},
        "contrast.encoders.timm_model.pretrained_cfg",
    ),
    # what is no configuration
    "no plain value": Hostile({"encoder.widths": torch.ones(2)}, "it has a Tensor in it"),
    "too deep": Hostile({"encoder.widths": functools.reduce(lambda x, _: [x], range(200), 1)}, "too deeply"),
    "too large": Hostile({"encoder.widths": functools.reduce(lambda x, _: [x] * 10, range(12), [1])}, "too large"),
    "other than its weights": Hostile({"encoder.widths": [10**6, 10**6]}, "of another shape"),
    "other than its weights, too": Hostile({"images.channels": 10**9}, "of another shape"),
    "nothing": Hostile({"encoder": None}, "does not hold what an encoder is built from"),
    "no mapping": Hostile({"encoder": "builtins.open"}, "does not hold what an encoder is built from"),
}

# changes of the configuration in a run folder, which is then resumed
IN_RUN = {
    "data": Hostile({"data": written()}, "pathlib.Path.write_text (data)"),
    "callback": Hostile({"callbacks.extra": written()}, "pathlib.Path.write_text (callbacks.extra)"),
    "logger": Hostile({"logger.extra": written()}, "pathlib.Path.write_text (logger.extra)"),
    "optimizer": Hostile({"optimizer.lr": written()}, "pathlib.Path.write_text (optimizer.lr)"),
    "trainer": Hostile({"trainer.plugins": [written()]}, "pathlib.Path.write_text (trainer.plugins.0)"),
    "trainer's folder": Hostile({"trainer.profiler": "simple"}, "pytorch_lightning.Trainer.profiler"),
    "W&B's settings": Hostile(
        {"logger": {"wandb": call("contrast.run.loggers.wandb_logger", save_code=True)}}, "wandb_logger.save_code"
    ),
    "vectors elsewhere": Hostile({"evaluation.files": ["../../WITNESS.txt"]}, "evaluation.files"),
    "its own trust": Hostile({"trust": True, "data": written()}, "pathlib.Path.write_text"),
    "env_set": Hostile({"hydra": {"job": {"env_set": {"CONTRAST_WITNESS": "x"}}}}, "sets hydra"),
    "hydra.callbacks": Hostile({"hydra": {"callbacks": {"extra": written()}}}, "sets hydra"),
    "hydra.launcher": Hostile({"hydra": {"launcher": written()}}, "sets hydra"),
    "searchpath": Hostile({"hydra": {"searchpath": ["file://FOLDER"]}}, "sets hydra"),
    "defaults": Hostile({"defaults": ["_self_", "hostile"]}, "sets defaults"),
    "resolver": Hostile({"name": "${oc.env:CONTRAST_SECRET}"}, "oc.env (name)"),
    "resolver of this package": Hostile({"optimizer.lr": "${linear_lr:1,2}"}, "linear_lr"),
}


@pytest.fixture(scope="module")
def own() -> dict[str, Any]:
    """A checkpoint of this package as its own training would begin it."""
    with config_loader(CONF) as loader:
        cfg = load_config(loader, "pretrain", [word for word in TINY if "encoder" not in word])
        model = build(OmegaConf.create(run_config(cfg)), digits().pretrain)
    return {"config": model.config, "state_dict": model.state_dict()}


@pytest.fixture
def place(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the stranger brings: a pickle, a script, a model of transformers and of torch.hub."""
    monkeypatch.setenv("CONTRAST_SECRET", SECRET)
    script = SCRIPT.format(witness=str(workplace / "witness"))
    (workplace / "script.py").write_text(script)
    (workplace / "pickle").write_bytes(pickle.dumps(Opens(str(workplace / "witness"))))
    brought = workplace / "folder"
    brought.mkdir()
    (brought / "hubconf.py").write_text(script + "def entry():\n    pass\n")
    (brought / "model.py").write_text(
        script + "from transformers import PretrainedConfig, PreTrainedModel\n"
        "class C(PretrainedConfig):\n    model_type = 'x'\nclass M(PreTrainedModel):\n    config_class = C\n"
    )
    auto = {"AutoConfig": "model.C", "AutoModel": "model.M"}
    (brought / "config.json").write_text(json.dumps({"model_type": "x", "auto_map": auto}))
    (brought / "hostile.yaml").write_text(yaml.safe_dump({"data": written()}))
    return workplace


class Opens:
    """An object whose pickle opens a file when it is loaded."""

    def __init__(self, witness: str) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.witness, "w")


def changed(config: dict[str, Any], changes: dict[str, Any], place: Path) -> dict[str, Any]:
    """The configuration with these changes by key, in which the names of files are filled in."""
    names = {"WITNESS": "witness", "PICKLE": "pickle", "SCRIPT": "script.py", "FOLDER": "folder"}

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: filled(item) for key, item in value.items()}
        if isinstance(value, list) and len(value) < 9:
            return [filled(item) for item in value]
        if isinstance(value, str):
            for name, file in names.items():
                value = value.replace(name, str(place / file) if name != "WITNESS" or "../" not in value else file)
        return value

    config = json.loads(json.dumps(config))
    for key, value in changes.items():
        *path, last = key.split(".")
        functools.reduce(dict.__getitem__, path, config)[last] = filled(value)
    return config


def assert_untouched(place: Path, line: str) -> None:
    assert not (place / "witness").exists()
    assert not list(place.parent.glob("witness*"))
    assert "CONTRAST_WITNESS" not in os.environ
    assert SECRET not in line
    assert "\n" not in line


@pytest.mark.parametrize("name", IN_CHECKPOINT)
def test_a_hostile_checkpoint(own: dict[str, Any], place: Path, name: str) -> None:
    changes, says = IN_CHECKPOINT[name]
    start = time.process_time()
    with pytest.raises(InputError) as refused:
        from_checkpoint({**own, "config": changed(own["config"], changes, place)})
    assert says in str(refused.value)
    assert_untouched(place, str(refused.value))
    assert time.process_time() - start < 20


def run_folder(own: dict[str, Any], place: Path, changes: dict[str, Any] | None = None) -> Path:
    """The folder of a run of this package, with a stranger's changes, as far as it is read before it is trusted."""
    run = place / "run"
    (run / "checkpoints").mkdir(parents=True)
    config = {key: value for key, value in own["config"].items() if key not in ("images", "text")}
    (run / "config.yaml").write_text(yaml.safe_dump(changed(config, changes or {}, place), sort_keys=False))
    torch.save(own, run / "checkpoints" / "last.ckpt")
    return run


def refused(command: Command, capfd: pytest.CaptureFixture[str], *words: str) -> str:
    """The line of a command that is refused."""
    capfd.readouterr()
    assert command(*words) == 2
    lines = capfd.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    return lines[-1]


@pytest.mark.parametrize("name", IN_RUN)
def test_a_hostile_run_folder(
    own: dict[str, Any], place: Path, pretrain: Command, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    changes, says = IN_RUN[name]
    run = run_folder(own, place, changes)
    line = refused(pretrain, capfd, f"resume={run}")
    assert says in line
    assert_untouched(place, line)
    assert not (run / "environment.json").exists()


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.system ['touch WITNESS']\n",
        "a: !!python/object/apply:builtins.open ['WITNESS', 'w']\n",
        "a: !!python/object/new:pathlib.Path ['WITNESS']\n",
        "a: !!python/object/apply:pathlib.Path ['WITNESS']\n",  # a tag that OmegaConf knows
        "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",  # which grows twofold with each line
        "a: " + "[" * 5000 + "]" * 5000 + "\n",
        "a: ${oc.env:CONTRAST_SECRET}\n",
        "a: ${\n",
        "resume\n",
        "\x00",
    ],
)
def test_hostile_yaml(
    own: dict[str, Any], place: Path, pretrain: Command, capfd: pytest.CaptureFixture[str], text: str
) -> None:
    run = run_folder(own, place)
    with (run / "config.yaml").open("a") as file:
        file.write(text.replace("WITNESS", str(place / "witness")))
    assert_untouched(place, refused(pretrain, capfd, f"resume={run}"))
    (run / "overrides.yaml").write_text("- a=${oc.env:CONTRAST_SECRET}\n")
    assert folder.read_overrides(run) == ["a=${oc.env:CONTRAST_SECRET}"]


def test_a_link_in_a_run_folder(
    own: dict[str, Any], place: Path, pretrain: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    run = run_folder(own, place)
    (run / "metrics.jsonl").symlink_to(place / "witness")
    assert "metrics.jsonl is a link" in refused(pretrain, capfd, f"resume={run}")
    (run / "metrics.jsonl").unlink()
    os.mkfifo(run / "metrics.jsonl")  # which nobody would ever write to
    assert "metrics.jsonl is a link, or no regular file" in refused(pretrain, capfd, f"resume={run}")
    (run / "metrics.jsonl").unlink()
    (run / "tensorboard").mkdir()
    (run / "tensorboard" / "hparams.yaml").symlink_to(place / "witness")  # Lightning writes it if it is no file
    assert "hparams.yaml is a link" in refused(pretrain, capfd, f"resume={run}")
    assert not (place / "witness").exists()
    (run / "tensorboard" / "hparams.yaml").unlink()
    (run / "wandb" / "offline-run").mkdir(parents=True)
    (run / "wandb" / "latest-run").symlink_to("offline-run")  # W&B's own
    assert pretrain(f"resume={run}", "--cfg", "job") == 0


def test_a_store_of_mlflow_in_a_run_folder(
    own: dict[str, Any],
    place: Path,
    pretrain: Command,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """MLflow creates the store that a run continues in, so a stranger's folder may not say where it is."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = run_folder(own, place / "runs", {"logger": {"mlflow": call("contrast.run.loggers.mlflow_logger")}})
    show = (f"resume={run}", "--cfg", "job")
    for store in (
        f"sqlite:///{place}/witness",
        f"file://{place}/witness",
        "http://example.org",
        f"{place}/runs/mlflow.db",
    ):
        (run / "mlflow_id").write_text(f"0123\n{store}\n")
        line = refused(pretrain, capfd, f"resume={run}", "trainer.max_epochs=2")
        assert f"mlflow_id says that the run is logged to {store}" in line
        assert_untouched(place, line)
        assert pretrain(*show, "trust=true") == 0
    (run / "mlflow_id").write_bytes(b"\xff")
    assert "mlflow_id is damaged" in refused(pretrain, capfd, f"resume={run}")
    (run / "mlflow_id").write_text(f"0123\nsqlite:///{place}/witness\n")
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mine.db")
        assert pretrain(*show) == 0
    monkeypatch.chdir("/")  # a run goes on in its own store from any folder
    for store in ("", f"sqlite:///{place}/runs/mlflow.db"):
        (run / "mlflow_id").write_text(f"0123\n{store}\n")
        assert pretrain(*show) == 0


@pytest.mark.parametrize("text", ["[" * 5000, '{"a', "7", "\x00"])
def test_hostile_json(
    own: dict[str, Any], place: Path, pretrain: Command, evaluate: Command, capfd: pytest.CaptureFixture[str], text: str
) -> None:
    run = run_folder(own, place)
    (run / "environment.json").write_text(text)
    assert "environment.json is damaged" in refused(pretrain, capfd, f"resume={run}", "trainer.max_epochs=2")
    exported = place / "exported"
    exported.mkdir()
    (exported / "config.json").write_text(text)
    assert "holds no exported encoder" in refused(evaluate, capfd, f"checkpoint={exported}", "hydra.run.dir=a")


def test_a_run_folder_with_weights_of_another_net(
    own: dict[str, Any], trained: Path, workplace: Path, pretrain: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    run = workplace / "run"
    shutil.copytree(trained, run)
    torch.save(own, run / "checkpoints" / "last.ckpt")  # without what Lightning resumes from
    assert "last.ckpt is damaged or no checkpoint" in refused(pretrain, capfd, f"resume={run}", "trainer.max_epochs=2")
    shutil.copy(trained / "checkpoints" / "last.ckpt", run / "checkpoints")
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("hidden_features: 32", "hidden_features: 24"))
    line = refused(pretrain, capfd, f"resume={run}", "trainer.max_epochs=2")
    assert "of other networks than its configuration: size mismatch for projector" in line


def test_a_pickled_job_is_not_run_again(place: Path, pretrain: Command, capfd: pytest.CaptureFixture[str]) -> None:
    assert "pickle" in refused(pretrain, capfd, "--experimental-rerun", str(place / "pickle"))
    assert not (place / "witness").exists()


@pytest.mark.parametrize(
    ("urls", "says"),
    [("reference://a.tar::file:///r.json", "reference:// (data.urls)"), (["reference::r.json"], ":: (data.urls.0)")],
)
def test_a_file_system_of_fsspec_that_runs_templates(urls: object, says: str) -> None:
    data = call("contrast.data.images.shards.webdataset", urls=urls)
    with pytest.raises(InputError, match=re.escape(says)):
        from_file({"data": data}, "file")
    data["urls"] = ["https://host/a.tar", "s3://bucket/{000..099}.tar", "file:///a.tar"]
    assert from_file({"data": data}, "file") == {"data": data}


def test_hostile_data_of_a_checkpoint(
    own: dict[str, Any], place: Path, evaluate: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    """The data set of the checkpoint is built only if the user names no other."""
    torch.save({**own, "config": changed(own["config"], {"data": written()}, place)}, "hostile.ckpt")
    line = refused(evaluate, capfd, "checkpoint=hostile.ckpt", "trainer.accelerator=cpu", "hydra.run.dir=a")
    assert "pathlib.Path.write_text (data)" in line
    assert_untouched(place, line)
    words = ["checkpoint=hostile.ckpt", "data=digits", "protocol=knn", "trainer.accelerator=cpu", "hydra.run.dir=b"]
    assert evaluate(*words) == 0
    assert not (place / "witness").exists()


# --- sizes that a file claims


def rewritten(path: Path, edit: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> None:
    """Each entry of a checkpoint edited, or compressed."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, edit(name, content))


def compressed(path: Path) -> None:
    torch.save({"a": torch.zeros(10**6)}, path)
    rewritten(path, lambda _, content: content, zipfile.ZIP_DEFLATED)


def of_too_many_numbers(path: Path) -> None:
    torch.save({"a": torch.arange(7.0)}, path)
    many = b"\x8a\x08" + struct.pack("<q", 10**12)
    rewritten(path, lambda name, content: content.replace(b"K\x07", many) if name.endswith(".pkl") else content)


def of_too_many_numbers_in_the_old_format(path: Path) -> None:
    torch.save({"a": torch.arange(7.0)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"K\x07", b"\x8a\x08" + struct.pack("<q", 10**12)))


class Zeros:
    """An object whose pickle asks for a buffer of any size."""

    def __reduce__(self) -> tuple[Any, ...]:
        return bytearray, (10**12,)


def of_zeros(path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, path)
    pickled = pickle.dumps({"a": Zeros()}, protocol=2)
    rewritten(path, lambda name, content: pickled if name.endswith("data.pkl") else content)


def of_zeros_in_the_old_format(path: Path) -> None:
    torch.save({"a": Zeros()}, path, _use_new_zipfile_serialization=False)


def repeated(path: Path) -> None:
    torch.save({"a": [torch.zeros(1).expand(10**12)]}, path)


def code(path: Path) -> None:
    torch.save({"a": Opens("witness")}, path)


def safetensors(shape: list[int], end: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        header = json.dumps({"vectors": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))

    return write


def header(size: int, text: bytes = b"") -> Callable[[Path], None]:
    return lambda path: path.write_bytes(struct.pack("<Q", size) + text) and None


def text(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


WEIGHTS = {
    "compressed.pt": compressed,
    "long.pt": of_too_many_numbers,
    "old.pt": of_too_many_numbers_in_the_old_format,
    "zeros.pt": of_zeros,
    "old_zeros.pt": of_zeros_in_the_old_format,
    "repeated.pt": repeated,
    "code.pt": code,
    "rows.safetensors": safetensors([10**12, 300], 10**12 * 1200),
    "short.safetensors": safetensors([10**12, 300], 16),
    "product.safetensors": safetensors([2**40, 2**40, 2**40], 16),
    "header.safetensors": header(10**12, b"{}"),
    "nested.safetensors": header(10**5, b"[" * 10**5),
}
VECTORS = {
    "rows.txt": text(b"1000000000000 3\na 1 2 3\n"),
    "columns.vec": text(b"1 1000000000000\na 1 2 3\n"),
    "digits.txt": text(b"9" * 10**5 + b" 3\na 1 2 3\n"),
    "rows.bin": text(b"1000000000000 0\na "),
    "columns.bin": text(b"1 1000000000000\na " + bytes(16)),
    "line.txt.gz": text(gzip.compress(b"a" + b" 1" * 10**7 + b"\n")),
    "lines.vec.gz": text(gzip.compress(b"a 1 2 3\n" * 10**6)),
    "negative.bin": text(b"-1000000 -1000000\na " + bytes(16)),
    "rows.safetensors": safetensors([10**12, 300], 10**12 * 1200),
}


@pytest.mark.parametrize(("door", "name"), [*((read, name) for name in WEIGHTS), *((load_vectors, v) for v in VECTORS)])
def test_sizes_are_bounded_before_memory_is_taken(workplace: Path, door: Callable[[Path], Any], name: str) -> None:
    path = workplace / name
    (WEIGHTS if door is read else VECTORS)[name](path)
    (workplace / "witness").unlink(missing_ok=True)
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=path.name) as error:
        door(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500
    assert time.process_time() - start < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # kilobytes, so 256 MB
    assert not (workplace / "witness").exists()


def test_parts_of_a_checkpoint_take_no_memory_that_its_weights_do_not_fill(own: dict[str, Any]) -> None:
    """A part within another one that then fails, and a part that names its device, would take memory."""
    large = call("torch.nn.Linear", in_features=30_000, out_features=30_000, device="cpu")  # 3.6 GB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    several = [call("torch.nn.Sequential", large), {**own["config"]["encoder"], "widths": [large]}]
    for encoder in several:
        with pytest.raises(InputError, match="asks for more than"):
            from_checkpoint({**own, "config": {**own["config"], "encoder": encoder}})
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18


@pytest.mark.parametrize(
    ("key", "value"),
    [("images.size", None), ("images.channels", "x"), ("encoder.widths", 5), ("encoder", {}), ("encoder.widths", [])],
)
def test_values_that_no_encoder_has(own: dict[str, Any], key: str, value: object) -> None:
    with pytest.raises(InputError, match=r"^encoder of the checkpoint") as error:
        from_checkpoint({**own, "config": changed(own["config"], {key: value}, Path())})
    assert "\n" not in str(error.value)


def test_an_archive_behind_a_file_of_the_old_format_hides_nothing(workplace: Path) -> None:
    path = workplace / "both.pt"
    of_zeros_in_the_old_format(path)
    with zipfile.ZipFile(path, "a") as archive:  # which torch does not look at
        archive.writestr("archive/data.pkl", b"")
    with pytest.raises(InputError, match="requests memory"):
        read(path)


def test_a_hostile_checkpoint_beside_the_last_is_not_read(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (workplace / "checkpoints").mkdir(exist_ok=True)
    for write in (compressed, of_zeros):
        write(workplace / "checkpoints" / "epoch_00001.ckpt")
        with monkeypatch.context() as patch:
            patch.setattr(torch, "load", lambda *args, **options: pytest.fail("it is read"))
            assert newest(workplace) is None


def test_a_hostile_last_checkpoint(
    own: dict[str, Any], place: Path, pretrain: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    run = run_folder(own, place)
    for write in (compressed, of_zeros):
        write(run / "checkpoints" / "last.ckpt")
        assert "last.ckpt" in refused(pretrain, capfd, f"resume={run}")


# --- what goes on working


@pytest.mark.slow
def test_every_recipe_and_method_passes() -> None:
    words = {
        "skipgram": ["data.path=x.txt"],
        "simclr_folder": ["data.root=images"],
        "hugging_face": ["key.encoder.name=x"],
        "seed": ["key.weights=x"],
        "crd": ["key.weights=x"],
    }
    cases = [(group, path.stem) for group in ("experiment", "method") for path in (CONF / group).glob("*.yaml")]
    cases += [("key", "hugging_face"), ("output", "adaptive_softmax"), ("output", "sampled_softmax")]
    with config_loader(CONF) as loader:
        for group, option in cases:
            command = "words" if option in TEXT["experiment"] else "pretrain"
            config = run_config(load_config(loader, command, [f"{group}={option}", *words.get(option, [])]))
            assert from_file(config, "the run") == config
            assert "trust" not in config


@pytest.mark.parametrize("path", sorted(CONF.glob("*/**/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_option_passes(path: Path) -> None:
    """Each option of a group that a run keeps: what it names is on the lists."""
    groups = path.relative_to(CONF).parent.as_posix()
    if groups.partition("/")[0] in ("hydra", "launcher", "protocol", "sweep"):
        return
    values = re.sub(r"\$\{[^}]*\}*", "x", path.read_text())
    node = yaml.safe_load(values) or {}
    node.pop("defaults", None)
    is_global = "@package _global_" in values
    tree = functools.reduce(lambda inner, name: {name: inner}, reversed(groups.split("/")), node)
    from_file(node if is_global else tree, "the run")


def test_what_is_listed_exists() -> None:
    for name in [*PARTS, *PLACES]:
        assert callable(get_object(name)), name
    for name, arguments in ARGUMENTS.items():
        signature = inspect.signature(get_object(name))
        named = {
            each.name
            for each in signature.parameters.values()
            if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
        }
        others = [each for each in signature.parameters.values() if each.kind is each.VAR_KEYWORD]
        assert others or named >= set(arguments.split()), name


def tiny_net(in_channels: int, image_size: int) -> nn.Module:
    """The user's own encoder, which no list names."""
    return conv_net(in_channels, image_size, (8, 16))


def test_the_users_own_parts(
    pretrain: Command, evaluate: Command, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """His own class works where he types it; for its checkpoint he says that he trusts it, or types it again."""
    tiny = [word for word in TINY if "encoder" not in word]
    mine = ("~encoder", "+encoder={_target_: test_trust.tiny_net}")
    assert pretrain(*tiny, *mine, "callbacks=none", "trainer.limit_train_batches=1", "hydra.run.dir=run") == 0
    cpu = ("protocol=knn", "trainer.accelerator=cpu", "hydra.run.dir=a")
    line = refused(evaluate, capfd, "checkpoint=run", *cpu)
    assert "test_trust.tiny_net (encoder)" in line
    assert "trust=[test_trust.tiny_net]" in line
    assert evaluate("checkpoint=run", "trust=[test_trust.tiny_net]", *cpu) == 0
    saved = read(Path("run/checkpoints/last.ckpt"))
    for trust in (True, "test_trust.tiny_net", {"test_trust.tiny_net"}):
        assert from_checkpoint(saved, trust=trust).num_features == 16
    with pytest.raises(InputError, match=r"trust=\[another,test_trust.tiny_net\]"):
        from_checkpoint(saved, trust=["another"])
    assert "test_trust.tiny_net (encoder)" in refused(pretrain, capfd, "resume=run", "trainer.max_epochs=2")
    show = ("--cfg", "job")
    assert pretrain("resume=run", "encoder._target_=test_trust.tiny_net", *show) == 0
    Path("mine/encoder").mkdir(parents=True)
    Path("mine/encoder/tiny.yaml").write_text("_target_: test_trust.tiny_net\n")
    assert pretrain("--config-dir", "mine", "resume=run", *show) == 0
    assert resume_command(Path("run/checkpoints/last.ckpt")).endswith("/last.ckpt trust=true")
    assert pretrain("resume=run", "trust=[test_trust.tiny_net]", "trainer.max_epochs=2") == 0
    assert "trust" not in OmegaConf.load("run/config.yaml")
    assert "trust" not in read(Path("run/checkpoints/last.ckpt"))["config"]


def test_what_is_opened_is_said_before(own: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    changes = {"data.root": "/data/images", "encoder.weights": "https://example.org/x", "encoder.pretrained": True}
    changes |= {"logger": {"wandb": call("contrast.run.loggers.wandb_logger", entity="stranger")}}
    changes |= {"key": call("contrast.keys.Second", encoder=call("contrast.encoders.hf_text", name="owner/net"))}
    config = changed(own["config"], changes, Path())
    from_file(config, "a.ckpt")
    line = capfd.readouterr().err
    assert "a.ckpt says what to open: " in line
    told = ("data.root=/data/images", "encoder.weights=https://example.org/x", "key.encoder.name=owner/net")
    for each in (*told, "logger.wandb.entity=stranger"):
        assert each in line
    assert from_file(config, "b.ckpt", ignored=("weights", "pretrained")) == config
    assert "encoder.weights" not in capfd.readouterr().err


def test_a_line_shows_no_control_characters(own: dict[str, Any]) -> None:
    config = changed(own["config"], {"encoder._target_": "os.system\n\x1b[2Jerror: nothing is wrong"}, Path())
    with pytest.raises(InputError) as error:
        from_file(config, "a.ckpt")
    assert str(error.value).isprintable()
