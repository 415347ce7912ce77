"""Data sets in tar files: an index makes them a data set like any other, local or remote."""

import http.server
import io
import itertools
import os
import re
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, Command, figures
from fsspec.implementations.local import LocalFileSystem
from PIL import Image
from test_loader import Recorder, fit

import contrast
from contrast.data.images import shards as shards_module
from contrast.data.images.decode import UnreadableImage
from contrast.data.images.image_set import ImageFiles, Images
from contrast.data.images.shards import expanded, webdataset
from contrast.data.loader import Batches
from contrast.data.text import tokenizer
from contrast.data.text.tokenizer import WordTokenizer
from contrast.errors import InputError
from contrast.evaluation.features import content
from contrast.evaluation.retrieval import distinct, image_keys
from contrast.run.metrics import read_rows

ONLY_DISK = {"image_size": 4, "memory_limit_gb": 0.0, "test_fraction": 0.0}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTRAST_CACHE", str(tmp_path / "cache"))


def png(value: int, size: int = 4) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), value, dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def write(path: Path, files: list[tuple[str, bytes]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def shards(folder: Path, tars: int = 3, each: int = 10) -> str:
    """Sample i has pixels of value i, the class i % 3 and the caption "number i"."""
    for tar in range(tars):
        files = []
        for i in range(tar * each, (tar + 1) * each):
            files += [(f"{i:06d}.png", png(i)), (f"{i:06d}.cls", b"%d" % (i % 3)), (f"{i:06d}.txt", b"number %d" % i)]
        write(folder / f"{tar:03d}.tar", files)
    return f"{folder}/{{000..{tars - 1:03d}}}.tar"


def values(images: Images | ImageFiles) -> list[int]:
    return images.take(torch.arange(len(images))).pixels[:, 0, 0, 0].tolist()


def test_samples_labels_and_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    urls = shards(tmp_path / "set")
    with caplog.at_level("INFO"):
        memory = webdataset(urls, test_fraction=0)
    assert "30 samples in 3 tars of 3 classes to train on; no test set" in caplog.text
    assert memory.name == "set"
    assert isinstance(memory.train, Images)
    disk = webdataset(f"{tmp_path}/set/*.tar", **ONLY_DISK).train
    assert isinstance(disk, ImageFiles)
    for images in (memory.train, disk):
        assert values(images) == list(range(30))
        assert images.labels.tolist() == [i % 3 for i in range(30)]
        assert images.classes == ("0", "1", "2")
        assert images.text is None
    assert list(disk.names) == [f"{i // 10:03d}.tar/{i:06d}" for i in range(30)]
    part = disk.select(torch.tensor([27, 3]))
    assert values(part) == [27, 3]
    assert content(part) != content(disk)


def test_a_test_set_of_its_own_or_a_part_held_out(tmp_path: Path) -> None:
    urls = shards(tmp_path / "set")
    held = webdataset(urls, test_fraction=0.2, seed=1)
    assert held.test is not None
    assert held.test.labels.bincount().tolist() == [2, 2, 2]
    assert sorted(values(held.train) + values(held.test)) == list(range(30))
    other = write(
        tmp_path / "test/0.tar", [("x/a.png", png(7)), ("x/a.cls", b"2"), ("x/b.png", png(8)), ("x/b.cls", b"9")]
    )
    splits = webdataset(urls, test_urls=other)
    assert splits.test is not None
    assert splits.test.labels.tolist() == [2, -1]  # class 9 is not in the training set
    assert len(splits.train) == 30


def test_captions_go_with_their_images(tmp_path: Path) -> None:
    splits = webdataset(shards(tmp_path / "set"), captions=True, length=3)
    assert splits.tokenizer is not None
    assert splits.test is not None
    assert (len(splits.train), len(splits.test)) == (27, 3)
    for images in (splits.train, splits.test):
        assert images.text is not None
        spoken = splits.tokenizer.decode(images.text)
        known = [(value, text) for value, text in zip(values(images), spoken, strict=True) if "<unk>" not in text]
        assert all(text == f"number {value}" for value, text in known)
        assert len(known) == (len(images) if images is splits.train else 0)  # no number of the test set is a known word


def test_tokenizers_of_open_clip_are_named_as_for_other_captions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = list[str]()
    monkeypatch.setattr(tokenizer, "OpenClipTokenizer", lambda name: named.append(name) or WordTokenizer(["number"]))
    splits = webdataset(shards(tmp_path / "set"), captions=True, tokenizer="open_clip:ViT-B-32")
    assert named == ["ViT-B-32"]
    assert isinstance(splits.tokenizer, WordTokenizer)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_killed_within_an_epoch_goes_on_without_repeating_or_losing_a_sample(
    tmp_path: Path, workers: int
) -> None:
    disk = webdataset(shards(tmp_path / "set"), **ONLY_DISK).train

    def ranks(position: Any, epochs: int, stop: int | None = None) -> tuple[list[list[int]], dict[str, int]]:
        """The values in each batch of two ranks together, and the position after them."""
        both = [Batches(disk, 6, 3, rank, 2, workers=workers) for rank in range(2)]
        seen: list[list[int]] = []
        for each in both:
            if position is not None:
                each.load_state_dict(position)
        for _ in range(epochs):
            for first, second in itertools.islice(zip(*both, strict=True), stop):
                seen.append(first.pixels[:, 0, 0, 0].tolist() + second.pixels[:, 0, 0, 0].tolist())
        return seen, both[0].state_dict()

    whole, _ = ranks(None, 2)
    assert [sorted(itertools.chain(*whole[part])) for part in (slice(5), slice(5, 10))] == [list(range(30))] * 2
    assert whole[:5] != whole[5:]
    for stop in (1, 4) if workers else range(1, 5):
        before, position = ranks(None, 1, stop)
        assert before + ranks(position, 2)[0] == whole


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_under_lightning_goes_on_within_an_epoch(tmp_path: Path, workers: int) -> None:
    disk, path = webdataset(shards(tmp_path / "set"), **ONLY_DISK).train, tmp_path / "stop.ckpt"
    whole = fit(disk, Recorder(path), max_epochs=2)
    seen = fit(disk, Recorder(path, 10), workers=workers, max_epochs=2)
    assert seen + fit(disk, Recorder(path), path, workers=workers, max_epochs=2) == whole


@pytest.mark.slow
def test_damage_is_named_or_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    urls = shards(tmp_path / "set")
    tar = tmp_path / "set/001.tar"
    with tarfile.open(tar) as file:
        middle = file.getmember("000015.png").offset_data
    whole = tar.read_bytes()
    for damaged, lost in (
        (whole[: middle + 10], 5),  # cut within an image
        (whole[: middle - 512], 5),  # cut between two files
        (whole[: middle - 400] + b"x" * 90 + whole[middle - 310 :], 5),  # a header that is overwritten
        (whole[:100], 10),
        (b"", 10),
        (whole + whole, 0),
    ):
        tar.write_bytes(damaged)
        with pytest.raises(UnreadableImage, match=r"1 of 3 tars are damaged: .*001.tar .*data.on_error=skip"):
            webdataset(urls)
        caplog.clear()
        train = webdataset(urls, on_error="skip", test_fraction=0).train
        assert values(train) == [i for i in range(30) if not 20 - lost <= i < 20]
        assert "skipped: 1 of 3 tars are damaged" in caplog.text


@pytest.mark.parametrize("limit", [4.0, 0.0])
def test_samples_that_cannot_be_read_are_named_or_counted(
    tmp_path: Path, limit: float, caplog: pytest.LogCaptureFixture
) -> None:
    files = [("a.png", png(1)), ("b.png", b"what?"), ("c.txt", b"no image"), ("a.png", png(2)), ("._d.png", b"")]
    url = write(tmp_path / "0.tar", files)
    options: dict[str, Any] = {"image_size": 4, "memory_limit_gb": limit}
    with pytest.raises(UnreadableImage, match=r"1 of 4 samples have no image: 0.tar/c"):
        webdataset(url, **options)
    train = webdataset(url, on_error="skip", **options).train
    assert "skipped: 1 of 4 samples have no image: 0.tar/c" in caplog.text
    assert "skipped: 1 of 3 samples in" in caplog.text
    assert "0.tar/b in" in caplog.text
    assert values(train) == [1, 2]  # two samples of one name are two
    write(tmp_path / "0.tar", files[:2])
    with pytest.raises(UnreadableImage, match=r"0.tar/b in .*its data is not a readable image"):
        values(webdataset(url, **options).train)


@pytest.mark.parametrize("limit", [4.0, 0.0])
def test_what_cannot_be_fetched_is_neither_skipped_nor_kept_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: float
) -> None:
    url, failures = shards(tmp_path / "set", tars=1), 10**9
    read = LocalFileSystem.cat_file

    def flaky(self: LocalFileSystem, path: str, start: int, end: int) -> bytes:
        nonlocal failures
        if start > 6000 and failures > 0:
            failures -= 1
            raise OSError("connection reset")
        return read(self, path, start=start, end=end)

    monkeypatch.setattr(LocalFileSystem, "cat_file", flaky)
    monkeypatch.setattr(shards_module, "_WAITS", (0.0, 0.0, 0.0), raising=False)
    options: dict[str, Any] = {**ONLY_DISK, "on_error": "skip", "memory_limit_gb": limit}
    with pytest.raises(InputError, match="connection reset"):
        values(webdataset(url, **options).train)
    failures = 2  # as often as it is tried again
    assert values(webdataset(url, **options).train) == list(range(10))
    assert failures == 0


@pytest.mark.parametrize(
    ("urls", "message"),
    [
        ("{0..9}.tar", "0.tar cannot be had"),
        ("none*.tar", r"there is no file none\*.tar"),
        ("a.tar.gz", "is no .tar; a compressed one"),
        ("nowhere://x/a.tar", "nowhere://x/a.tar cannot be had: Protocol not known: nowhere"),
        (["empty.tar"], "no samples in empty.tar"),
        ("s3://b/{09..00}.tar", r"range \{09..00\} of s3://b/\{09..00\}.tar is empty"),
        (["empty.tar", "empty.tar"], "names empty.tar twice"),
    ],
)
def test_what_cannot_be_had_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, urls: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "empty.tar", [("README", b"")])
    with pytest.raises(InputError, match=message):
        webdataset(urls)


