"""The package as it is installed from a wheel, away from the checkout."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from conftest import FEW, TINY

import contrast

CHECKOUT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling", reason="pip install 'contrast-learning[test]'")
    pytest.importorskip("build", reason="pip install 'contrast-learning[test]'")
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(CHECKOUT)],
        check=True,
        capture_output=True,
    )
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bin/ of a fresh environment with the wheel; everything else comes from the environment of this process."""
    folder = tmp_path_factory.mktemp("elsewhere") / "venv"
    venv.create(folder, symlinks=True, with_pip=True)
    paths = {name: sysconfig.get_path(name, "venv", vars={"base": str(folder)}) for name in ("purelib", "scripts")}
    scripts = Path(paths["scripts"])
    pip = [scripts / "python", "-m", "pip", "install", "--no-deps", "--no-index", "--disable-pip-version-check"]
    subprocess.run([*pip, wheel], check=True, capture_output=True)
    # A path alone, whose own .pth files are not read: an editable install of the checkout is such a file.
    Path(paths["purelib"], "outside.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return scripts


def call(programs: Path, cwd: Path, *words: str) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [programs / words[0], *words[1:]], cwd=cwd, env=environment, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_the_package_and_its_configuration(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
        (points,) = (name for name in inside if name.endswith("entry_points.txt"))
        scripts = archive.read(points).decode()
        text = [archive.read(name) for name in inside]
    conf = {path.relative_to(CHECKOUT).as_posix() for path in (CHECKOUT / "conf").rglob("*.yaml")}
    code = {path.relative_to(CHECKOUT).as_posix() for path in (CHECKOUT / "contrast").rglob("*.py")}
    page = {f"contrast/report/page.{suffix}" for suffix in ("html", "css", "js")}
    assert {f"contrast/{name}" for name in conf} | code | page | {"contrast/py.typed"} <= inside
    assert {name.partition("/")[0] for name in inside} == {
        "contrast",
        f"contrast_learning-{contrast.__version__}.dist-info",
    }
    assert "contrast-pretrain = contrast.cli.commands:pretrain" in scripts
    assert "contrast-words = contrast.cli.commands:words" in scripts
    assert "contrast-cache = contrast.cli.cache:main" in scripts
    for command in ("evaluate", "embed", "export", "report"):
        assert f"contrast-{command} = contrast.cli.commands:{command}" in scripts
    assert not any(str(CHECKOUT).encode() in content for content in text)


@pytest.mark.slow
def test_the_commands_work_from_any_folder(programs: Path, tmp_path: Path) -> None:
    python = programs / "python"
    where = subprocess.run(
        [python, "-c", "import contrast; print(contrast.__file__)"], cwd=tmp_path, capture_output=True, text=True
    ).stdout
    assert Path(where.strip()).is_relative_to(programs.parent)

    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - simclr_digits\n  - override /projector: identity\n\nname: mine\nseed: 7\n"
    )
    shown = call(programs, tmp_path, "contrast-pretrain", "--config-dir", "own", "experiment=mine", "--cfg", "job")
    assert "name: mine\nseed: 7\n" in shown
    assert not (tmp_path / "runs").exists()

    words = [word for word in (*TINY, *FEW) if not word.startswith(("projector.", "trainer.max_epochs"))]
    words += ["debug=quick", "--config-dir", "own", "experiment=mine", "hydra.run.dir=run"]
    assert "linear probe top-1" in call(programs, tmp_path, "contrast-pretrain", *words)
    assert "linear_top1" in json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert str(CHECKOUT) not in (tmp_path / "run" / "environment.json").read_text()

    told = call(programs, tmp_path, "contrast-evaluate", "checkpoint=run", "protocol=knn", "hydra.run.dir=score")
    assert "top1" in told
