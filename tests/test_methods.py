"""Methods from the command line: captions to retrieval, labels at the door."""

from pathlib import Path

import pytest
from conftest import FEW, TINY, Command, figures
from PIL import Image

CPU = "trainer.accelerator=cpu"
RECALLS = {f"{way}_recall{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)}


@pytest.mark.slow
def test_clip_from_captions_to_retrieval(
    pretrain: Command, evaluate: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["method=clip", *TINY, *FEW, "trainer.max_epochs=10", "optimizer.lr=3e-3", "hydra.run.dir=run"]
    assert pretrain(*words) == 0
    told = figures("run")
    assert set(told) > RECALLS
    assert "captions for images             recall@1 " in capfd.readouterr().out
    assert told["image_to_text_recall10"] == 1  # there are ten captions
    assert told["image_to_text_recall1"] > 0.3  # chance is a tenth
    assert evaluate("checkpoint=run", "protocol=retrieval", CPU, "hydra.run.dir=again") == 0
    assert figures("again") == {name: told[name] for name in RECALLS}
    assert evaluate("checkpoint=run", "protocol=knn", CPU, "hydra.run.dir=knn") == 0
    assert figures("knn")["top1"] > 0.2


def test_retrieval_needs_an_encoder_of_captions(
    evaluate: Command, trained: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [f"checkpoint={trained}", "protocol=retrieval", "data=digits_words", CPU]
    assert evaluate(*words) == 2
    assert "retrieval of captions needs a checkpoint with an encoder of captions" in capfd.readouterr().err


def test_your_own_captions_are_retrieved_with_the_vocabulary_of_the_checkpoint(
    pretrain: Command, evaluate: Command, workplace: Path
) -> None:
    for i in range(12):
        Image.new("L", (8, 8), color=20 * i).save(f"{i}.png")
    colours = ["black", "grey", "white"]
    Path("captions.csv").write_text("path,caption\n" + "".join(f"{i}.png,{colours[i // 4]}\n" for i in range(12)))
    data = ["data=captions", "encoder=small", "data.file=captions.csv", "data.channels=1", "data.length=4"]
    few = ["batch_size=4", "key.encoder.width=16", "evaluation.enabled=true", "hydra.run.dir=run"]
    assert pretrain("method=clip", *data, *TINY, *few, "data.test_fraction=0.25") == 0
    assert set(figures("run")) > RECALLS
    # by itself another table has another vocabulary
    Path("others.csv").write_text("path,caption\n11.png,white as snow\n0.png,black\n")
    other = ["data=captions", "data.file=captions.csv", "data.test_file=others.csv", "data.channels=1"]
    Path("captions.csv").write_text("path,caption\n5.png,snow\n6.png,grey\n")
    assert evaluate("checkpoint=run", "protocol=retrieval", *other, CPU, "hydra.run.dir=again") == 0
    assert set(figures("again")) == RECALLS


def test_labels_are_asked_for_at_the_door(
    pretrain: Command, workplace: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def refused(*words: str) -> str:
        assert pretrain(*words, *TINY, "hydra.run.dir=run") == 2
        assert not Path("run/metrics.jsonl").exists()
        return capfd.readouterr().err

    assert "Table holds classes: it needs same_label=positive, not negative" in refused("output=full_softmax")
    assert "same_label=both: should be 'negative', 'positive' or 'ignored'" in refused("same_label=both")
    for i in range(64):
        Image.new("L", (8, 8), color=i).save(f"{i}.png")
    flat = ["data=folder", "encoder=small", "data.root=.", "data.channels=1", "data.test_fraction=0"]
    assert "same_label=positive needs labels, and none of the 64 images has one" in refused("method=supcon", *flat)
    assert "needs captions, and this data set has none" in refused("method=clip", "data=digits")


def test_a_collapse_is_named_once(pretrain: Command, capfd: pytest.CaptureFixture[str]) -> None:
    rank = "callbacks.collapse.min_rank=1000"  # which every encoder is below
    assert pretrain("method=byol", *TINY, rank, "evaluation.enabled=false", "trainer.log_every_n_steps=1") == 0
    assert capfd.readouterr().out.count("the projections collapse, with an effective rank of") == 1