def test_ranges_in_urls() -> None:
    assert expanded("s3://b/{008..010}-{0..1}.tar") == [f"s3://b/{i:03d}-{j}.tar" for i in (8, 9, 10) for j in (0, 1)]
    assert expanded(["a.tar", "b.tar"]) == ["a.tar", "b.tar"]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    path = write(tmp_path / "s[1].tar", [])
    assert expanded(path) == [path]
    assert expanded(f"{tmp_path}/s*.tar") == [path]


@pytest.mark.slow
def test_no_tar_is_both_in_the_training_and_in_the_test_set(tmp_path: Path) -> None:
    urls = shards(tmp_path / "set")
    with pytest.raises(InputError, match=r"both name .*001.tar"):
        webdataset(urls, test_urls=f"{tmp_path}/set/*1.tar")


def test_samples_of_one_name_in_tars_of_one_name_are_two(tmp_path: Path) -> None:
    urls = [write(tmp_path / f"{part}/0.tar", [("x.png", png(value))]) for part, value in (("a", 1), ("b", 2))]
    train = webdataset(urls, **ONLY_DISK).train
    assert isinstance(train, ImageFiles)
    assert list(train.names) == ["a/0.tar/x", "b/0.tar/x"]
    assert len(distinct(image_keys(train))[0]) == 2


