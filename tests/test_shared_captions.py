"""Rows that share an image or a caption, a locked encoder of images, and classes by their names."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from contrast.candidates import linked
from contrast.data.images.image_set import Batch, Images
from contrast.data.text.tokenizer import WordTokenizer
from contrast.encoders import conv_net, mlp, text_transformer
from contrast.encoders.normalize import Normalize
from contrast.errors import InputError
from contrast.evaluation.encoder import Towers
from contrast.evaluation.features import EvaluationData
from contrast.evaluation.zeroshot import zeroshot
from contrast.heads import NCE, InfoNCE
from contrast.keys import Second
from contrast.module import Contrastive
from contrast.negatives import Paired
from contrast.optim import warmup_cosine
from contrast.training.build import shared_numbers
from contrast.training.data import PretrainData
from contrast.views import SimCLRViews

DIM, LENGTH = 6, 3


def naive_groups(numbers: Tensor) -> list[int]:
    """Row by row: whoever shares a number takes the lower name, until nothing changes."""
    group = numbers[:, 0].tolist()
    for _ in range(len(group)):
        for i in range(len(group)):
            for j in range(len(group)):
                if (numbers[i] == numbers[j]).any() or numbers[i, 0] == numbers[j, 0]:
                    group[i] = group[j] = min(group[i], group[j])
    return group


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_linked_rows_are_one_group(columns: int) -> None:
    for seed in range(20):
        numbers = torch.randint(14, (12, columns), generator=torch.Generator().manual_seed(seed))
        assert linked(numbers).tolist() == naive_groups(numbers)
    assert linked(torch.empty(0, columns, dtype=torch.int64)).shape == (0,)


def captioned() -> Images:
    """Eight rows: image 0 has three captions; rows 4 and 5 share a caption; the image of row 6 is a copy of row 0's."""
    pixels = torch.randint(256, (8, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    pixels[1] = pixels[2] = pixels[6] = pixels[0]
    text = torch.tensor([[1, 0, 0], [2, 0, 0], [3, 0, 0], [4, 0, 0], [5, 1, 0], [5, 1, 0], [6, 0, 0], [7, 0, 0]])
    return Images(pixels, torch.arange(8) % 2, ("a", "b"), text)


SAME = [{0, 1, 2, 6}, {3}, {4, 5}, {7}]


def model(
    head: nn.Module, shared: Tensor | None, frozen: bool = False, same_label: Any = "negative", seed: int = 0
) -> Contrastive:
    torch.manual_seed(seed)
    encoder = conv_net(widths=[4, 8], in_channels=1, image_size=8, frozen=frozen)
    return Contrastive(
        normalize=Normalize([0.5], [0.3]),
        views=SimCLRViews(8, views=1),
        encoder=encoder,
        projector=mlp(encoder.num_features, DIM),
        negatives=Paired(reverse=True),
        head=head,
        optimizer=partial(torch.optim.AdamW, lr=1e-2),
        scheduler=warmup_cosine,
        key=Second(text_transformer(vocabulary=9, length=LENGTH, width=8, layers=1, heads=2), DIM),
        shared=shared,
        same_label=same_label,
    )


def test_which_rows_of_a_data_set_share_something() -> None:
    images, second = captioned(), Second(text_transformer(9, LENGTH, 8, 1, 2), DIM)
    groups = linked(shared_numbers(images, second))
    assert {frozenset(row for row in range(8) if groups[row] == group) for group in groups.tolist()} == set(
        map(frozenset, SAME)
    )
    alone = shared_numbers(images, nn.Identity())  # captions that no key is made of say nothing
    assert alone.shape == (8, 1)
    assert len(alone.unique()) == 5
    assert shared_numbers(Images(images.pixels, images.labels, images.classes), second) is None
    assert shared_numbers(images.select(torch.tensor([0, 3, 4])), second) is None


@pytest.mark.parametrize("sigmoid", [False, True])
def test_captions_of_one_image_do_not_push_each_other_apart(sigmoid: bool) -> None:
    """Radford et al. 2021 and Zhai et al. 2023 in loops, without the pairs that share an image or a caption."""
    head = NCE(0.5, bias=-1.0) if sigmoid else InfoNCE(0.5)
    images = captioned()
    net = model(head.double(), shared_numbers(images, Second(text_transformer(9, LENGTH, 8, 1, 2), DIM)))
    query, key = (torch.randn(1, 8, DIM, dtype=torch.float64, requires_grad=True) for _ in range(2))
    loss, _ = net.contrast(images.take(torch.arange(8)), query, key)
    rows = []
    for a, b in ((query[0], key[0]), (key[0], query[0])):
        for i in range(8):
            others = [j for j in range(8) if not any({i, j} <= same for same in SAME)]
            scores = [torch.cosine_similarity(a[i], b[j], dim=0) / 0.5 for j in [i, *others]]
            if sigmoid:
                scores = [s - 1 for s in scores]
                rows.append(-scores[0].sigmoid().log() - sum((-s).sigmoid().log() for s in scores[1:]))
            else:
                rows.append(-(scores[0].exp() / sum(s.exp() for s in scores)).log())
    expected = torch.stack(rows).mean()
    torch.testing.assert_close(loss, expected)
    for x in (query, key):
        got, wanted = (torch.autograd.grad(y, x, retain_graph=True)[0] for y in (loss, expected))
        torch.testing.assert_close(got, wanted)


def test_groups_of_labels_and_of_captions_are_one() -> None:
    def groups(same_label: str, shared: Tensor | None) -> Tensor | None:
        labels = torch.tensor([0, 1, 1, -1])
        batch = Batch(torch.empty(0), labels, torch.arange(4))
        return Contrastive.identities(SimpleNamespace(same_label=same_label, shared=shared, global_rank=0), batch)[1]  # type: ignore[arg-type]

    shared = torch.tensor([[0, 5], [1, 6], [2, 7], [3, 5]])
    assert groups("positive", shared) is None
    assert groups("negative", None) is None
    assert groups("negative", shared).tolist() == [0, 1, 2, 0]
    assert groups("ignored", None).tolist() == [0, 1, 1, -5]
    assert groups("ignored", shared).tolist() == [-5, 1, 1, -5]


# --- locked-image tuning


def fit(net: Contrastive, folder: Path, epochs: int = 2, **options: Any) -> None:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    run = pl.Trainer(accelerator="cpu", logger=False, max_epochs=epochs, default_root_dir=folder, **quiet, **options)
    run.fit(net, PretrainData(captioned(), 4))


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_a_frozen_encoder_stays_as_it_is(tmp_path: Path, micro_batch: int | None) -> None:
    net = model(InfoNCE(0.5), None, frozen=True)
    net.micro_batch = micro_batch
    before = {name: value.clone() for name, value in net.state_dict().items()}
    fit(net, tmp_path)
    assert net.training
    assert net.projector.training
    assert not any(part.training for part in net.encoder.modules())
    optimised = {id(p) for group in net.optimizers().param_groups for p in group["params"]}
    assert not optimised & {id(p) for p in net.encoder.parameters()}
    for name, value in net.state_dict().items():
        if name.startswith("encoder."):
            assert torch.equal(value, before[name]), name  # with the statistics of batch norm
    for name in ("projector.0.weight", "key.projector.weight", "key.encoder.token.weight"):
        assert not torch.equal(net.state_dict()[name], before[name]), name


# --- zero-shot

NAMES = ("zero", "one", "two", "three", "four", "five", "six")


def towers(tokenizer: WordTokenizer) -> Towers:
    torch.manual_seed(0)
    encoder = conv_net(widths=[4, 8], in_channels=1, image_size=8)
    text = text_transformer(vocabulary=tokenizer.size, length=4, width=8, layers=1, heads=2)
    nn.init.normal_(text.token.weight)
    return Towers(Normalize([0.5], [0.3]), encoder, mlp(encoder.num_features, DIM), Second(text, DIM)).eval()


def data() -> EvaluationData:
    tokenizer = WordTokenizer([*NAMES, "a", "digit"])
    pixels = torch.randint(256, (40, 1, 8, 8), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    images = Images(pixels, torch.arange(40) % 7, tuple("0123456"))
    text = {"tokenizer": tokenizer.facts(), "length": 4}
    return EvaluationData(towers(tokenizer), images, images, torch.device("cpu"), config={"text": text})


@torch.no_grad()
def test_zero_shot_is_the_nearest_name() -> None:
    found = data()
    net, tokenizer = found.encoder, WordTokenizer([*NAMES, "a", "digit"])
    vectors = []
    for name in NAMES:
        texts = net.text(tokenizer.encode([name, f"a digit {name}"], 4)).double()
        vectors.append(sum(text / text.norm() for text in texts) / 2)
    hits = {1: 0, 5: 0}
    for image, label in zip(found.test.pixels, found.test.labels.tolist(), strict=True):
        picture = net.image(image[None])[0].double()
        scores = torch.stack([torch.cosine_similarity(picture, vector, dim=0) for vector in vectors])
        for k in hits:
            hits[k] += label in scores.topk(k).indices.tolist()
    scores = zeroshot(found, ["{}", "a digit {}"], NAMES)
    assert scores == {"top1": hits[1] / 40, "top5": hits[5] / 40}
    assert 0 < hits[1] < hits[5] < 40


def test_zero_shot_reads_names_from_a_file_and_refuses_what_cannot_work(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("\n".join(NAMES) + "\n")
    found = data()
    assert zeroshot(found, ["{}"], str(tmp_path / "names.txt")) == zeroshot(found, ["{}"], NAMES)
    (tmp_path / "spaces.txt").write_text("\n".join(f" {name} \r" for name in NAMES) + "\n\n")
    assert zeroshot(found, ["{}"], str(tmp_path / "spaces.txt")) == zeroshot(found, ["{}"], NAMES)
    with pytest.raises(InputError, match=r"protocol\.classes=absent\.txt cannot be read"):
        zeroshot(found, ["{}"], "absent.txt")
    with pytest.raises(InputError, match="'0' and '1' are the same tokens"):
        zeroshot(found, ["{}"])  # the names of the classes, which no caption has
    with pytest.raises(InputError, match="2 names for the 7 classes"):
        zeroshot(found, ["{}"], ["a", "b"])
    with pytest.raises(InputError, match="templates"):
        zeroshot(found, ["a digit"], NAMES)
