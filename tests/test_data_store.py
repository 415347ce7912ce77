"""The cache on disk: hits, damage, folders that cannot be written, and many processes at once."""

import contextlib
import logging
import multiprocessing
import os
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import contrast.cli.cache
import contrast.data.store
from contrast.data.store import cache_folder, cached, digest, from_texts, to_texts


def made() -> dict[str, Tensor]:
    return {
        "pixels": torch.arange(24, dtype=torch.uint8).view(2, 3, 4),
        "empty": torch.empty(0, 2),
        "one": torch.tensor(3),
        "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16, requires_grad=True).t(),
    }


def never() -> dict[str, Tensor]:
    pytest.fail("made again")


def same(found: dict[str, Tensor]) -> bool:
    return found.keys() == made().keys() and all(
        found[name].dtype == value.dtype and torch.equal(found[name], value) for name, value in made().items()
    )


@pytest.mark.filterwarnings("error")
def test_a_value_is_made_once_and_mapped(tmp_path: Path) -> None:
    assert same(cached(tmp_path / "new", "sub/k", made))
    found = cached(tmp_path / "new", "sub/k", never)
    assert same(found)
    assert [path.name for path in (tmp_path / "new/sub").iterdir()] == ["k.safetensors"]
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(tmp_path / "new/sub/k.safetensors") in maps.read_text()
    found["pixels"].zero_()  # stays in this process
    assert same(cached(tmp_path / "new", "sub/k", never))


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "garbage", "dtype"])
def test_a_damaged_file_is_made_again(tmp_path: Path, damage: str) -> None:
    cached(tmp_path, "k", made)
    path = tmp_path / "k.safetensors"
    content = path.read_bytes()
    bad = {
        "truncate": content[:-10],
        "flip": content[:-5] + bytes([content[-5] ^ 1]) + content[-4:],
        "empty": b"",
        "garbage": b"x" * 99,
        "dtype": content.replace(b'"BF16"', b'"F16" '),
    }
    path.unlink()  # the tensors of before are still mapped
    path.write_bytes(bad[damage])
    with pytest.warns(UserWarning, match=r"k\.safetensors is damaged"):
        assert same(cached(tmp_path, "k", made))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(cached(tmp_path, "k", never))


def test_a_folder_that_cannot_be_written_is_one_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.warns(UserWarning, match="cannot write"):
        assert same(cached(tmp_path / "file/cache", "images/a", made))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(cached(tmp_path / "file/cache", "seen/b", made))


def test_what_is_interrupted_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> dict[str, Tensor]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path, "k", fail)
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", fail)
        with pytest.raises(KeyboardInterrupt):
            cached(tmp_path, "k", made)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError):  # an error of `make` is not taken for one of the cache
        cached(tmp_path, "k", lambda: torch.load(tmp_path / "absent"))
    old, new = tmp_path / ".writing-1-a", tmp_path / ".writing-2-a"
    old.touch()
    new.touch()
    os.utime(old, (1, 1))
    cached(tmp_path, "k", made)
    assert new.exists()  # another process may be writing it
    assert not old.exists()


@pytest.mark.parametrize("damaged", [False, True])
def test_two_processes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: bool) -> None:
    """Each process has written its file before either moves it into place, over one that is damaged or none."""
    if damaged:
        (tmp_path / "k.safetensors").write_bytes(b"")
    context = multiprocessing.get_context("fork")  # a fresh interpreter would spend seconds on importing torch
    both, results = context.Barrier(2, timeout=20), context.Queue()
    real = contrast.data.store.save_file

    def save_file(*args, **options):
        real(*args, **options)
        both.wait()

    def job() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore" if damaged else "error")
            results.put(cached(tmp_path, "k", made)["pixels"].numpy().tobytes())

    monkeypatch.setattr(contrast.data.store, "save_file", save_file)
    jobs = [context.Process(target=job) for _ in range(2)]
    for process in jobs:
        process.start()
    found = [results.get(timeout=20) for _ in jobs]
    for process in jobs:
        process.join()
    assert [process.exitcode for process in jobs] == [0, 0]
    assert found == [made()["pixels"].numpy().tobytes()] * 2
    assert same(cached(tmp_path, "k", never))
    assert [path.name for path in tmp_path.iterdir()] == ["k.safetensors"]