class RangeServer(http.server.SimpleHTTPRequestHandler):
    """Sends ranges of bytes, which Python's own server does not."""

    bytes_sent = 0

    def do_GET(self) -> None:
        content = Path(self.translate_path(self.path)).read_bytes()
        first, last = self.headers["Range"].removeprefix("bytes=").split("-")
        part = content[int(first) : int(last) + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)
        type(self).bytes_sent += len(part)

    def end_headers(self) -> None:
        self.send_header("Accept-Ranges", "bytes")
        super().end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def test_a_secret_of_an_url_is_in_no_name(tmp_path: Path, server: str) -> None:
    shards(tmp_path / "set", tars=1)
    shards(tmp_path, tars=1)
    for place, name in (("set/", "set"), ("", "127.0.0.1")):
        secret = f"{server.replace('://', '://me:s3cret@')}/{place}000.tar?key=s3cret.tar"
        splits = webdataset(secret, **ONLY_DISK)
        assert splits.name.partition(":")[0] == name
        assert isinstance(splits.train, ImageFiles)
        assert splits.train.names[0] == "000.tar/000000"


class PlainServer(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[str]:
    pytest.importorskip("aiohttp", reason="pip install 'contrast-learning[shards]'")
    monkeypatch.chdir(tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), getattr(request, "param", RangeServer)) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


@pytest.mark.parametrize("workers", [0, 2])
def test_remote_shards_are_those_of_the_disk(tmp_path: Path, server: str, workers: int) -> None:
    local = webdataset(shards(tmp_path / "set"), **ONLY_DISK).train
    remote = webdataset(f"{server}/set/{{000..002}}.tar", **ONLY_DISK).train
    assert isinstance(remote, ImageFiles)
    assert isinstance(local, ImageFiles)
    assert list(remote.names) == list(local.names)
    expected, found = (Batches(each, 5, 1, workers=w) for each, w in ((local, 0), (remote, workers)))
    for _ in range(2):
        for one, other in zip(expected, found, strict=True):
            assert torch.equal(one.pixels, other.pixels)
            assert torch.equal(one.labels, other.labels)
    before = RangeServer.bytes_sent
    webdataset(f"{server}/set/{{000..002}}.tar", **ONLY_DISK)  # the index is in the cache
    assert RangeServer.bytes_sent < before + 2000  # a few images, to see how deep they are


