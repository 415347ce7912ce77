"""Every code block and command of README.md and docs/ is run or checked, unless a comment before it says why not.

    <!-- not run: REASON -->     stands directly before a block that no test runs: it needs a GPU, a network

- Python: the blocks of a page run from top to bottom in one program, here or in the page's own test (`OWN_TEST`).
- Commands of this library are composed and checked against the signatures, as they are before a run begins. The slow
  test runs the cheap ones, with two steps in place of the whole training.
- Benchmarks have the options that are given to them, and `pip install` names extras that exist.
"""

import contextlib
import io
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytest
import torch
import yaml
from conftest import called
from PIL import Image

import contrast
from contrast.run import app, compose
from contrast.run.folder import conf_folder, run_config

ROOT = Path(contrast.__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "SECURITY.md", "CONTRIBUTING.md", "benchmarks/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
PROJECT = (ROOT / "pyproject.toml").read_text()
COMMANDS = {name: resolve_name(main) for name, main in re.findall(r'^(contrast-\w+) = "(.+)"$', PROJECT, flags=re.M)}
SENTENCES = "the king and the queen , the man and the woman\n" * 300
OWN_TEST = {  # pages whose Python blocks another test runs, all of them
    "coming_from.md": "test_coming_from.py",
    "extend.md": "test_extend.py",
    "own.md": "test_own.py",
    "python.md": "test_python.py",
}
LANGUAGES = {"bash", "python", "yaml", "text", ""}


class Block(NamedTuple):
    page: str
    language: str
    text: str
    not_run: str | None  # why


def blocks(path: Path) -> Iterator[Block]:
    """The fenced blocks of a page, those in lists included."""
    found = re.findall(r"(?:<!-- not run: (.+?) -->\n)?^ *```(\w*)[^\n]*\n(.*?)^ *```$", path.read_text(), re.S | re.M)
    return (Block(path.name, language, text, reason or None) for reason, language, text in found)


def prose(path: Path) -> str:
    return re.sub(r"^ *```.*?^ *```$", "", path.read_text(), flags=re.S | re.M)


def lines_of(text: str) -> Iterator[list[str]]:
    """The commands of a shell block, as words; assignments before a command are left out."""
    for line in text.replace("\\\n", " ").splitlines():
        for part in re.split(r"(?<=\s)&&(?=\s)", line):
            found = shlex.split(part, comments=True)
            while found and re.fullmatch(r"[A-Z_]+=.*", found[0]):
                del found[0]
            if found:
                yield found


def own_command(line: list[str]) -> list[str] | None:
    """From the name of a command of this library on: torchrun and srun start one."""
    for place, word in enumerate(line):
        name = word.removeprefix("$(which ").removesuffix(")")
        if name in COMMANDS:
            return [name, *line[place + 1 :]]
    return None


ALL = [block for path in PAGES for block in blocks(path)]
IN_BLOCKS = [line for block in ALL if block.language == "bash" for line in lines_of(block.text)]
INLINE = [
    shlex.split(text)
    for path in PAGES
    for text in re.findall(r"`((?:contrast-\w+|python benchmarks|pip install) [^`]+)`", prose(path))
    if "..." not in text
]
OURS = sorted({tuple(line) for each in IN_BLOCKS + INLINE if (line := own_command(each))})
FEWER = re.compile(r"^(seed=\d|[\w.]+=[\w.]+),.*")  # one job of a sweep is as good as all
PLACEHOLDERS = {"method=NAME": "method=moco", "encoder.name=NAME": "encoder.name=resnet18"}


# --- no block escapes


def test_every_block_has_a_language_that_is_known() -> None:
    assert {block.language for block in ALL} <= LANGUAGES
    for path in PAGES:
        indented = re.findall(r"^    (?:contrast-|python |pip |import ).*$", prose(path), flags=re.M)
        assert indented == [], f"{path.name}: commands belong in fenced blocks"
        plain = [block.text for block in blocks(path) if block.language == ""]
        assert not [text for text in plain if re.match(r"(contrast-\w+|python|pip) ", text)], path.name


def test_every_command_is_one_that_is_checked() -> None:
    unknown = [
        (block.page, line)
        for block in ALL
        if block.language == "bash" and block.not_run is None
        for line in lines_of(block.text)
        if own_command(line) is None and line[0] not in ("pip", "mkdocs") and not is_benchmark(line)
    ]
    assert unknown == [], "run them here, or put <!-- not run: REASON --> before the block"


def test_python_blocks_of_other_tests() -> None:
    for page, test in OWN_TEST.items():
        assert page in (ROOT / "tests" / test).read_text()


# --- commands


def is_benchmark(line: list[str]) -> bool:
    return line[0] == "python" and line[1].startswith("benchmarks/")


@pytest.fixture
def workplace_of_docs(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which what the pages call FOLDER, RUN, captions.csv and so on exists."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 20, 24, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        path = Path("FOLDER", ("train", "test")[number % 5 == 0], ("apple", "pear")[number % 2], f"{number}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    names = sorted(Path("FOLDER").rglob("*.png"))
    for name in ("captions.csv", "captions.txt"):
        rows = [f"{path},a {path.parent.name} number {path.stem}" for path in names]
        Path(name).write_text("path,caption\n" + "\n".join(rows))
    for name in ("corpus.txt", "TEXT"):
        Path(name).write_text(SENTENCES)
    Path("wordsim353.tsv").write_text("king\tqueen\t8.0\nman\twoman\t7.0\nking\tman\t3.0\n")
    Path("questions-words.txt").write_text(": family\nman woman king queen\n")
    write_my_files()
    monkeypatch.syspath_prepend("my")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    return workplace


def write_my_files() -> None:
    """The files that the pages say to write, my/..."""
    for path in PAGES:
        named = re.findall(r"`(my/[\w/.]+)`[^`]*?\n```(?:python|yaml)\n(.*?)```", path.read_text(), flags=re.S)
        for name, text in named:
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_text(text)


def write_run(folder: Path, command: str) -> None:
    """A run folder as far as it is read before a run is resumed: the configuration, and a checkpoint."""
    with compose.config_loader(conf_folder()) as loader:
        config = run_config(compose.load_config(loader, command, []))
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "overrides.yaml").write_text("[]\n")
    torch.save({}, folder / "checkpoints" / "last.ckpt")


def checked(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: str) -> str | None:
    """What is wrong with a command, found as it is before a run begins; None if nothing is."""
    output = io.StringIO()
    with (
        mock.patch.object(app, "run_single"),
        mock.patch.object(app.sweep, "run_sweep", return_value=0),
        mock.patch.object(compose, "call_hydra"),
        contextlib.redirect_stdout(None),
        contextlib.redirect_stderr(output),
    ):
        status = called(COMMANDS[name], monkeypatch, *(PLACEHOLDERS.get(word, word) for word in arguments))
    text = output.getvalue()
    return text if status and "is not installed: pip install" not in text else None  # of an extra


@pytest.mark.slow
def test_commands_compose_and_fit_what_they_configure(workplace_of_docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(OURS) > 60
    Path("RUN/checkpoints").mkdir(parents=True)
    Path("RUN/checkpoints/last.ckpt").touch()  # for a pattern
    wrong = []
    for name, *arguments in OURS:
        for word in arguments:
            key, _, value = word.partition("=")
            if key == "resume":
                shutil.rmtree(value, ignore_errors=True)
                write_run(Path(value), name.removeprefix("contrast-"))
        problem = checked(monkeypatch, name, *(FEWER.sub(r"\1", word) for word in arguments))
        if problem and "pip install 'contrast-learning[" not in problem:  # of an extra that is not installed
            wrong.append(f"{shlex.join([name, *arguments])}: {problem}")
    assert not wrong, "\n".join(wrong)


def test_benchmarks_have_the_options_of_their_commands() -> None:
    lines = [line for line in IN_BLOCKS + INLINE if is_benchmark(line)]
    assert lines
    for line in lines:
        text = (ROOT / line[1]).read_text()
        assert [word for word in line if word.startswith("--") and f'"{word}"' not in text] == [], line


def test_extras_exist() -> None:
    section = PROJECT.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    extras = set(re.findall(r"^([\w-]+) = \[", section, flags=re.M))
    text = "".join(path.read_text() for path in PAGES)
    named = re.findall(r"pip install[^`\n]*?(?:contrast-learning|\.)\[([\w,-]+)\]", text)
    assert named
    assert {each for names in named for each in names.split(",")} <= extras


# --- Python


def names_of(page: str) -> dict[str, Any]:
    """What a page calls by a name before its code."""
    z = torch.randn(4, 8, 16)
    given: dict[str, dict[str, Any]] = {
        "README.md": {"z1": z[0], "z2": z[1]},
        "large_batches.md": {"query": z[0], "key": z[1]},
        "views.md": {"pixels": torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "generator": torch.Generator()},
    }
    if page == "views.md":
        from contrast.views import SimCLRViews

        given[page]["SimCLRViews"] = SimCLRViews
    return given.get(page, {})


WITH_PYTHON = sorted({block.page for block in ALL if block.language == "python" and block.not_run is None})


@pytest.mark.parametrize("page", [page for page in WITH_PYTHON if page not in OWN_TEST])
def test_python_of_a_page_runs_from_top_to_bottom(page: str, workplace: Path, request: pytest.FixtureRequest) -> None:
    code = [block.text for block in ALL if block.page == page and block.language == "python" and not block.not_run]
    for run in re.findall(r'load\("(runs/[\w/-]+)"\)', "".join(code)):
        Path(run).parent.mkdir(parents=True, exist_ok=True)
        os.symlink(request.getfixturevalue("trained"), run)
    for name in re.findall(r'"(\w+\.jpg)"', "".join(code)):
        Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(name)
    Path("corpus.txt").write_text(SENTENCES)
    if "RUN/vectors.safetensors" in "".join(code):
        from contrast.data.text.vectors import save_vectors

        Path("RUN").mkdir()
        save_vectors("RUN/vectors.safetensors", ("a", "b"), torch.randn(2, 4))
    module = ModuleType("page")
    module.__dict__.update(names_of(page))
    for text in code:
        exec(compile(text, page, "exec"), module.__dict__)


# --- the cheap commands run


def is_cheap(line: tuple[str, ...]) -> bool:
    """One run on one device, with data that is here."""
    dear = r"-m|--help|--cfg|resume=.*|launcher=.*|trainer.(devices|num_nodes|strategy)=.*|.*batch\w*=\d{4,}"
    elsewhere = r"data=(hf|cifar100?|webdataset)|experiment=simclr_cifar10|.*torchvision:.*|.*\.pth\.tar|format=hub"
    elsewhere += r"|.*NAME|hf:.*|data\.path=(new|old)\.txt"
    needs = r"--config-dir|checkpoint=(FILE|WORDS_RUN|CLIP_RUN|SWEEP)|trust=.*|(key|encoder)=(hugging_face|open_clip).*"
    needs += r"|protocol=(words|perplexity|zeroshot)"
    return not any(re.fullmatch(f"{dear}|{elsewhere}|{needs}", word) for word in line)


@pytest.mark.slow
def test_cheap_commands_run(workplace_of_docs: Path, monkeypatch: pytest.MonkeyPatch, trained: Path) -> None:
    for name in ("RUN", "RUN_OR_FILE", "run", "runs/first"):
        Path(name).parent.mkdir(exist_ok=True)
        os.symlink(trained, name)
    brief = {
        "contrast-pretrain": ["debug=quick", "callbacks=none", "trainer.accelerator=cpu", "batch_size=16"],
        "contrast-words": ["debug=quick", "logger=csv", "trainer.accelerator=cpu", "data.min_count=1"],
        "contrast-evaluate": ["trainer.accelerator=cpu"],
        "contrast-embed": ["trainer.accelerator=cpu"],
        "contrast-export": [],
        "contrast-report": [],
    }
    lines = [line for line in OURS if line[0] != "contrast-cache" and is_cheap(line)]
    assert len(lines) > 30
    failed = []
    for name, *arguments in lines:
        more = [*brief[name], f"hydra.run.dir=out/{len(failed)}"]
        if "protocol=finetune" in arguments:
            more += ["protocol.epochs=1", "protocol.learning_rates=[0.1]"]
        arguments = [word for word in arguments if not word.startswith("hydra.run.dir=")]
        if called(COMMANDS[name], monkeypatch, *arguments, *more) != 0:
            failed.append(shlex.join([name, *arguments, *more]))
    assert not failed, "\n".join(failed)
