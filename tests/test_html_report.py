"""report.html: what is on the page of a run and of a sweep, as the page holds it and as a browser shows it."""

import base64
import io
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import CHROMIUM, browser
from conftest import FEW, TINY, Command, called, figures
from PIL import Image
from torch import nn

import contrast
from contrast.cli import commands
from contrast.data.images.digits import digits
from contrast.data.images.image_set import Images, Splits
from contrast.encoders.normalize import Normalize
from contrast.evaluation.by_class import per_class
from contrast.evaluation.encoder import Frozen
from contrast.evaluation.report import labelled
from contrast.report.maps import maps
from contrast.report.page import Page, write_page
from contrast.report.pictures import sprite
from contrast.report.probe import Predictions, worst
from contrast.report.run_page import RunReport

CPU = ("trainer.accelerator=cpu",)


def read(path: Path) -> dict[str, Any]:
    """What is on a page, its sections by their titles."""
    text = path.read_text(encoding="utf-8")
    (found,) = text.split('id="data">')[1:]
    page: dict[str, Any] = json.loads(found.split("</script>")[0])
    return {**page, **{section["title"]: section for section in page["sections"]}}


def counted(page: dict[str, Any]) -> tuple[int, int]:
    """Test images on the diagonal of the confusion, and all."""
    pairs = page["Confusion"]["pairs"]
    return sum(n for i, j, n in pairs if i == j), sum(n for *_, n in pairs)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all metrics that wrote its report."""
    folder = tmp_path_factory.mktemp("reported") / "run"
    handlers = list(logging.getLogger().handlers)
    with pytest.MonkeyPatch.context() as patch:
        words = [*TINY, *FEW, "report=true", f"hydra.run.dir={folder}"]
        assert called(commands.pretrain, patch, *words) == 0
    logging.getLogger().handlers[:] = handlers
    return folder


@pytest.fixture
def report(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Command]:
    """`contrast-report` with these words in this process; returns its exit status."""
    return lambda *words: called(commands.report, monkeypatch, *words, *CPU)  # type: ignore[return-value]


def test_the_page_holds_what_the_run_measured(run: Path) -> None:
    page, metrics = read(run / "report.html"), figures(run)
    assert page["title"] == "simclr on digits, encoder conv_net"
    heads, rows = page["Metrics"]["heads"], {row[0]: row[1:] for row in page["Metrics"]["rows"]}
    assert heads == ["", "raw pixels", "untrained", "trained"]
    for prefix, cell in zip(("pixels_", "untrained_", ""), rows["linear probe top-1"], strict=True):
        assert cell.startswith(f"{metrics[f'{prefix}linear_top1']:.4f}\n")
    right, count = counted(page)
    assert count == 100
    assert right / 100 == pytest.approx(metrics["linear_top1"])  # the probe is the one that was measured
    assert len(page["Worst mistakes"]["images"]) == min(24, 100 - right)
    assert page["All metrics"]["values"] == metrics
    titles = [panel["title"] for panel in page["Training"]["panels"]]
    assert {"Loss", "Effective rank"} <= set(titles)
    assert page["Views"]["uri"].startswith("data:image/png")
    assert "batch_size: 64" in page["Configuration"]["text"]
    assert page["Configuration"]["command"].startswith("contrast-pretrain batch_size=64")


def test_neighbours_and_mistakes_are_those_of_a_loop(run: Path) -> None:
    page = read(run / "report.html")
    encoder, items = contrast.load(run), page["items"]
    rows = torch.tensor([int(name.removeprefix("row ")) for name in items["name"]])
    test = digits().test
    assert test is not None
    few = labelled(test, 100)
    assert items["label"] == few.labels[rows].tolist()
    vectors = encoder.embed(few.pixels[rows]).double()  # type: ignore[union-attr]
    near, cosines = page["Nearest neighbours"]["rows"], page["Nearest neighbours"]["cosines"]
    for i in range(0, 100, 7):
        others = [j for j in range(100) if j != i]
        expected = sorted((-torch.cosine_similarity(vectors[i], vectors[j], dim=0).item(), j) for j in others)[:8]
        assert cosines[i] == pytest.approx([-value for value, _ in expected], abs=2e-4)
        assert near[i] == [j for _, j in expected]
    wrong = page["Worst mistakes"]["images"]
    assert all(items["label"][i] != items["predicted"][i] for i in wrong)
    sure = [items["probability"][i] for i in wrong]
    assert sure == sorted(sure, reverse=True)
    assert min(sure) >= max(
        (items["probability"][i] for i in range(100) if i not in wrong and items["label"][i] != items["predicted"][i]),
        default=0.0,
    )


def test_metrics_of_classes_are_counted() -> None:
    found = Predictions(
        torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([0, 1, 1, 2, 2, 0]), torch.tensor([5, 9, 6, 7, 8, 6]) / 10
    )
    images, precision, recall, f1 = (values.tolist() for values in per_class(found.classes, found.labels, 4))
    assert images == [2, 1, 3, 0]
    assert precision == pytest.approx([1 / 2, 1 / 2, 1, 0])
    assert recall == pytest.approx([1 / 2, 1, 2 / 3, 0])
    assert f1 == pytest.approx([1 / 2, 2 / 3, 4 / 5, 0])
    assert worst(found, 5).tolist() == [1, 5]
    assert worst(found, 1).tolist() == [1]


def test_one_file_without_network_and_without_code_from_names(tmp_path: Path) -> None:
    name = "</script><img src=x onerror=alert(1)>{{data}}"
    page: Page = {
        "title": name,
        "subtitle": "",
        "sections": [None, {"kind": "facts", "title": name, "facts": [["loss", float("nan")]]}],
    }
    write_page(tmp_path / "page.html", page)
    text = (tmp_path / "page.html").read_text()
    assert "<img src=x" not in text
    assert read(tmp_path / "page.html")["title"] == name
    assert '["loss",null]' in text  # JSON has no NaN
    outside = text.replace("http://www.w3.org/2000/svg", "")  # the name of a language
    assert "http" not in outside.replace("http-equiv", "")
    assert "default-src 'none'" in text


@pytest.mark.parametrize(("side", "channels"), [(8, 1), (40, 3), (130, 4)])
def test_tiles_show_their_images(side: int, channels: int) -> None:
    level = torch.arange(7) * 40
    pixels = level[:, None, None, None].expand(-1, channels, side, side).to(torch.uint8)
    images = Images(pixels.contiguous(), torch.full((7,), -1), ())
    made = sprite(images, torch.tensor([6, 0, 3, 1, 2]))
    assert made["width"] == made["height"] == {8: 32, 40: 40, 130: 96}[side]
    content = base64.b64decode(str(made["uri"]).partition(",")[2])
    sheet = np.asarray(Image.open(io.BytesIO(content)).convert("L"))
    tile, columns = int(str(made["width"])), int(str(made["columns"]))
    for place, row in enumerate([6, 0, 3, 1, 2]):
        top, left = place // columns * tile, place % columns * tile
        assert abs(sheet[top : top + tile, left : left + tile].mean() - 40 * row) < 3


def test_maps_keep_groups_apart_and_are_repeatable() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = 4 * torch.eye(3, 20)
    groups = torch.arange(90) % 3
    features = centres[groups] + 0.1 * torch.randn(90, 20, generator=generator)
    made = maps(features)
    assert {"PCA", "t-SNE"} <= made.keys()
    for points in map(np.array, made.values()):
        assert points.shape == (90, 2)
        assert 0 <= points.min() < points.max() <= 1
        distance = np.linalg.norm(points[:, None] - points[None], axis=2) + np.eye(90) * 9
        assert (groups[distance.argmin(axis=1)] == groups).all()
    assert maps(features)["t-SNE"] == made["t-SNE"]
    assert maps(features[:4]) == {}
    assert set(maps(torch.ones(20, 1))) == set(made)  # a collapsed encoder


def test_a_sample_says_that_it_is_one(run: Path, report: Command, capfd: pytest.CaptureFixture[str]) -> None:
    before = (run / "report.html").read_bytes()
    assert report(f"checkpoint={run}", "out=few.html", "images=20") == 0
    assert "few.html" in capfd.readouterr().out
    page = read(Path("few.html"))
    assert page["Map of the embeddings"]["note"] == "A sample of 20 of the 100 test images, drawn with seed 0."
    wrong = page["Worst mistakes"]["images"]
    assert len(page["items"]["name"]) == len(
        {*range(20), *wrong}
    )  # mistakes are shown even if the sample left them out
    assert len(page["Map of the embeddings"]["points"]["PCA"]) == 20
    assert counted(page)[1] == 100
    assert (run / "report.html").read_bytes() == before


def test_a_run_without_metrics_is_measured(trained: Path, report: Command) -> None:
    assert report(f"checkpoint={trained}", "out=page.html", "images=20") == 0
    page = read(Path("page.html"))
    assert page["Metrics"]["heads"] == ["", "trained"]
    right, count = counted(page)
    assert count == 360
    assert right / count == pytest.approx(page["All metrics"]["values"]["linear_top1"])


def test_unlabelled_images_have_a_map_and_neighbours(tmp_path: Path) -> None:
    pixels = torch.randint(0, 256, (30, 3, 6, 9), dtype=torch.uint8)
    images = Images(pixels, torch.full((30,), -1), ())
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(162, 8))
    encoder.num_features = 8  # type: ignore[assignment]
    frozen = Frozen(Normalize(*images.statistics()), encoder)
    urls = ["https://me:s3cret@host/0.tar?Signature=s3cret", "s3://me:s3cret@host/1.tar"]
    config = {"images": {"train": 30}, "name": "mine", "data": {"_target_": "m.webdataset", "urls": urls}}
    made = RunReport(frozen.eval(), Splits("flat", images, None), config, {}, None, torch.device("cpu"), most=25)
    made.write(tmp_path / "page.html")
    assert "s3cret" not in (tmp_path / "page.html").read_text()
    page = read(tmp_path / "page.html")
    assert "https://host/0.tar\n" in page["Configuration"]["text"]
    assert [section["title"] for section in page["sections"]] == [
        *("Summary", "Map of the embeddings", "Nearest neighbours", "Configuration", "All metrics"),
    ]
    assert "25 of the 30 training images" in page["Map of the embeddings"]["note"]
    assert dict(page["Summary"]["facts"])["effective rank"].endswith("of at most 8")
    assert "label" not in page["items"]
    assert (page["sprite"]["width"], page["sprite"]["height"]) == (54, 36)  # the whole image, not its centre


def test_captions(report: Command, pretrain: Command) -> None:
    few = ["evaluation.max_train=100", "trainer.limit_train_batches=2", "callbacks=none"]
    assert pretrain("method=clip", *TINY, *few, "hydra.run.dir=run") == 0
    assert report("checkpoint=run", "images=30") == 0
    page = read(Path("run/report.html"))
    shown, captions = page["Captions for images"], page["items"]["caption"]
    assert set(shown["texts"]) == set(captions[:30])
    assert [shown["texts"][own] for own in shown["own"]] == [captions[image] for image in shown["queries"]]
    encoder = contrast.load("run")
    test = digits().test
    assert isinstance(test, Images)
    rows = [int(page["items"]["name"][image].removeprefix("row ")) for image in shown["queries"]]
    cosines = encoder.encode_image(test.pixels[rows]) @ encoder.encode_text(shown["texts"]).T  # type: ignore[union-attr]
    best = cosines.topk(3)
    assert shown["found"] == best.indices.tolist()
    assert np.allclose(shown["cosines"], best.values, atol=1e-4)


@pytest.mark.slow
def test_a_sweep_has_its_table_and_the_pages_of_its_jobs(pretrain: Command, report: Command) -> None:
    words = [*TINY, *FEW, "trainer.limit_train_batches=2", "callbacks=none", "evaluation.untrained=false"]
    words += ["evaluation.pixels=false", "hydra.sweep.dir=sweep", "report=true"]
    assert pretrain("-m", *words, "head.temperature=0.1,0.5") == 0
    page = read(Path("sweep/report.html"))
    assert page["title"] == "Sweep of head.temperature: simclr on digits, encoder conv_net"
    assert [row[0] for row in page["Results"]["rows"]] == ["0.1", "0.5"]
    for row, link in zip(page["Jobs"]["rows"], page["Jobs"]["links"], strict=True):
        assert link == f"./{row[0]}/report.html"
        assert "Metrics" in read(Path("sweep") / link)
        assert row[2] == pytest.approx(figures(Path("sweep", row[0]))["linear_val_top1"])
    lines = [line["label"] for line in page["Training"]["panels"][0]["lines"]]
    assert lines == ["head.temperature=0.1", "head.temperature=0.5"]
    assert report("checkpoint=sweep", "out=other/page.html") == 0
    assert read(Path("other/page.html"))["Jobs"]["links"] == ["../sweep/0/report.html", "../sweep/1/report.html"]


def test_the_page_of_a_sweep_is_that_of_its_folders(run: Path, report: Command) -> None:
    for number, (rate, value) in enumerate((("0.1", 0.5), ("0.1", 0.7), ("0.3", 0.9))):
        folder = Path("sweep", str(number))
        folder.mkdir(parents=True)
        for name in ("config.yaml", "metrics.jsonl"):
            shutil.copy(run / name, folder / name)
        (folder / "metrics.json").write_text(json.dumps({"linear_val_top1": value, "linear_top1": value / 2}))
        (folder / "overrides.yaml").write_text(f"- optimizer.lr={rate}\n- seed={number}\n")
    Path("sweep/2/report.html").write_text("")
    assert report("checkpoint=sweep", "out=page.html") == 2  # no sweep.csv: it has not ended
    Path("sweep/sweep.csv").write_text("")
    assert report("checkpoint=sweep") == 0
    page = read(Path("sweep/report.html"))
    assert page["title"] == "Sweep of optimizer.lr, seed: simclr on digits, encoder conv_net"
    assert page["Results"]["heads"] == ["optimizer.lr", "linear_val_top1", "linear_top1", "runs"]
    assert [[row[0], row[1][:6], row[-1]] for row in page["Results"]["rows"]] == [
        ["0.1", "0.6000", "2"],
        ["0.3", "0.9000", "1"],
    ]
    assert page["Jobs"]["links"] == [None, None, "./2/report.html"]
    assert page["Training"]["panels"][0]["lines"][0]["label"] == "optimizer.lr=0.1 seed=0"


def test_an_error_in_the_report_does_not_fail_the_run(
    pretrain: Command, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(self: RunReport) -> None:
        raise RuntimeError("no room")

    monkeypatch.setattr(RunReport, "page", fail)
    assert pretrain(*TINY, "debug=quick", "evaluation.enabled=false", "report=true", "hydra.run.dir=run") == 0
    assert "report.html is not written: no room; contrast-report checkpoint=" in capfd.readouterr().out
    assert figures("run")["loss"] > 0


def test_what_has_no_report_is_named(
    trained: Path, report: Command, pretrain: Command, evaluate: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for i in range(80):
        Path("data").mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(f"data/{i}.png")
    words = [
        "data=folder",
        "encoder=small",
        "projector=small",
        "data.root=data",
        "data.channels=1",
        "trainer.limit_train_batches=1",
        "hydra.run.dir=run",
    ]
    assert pretrain(*TINY, *words, "callbacks=none") == 0
    shutil.move("data", "moved")
    capfd.readouterr()
    for command, word in ((report, "checkpoint=run"), (evaluate, "checkpoint=run"), (pretrain, "resume=run")):
        longer = ["trainer.max_epochs=9"] if command is pretrain else []
        assert command(word, *longer) == 2
        line = capfd.readouterr().err.splitlines()[-1]
        assert line.startswith("error: data folder ")
        assert "does not exist; data.root=FOLDER says where the images of" in line
    assert evaluate("checkpoint=run", "protocol=knn", "data.root=moved", CPU[0]) == 2
    assert "moved has no test set, or no labels of two classes" in capfd.readouterr().err
    assert not Path("run/report.html").exists()
    assert report("checkpoint=run", "data.root=moved") == 0
    assert read(Path("run/report.html"))["title"].endswith("on folder moved, encoder conv_net")
    shutil.copy(trained / "checkpoints" / "last.ckpt", "alone.ckpt")
    assert report("checkpoint=alone.ckpt") == 2
    assert "give out=report.html" in capfd.readouterr().err
    assert report("checkpoint=absent") == 2
    assert "no run, sweep or checkpoint at absent" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_shows_the_page(run: Path, tmp_path: Path) -> None:
    with browser() as tab:
        for width in (1400, 400):
            tab.size(width, 900)
            tab.open(run / "report.html")
            assert tab.value("document.documentElement.scrollWidth") <= width
            assert tab.value("document.querySelectorAll('section').length") >= 10
            tab.value("document.querySelector('canvas').scrollIntoView({block: 'center'})")
            place = "document.querySelector('canvas').getBoundingClientRect()"
            box = [tab.value(f"{place}.{name}") for name in ("x", "y", "width", "height")]
            point = read(run / "report.html")["Map of the embeddings"]["points"]["t-SNE"][3]
            side = min(box[2], box[3]) - 42  # without the border
            x, y = box[0] + box[2] / 2 + (point[0] - 0.5) * side, box[1] + box[3] / 2 - (point[1] - 0.5) * side
            tab.mouse("mouseMoved", x, y)
            assert not tab.value("document.getElementById('tip').hidden")
            assert "row " in tab.value("document.getElementById('tip').textContent")
            thumb = "getComputedStyle(document.querySelector('#tip .thumb'))"
            assert tab.value(f"{thumb}.backgroundImage").startswith('url("data:image/jpeg;base64,')
            assert tab.value(f"parseFloat({thumb}.width)") > 50
            before = tab.value("document.querySelector('.row').textContent")
            tab.mouse("mousePressed", x, y)
            tab.mouse("mouseReleased", x, y)
            assert tab.value("document.querySelectorAll('.row figure').length") == 10 * 9
            assert tab.value("document.querySelector('.row').textContent") != before
            tab.value("[...document.querySelectorAll('.bar button')].forEach((button) => button.click())")
            tab.value("[...document.querySelectorAll('th')].forEach((head) => head.click())")
            tab.mouse("mouseMoved", 1, 1)
            assert tab.value("document.getElementById('tip').hidden")
        assert tab.problems == []
        assert {url.partition(":")[0] for url in tab.requests} <= {"file", "data"}