class TaggingServer(RangeServer):
    def end_headers(self) -> None:
        self.send_header("ETag", '"of these bytes"')
        super().end_headers()


@pytest.mark.parametrize(("server", "again"), [(TaggingServer, False), (RangeServer, True)], indirect=["server"])
def test_a_tar_with_a_checksum_is_indexed_once_whatever_its_query(tmp_path: Path, server: str, again: bool) -> None:
    shards(tmp_path / "set", tars=1)
    for day in (1, 2):
        webdataset(f"{server}/set/000.tar?signature={day}", cache=tmp_path / "cache", **ONLY_DISK)
    assert len(list((tmp_path / "cache" / "shards").iterdir())) == 1 + again


@pytest.mark.parametrize("server", [PlainServer], indirect=True)
def test_a_server_without_ranges_is_refused(tmp_path: Path, server: str) -> None:
    shards(tmp_path / "set", tars=1)
    with pytest.raises(InputError, match=r"000.tar cannot be read|000.tar: \d+ bytes were requested"):
        values(webdataset(f"{server}/set/000.tar", **ONLY_DISK).train)


@pytest.mark.slow
def test_runs_on_shards(tmp_path: Path, pretrain: Command, capfd: pytest.CaptureFixture[str]) -> None:
    """Sources that need ids take the rows, and captions are for method=clip."""
    urls = shards(tmp_path / "set", tars=4, each=20)
    words = [word for word in TINY if not word.startswith(("batch_size", "encoder", "evaluation"))]
    words += ["data=webdataset", f"data.urls={urls}", "data.image_size=16", "data.memory_limit_gb=0", "batch_size=16"]
    words += ["encoder=small", "encoder.widths=[8,16,32]", "evaluation.per_class=[2]"]
    for run, method in (("moco", ["method=moco", "negatives.size=32"]), ("bank", ["method=instdisc"])):
        assert pretrain(*words, *method, f"hydra.run.dir={run}") == 0
        assert "linear_top1" in figures(run)
    clip = ["method=clip", "views=captions", "data.captions=true"]
    assert pretrain(*words, *clip, "hydra.run.dir=clip") == 0
    assert "image_to_text_recall1" in figures("clip")
    assert pretrain(*words, "method=clip", "hydra.run.dir=none") == 2
    assert "captions" in capfd.readouterr().err.splitlines()[-1]
    assert os.path.isfile("moco/views.png")


@pytest.mark.slow
def test_a_killed_run_ends_as_if_it_had_not_been(tmp_path: Path, pretrain: Command) -> None:
    urls = shards(tmp_path / "set", tars=4, each=60)
    words = [
        *TINY,
        "encoder=small",
        "data=webdataset",
        f"data.urls={urls}",
        "data.image_size=16",
        "data.memory_limit_gb=0",
    ]
    words += ["batch_size=16", "trainer.max_epochs=2", "trainer.log_every_n_steps=1", "checkpoints.every_n_steps=2"]

    def losses(run: str) -> dict[int, float]:
        return {row["step"]: row["train/loss"] for row in read_rows(Path(run, "metrics.jsonl")) if "train/loss" in row}

    script = Path(contrast.__file__).parents[1] / "scripts" / "pretrain.py"
    process = subprocess.Popen([sys.executable, str(script), *words, "hydra.run.dir=killed"])
    until = time.monotonic() + 300
    while not (Path("killed/metrics.jsonl").is_file() and max(losses("killed"), default=0) >= 5):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)
    process.kill()
    process.wait()
    before = losses("killed")
    assert max(before) < 25  # of 26 steps
    assert pretrain("resume=killed") == 0
    assert pretrain(*words, "hydra.run.dir=whole") == 0
    assert losses("killed") == pytest.approx(losses("whole"))


@pytest.mark.slow
def test_memory_does_not_grow_while_samples_are_read(tmp_path: Path) -> None:
    """benchmarks/loading.py --memory measures it for many samples."""
    files = [(f"{i:06d}.png", png(i % 256, 64)) for i in range(3000)]
    train = webdataset(write(tmp_path / "0.tar", files), **{**ONLY_DISK, "image_size": 64}).train
    batches = Batches(train, 100, seed=0)

    def megabytes() -> float:
        return int(re.findall(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[0]) / 1e3

    for _ in batches:
        pass
    before = megabytes()
    for _ in range(2):
        for _ in batches:
            pass
    assert megabytes() - before < 15  # the pixels of 6,000 images take 74 MB