def test_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CONTRAST_CACHE", "~/here")
    assert cache_folder() == tmp_path / "here"
    assert cache_folder("~/mine") == tmp_path / "mine"
    monkeypatch.delenv("CONTRAST_CACHE")
    assert cache_folder() == tmp_path / ".cache/contrast"


def test_a_digest_tells_its_parts_apart() -> None:
    torch.manual_seed(0)
    module = nn.Linear(2, 3)
    parts: list[tuple[object, ...]] = [
        ("ab", "c"),
        ("a", "bc"),
        ("abc",),
        (b"abc",),
        (["abc"],),
        (["a", "bc"],),
        (1,),
        ("1",),
        (None,),
        (module, {"size": 3, "name": "x"}),
        (module, {"size": 4, "name": "x"}),
        (nn.Linear(2, 3), {"size": 3, "name": "x"}),
        (torch.zeros(4),),
        (torch.zeros(2, 2),),
        (torch.zeros(4, dtype=torch.int32),),
        (torch.zeros(8, dtype=torch.bfloat16),),
    ]
    found = [digest(*each) for each in parts]
    assert len(set(found)) == len(parts)
    assert found[9] == digest(module, {"name": "x", "size": 3})
    assert all(len(each) == 32 for each in found)
    with torch.no_grad():
        module.bias += 1
    assert digest(module, {"size": 3, "name": "x"}) != found[9]


def test_texts_survive() -> None:
    texts = ["", "a b", "line\nfeed", "ü\0", "\ud83d"]
    assert to_texts(from_texts(texts)) == texts
    assert to_texts(from_texts([])) == []


def megabyte() -> dict[str, Tensor]:
    return {"pixels": torch.zeros(1_000_000, dtype=torch.uint8)}


def test_the_entries_that_were_not_used_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTRAST_CACHE_GB", "0.0035")
    keys = [f"images/{digest(i)}" for i in range(4)]
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "mine.safetensors").write_bytes(bytes(5_000_000))  # is not ours, does not count and stays
    for i, key in enumerate(keys[:3]):
        cached(tmp_path, key, megabyte)
        os.utime(tmp_path / f"{key}.safetensors", ns=(i, i))
    cached(tmp_path, keys[0], never)  # used again
    cached(tmp_path, keys[3], megabyte)
    assert [(tmp_path / f"{key}.safetensors").exists() for key in keys] == [True, False, True, True]
    assert (tmp_path / "images" / "mine.safetensors").exists()
    monkeypatch.setenv("CONTRAST_CACHE_GB", "0.0001")
    assert torch.equal(cached(tmp_path, keys[1], megabyte)["pixels"], megabyte()["pixels"])
    assert [(tmp_path / f"{key}.safetensors").exists() for key in keys] == [False, True, False, False]


def test_what_comes_from_the_cache_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        cached(tmp_path, "images/a", megabyte)
        assert "from the cache" not in caplog.text
        cached(tmp_path, "images/a", never)
    assert f"from the cache: {tmp_path / 'images/a.safetensors'} (1 MB)" in caplog.text


def test_the_command_lists_and_clears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CONTRAST_CACHE", str(tmp_path))
    for i in range(3):
        cached(tmp_path, f"{'images' if i else 'features'}/{digest(i)}", megabyte)
    (tmp_path / "notes.txt").write_text("mine")

    def command(*words: str) -> str:
        monkeypatch.setattr("sys.argv", ["contrast-cache", *words])
        with contextlib.suppress(SystemExit):
            contrast.cli.cache.main()
        return capsys.readouterr().out

    assert [line.split()[:2] for line in command().splitlines()[:2]] == [["features", "1"], ["images", "2"]]
    assert f"{tmp_path}: 0.003 of at most 50 GB" in command()
    assert "0.001 of" in command("--clear", "images")
    assert [line.split()[0] for line in command().splitlines()[:-1]] == ["features"]
    assert "0 of" in command("--clear")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["notes.txt"]
