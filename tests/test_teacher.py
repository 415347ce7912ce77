"""Distillation: a frozen encoder's features are the keys; SEED and CRD."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from contrast.data.images.digits import digits
from contrast.data.images.image_set import Images
from contrast.encoders import conv_net, resnet
from contrast.encoders.normalize import Normalize
from contrast.encoders.pretrained import SOURCES, Weights
from contrast.errors import InputError
from contrast.evaluation.encoder import from_checkpoint
from contrast.heads import NCE, InfoNCE
from contrast.negatives import Bank, Queue
from contrast.training.teacher import FrozenTeacher

F, GENERATOR = 32, torch.Generator()  # of the run in `trained`
SMALL = {"_target_": "contrast.encoders.conv_net", "widths": [4, 6]}


def images(channels: int = 1) -> Images:
    pixels = torch.randint(256, (6, channels, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return Images(pixels, torch.zeros(6, dtype=torch.int64), ("a",))


def views(count: int, *sizes: int) -> list[Tensor]:
    return [torch.rand(3, 1, sizes[v % len(sizes)], sizes[v % len(sizes)]) for v in range(count)]


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


@pytest.fixture
def file(tmp_path: Path) -> tuple[Path, nn.Module]:
    """Plain weights, which do not say their architecture, and their encoder."""
    net = conv_net(in_channels=1, image_size=8, widths=[4, 6]).eval()
    torch.save(net.state_dict(), tmp_path / "plain.pt")
    return tmp_path / "plain.pt", net


def test_the_key_of_a_view_is_the_teachers_feature_of_it(trained: Path) -> None:
    teacher, seen = FrozenTeacher(images(), F, str(trained)), views(2, 8)
    own = from_checkpoint(torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)).eval()
    torch.testing.assert_close(own.normalize.mean.flatten(), digits().train.statistics()[0].float())  # not of `images`
    key = teacher.train()(seen, torch.zeros(2, 3, F, requires_grad=True), None, GENERATOR)
    torch.testing.assert_close(key, torch.stack([unit(own(view)) for view in seen]))
    assert not key.requires_grad
    assert not teacher.differentiable


def test_a_teacher_is_no_part_of_the_model(trained: Path) -> None:
    teacher = FrozenTeacher(images(), F, str(trained))
    assert list(teacher.parameters()) == []
    assert list(teacher.state_dict()) == ["digest"]
    (net,) = teacher.train().nets
    assert not any(part.training for part in net.modules())
    assert not any(parameter.requires_grad for parameter in net.parameters())


@pytest.mark.parametrize(
    ("queries", "keys", "count", "answers"),
    [(None, None, 3, [0, 1, 2]), (1, None, 3, [0]), (None, 2, 5, [0, 1, 0, 1, 0]), (None, 2, 1, [0])],
)
def test_which_view_the_teacher_sees(
    file: tuple[Path, nn.Module], queries: int | None, keys: int | None, count: int, answers: list[int]
) -> None:
    teacher = FrozenTeacher(images(), 6, str(file[0]), SMALL, num_queries=queries, num_keys=keys)
    seen = views(count, 8, 8, 4)
    key = teacher(seen, torch.zeros(len(answers), 3, 6), None, GENERATOR)
    expected = [unit(file[1](Normalize(*images().statistics())(seen[v]))) for v in answers]
    torch.testing.assert_close(key, torch.stack(expected))


def test_views_are_resized_for_the_teacher(file: tuple[Path, nn.Module]) -> None:
    teacher, sizes = FrozenTeacher(images(), 6, str(file[0]), SMALL, size=16), []
    teacher.nets[0].register_forward_hook(lambda _, inputs, __: sizes.append(inputs[0].shape[-1]))
    teacher(views(2, 8, 4), torch.zeros(2, 3, 6), None, GENERATOR)
    assert sizes == [16, 16]


@pytest.mark.parametrize("label", ["torchvision:resnet18", "torchvision:ResNet18_Weights.IMAGENET1K_V1"])
def test_a_name_of_torchvision_says_its_architecture(label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = resnet("resnet18", 3, stem="imagenet").eval()
    statistics = [0.4, 0.5, 0.6], [0.2, 0.2, 0.3]
    monkeypatch.setitem(SOURCES, "torchvision", lambda name: Weights(label, net.state_dict(), statistics))
    teacher, pixels = FrozenTeacher(images(3), 512, label), torch.rand(2, 3, 32, 32)
    key = teacher([pixels], torch.zeros(1, 2, 512), None, GENERATOR)
    torch.testing.assert_close(key[0], unit(net(Normalize(*statistics)(pixels))))


def test_what_cannot_work_is_refused(trained: Path, file: tuple[Path, nn.Module]) -> None:
    with pytest.raises(InputError, match=r"32 dimensions .* projections 16: projector\.out_features=32"):
        FrozenTeacher(images(), 16, str(trained))
    with pytest.raises(InputError, match="encoder="):
        FrozenTeacher(images(), 6, str(file[0]))
    with pytest.raises(InputError, match="nowhere"):
        FrozenTeacher(images(), 6, "nowhere")
    teacher = FrozenTeacher(images(), 6, str(file[0]), SMALL)
    teacher.plan(10)
    other = conv_net(in_channels=1, image_size=8, widths=[4, 6])
    torch.save(other.state_dict(), file[0])
    changed = FrozenTeacher(images(), 6, str(file[0]), SMALL)
    changed.load_state_dict(teacher.state_dict())  # a run that is resumed
    with pytest.raises(InputError, match="not those with which the run began"):
        changed.plan(10)


# --- methods: B students, teacher's features of D dimensions

B, D, N = 5, 4, 9


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def assert_same(loss: Tensor, expected: Tensor, *inputs: Tensor) -> None:
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)  # log q of the draws is float32
    for x in inputs:
        got, wanted = (torch.autograd.grad(y.sum(), x, retain_graph=True)[0] for y in (loss, expected))
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


def test_seed() -> None:
    """Fang et al. 2021: the teacher's own vector and the queue are the candidates of both softmaxes."""
    student, teacher, past = rows(B, D), rows(B, D, seed=1).detach(), rows(N, D, seed=2).detach()
    queue = Queue(N, D, teacher_temperature=0.01).double()
    queue.update(past[None], past[None], torch.arange(100, 100 + N))
    ((query, candidates),) = queue(student[None], teacher[None], torch.arange(B))
    losses, counted = InfoNCE(0.2).double()(query, candidates)
    expected = []
    for i in range(B):
        others = unit(torch.cat([teacher[i : i + 1], past]))  # [1 + N, D]
        of_teacher = [math.exp(float(unit(teacher[i]) @ d) / 0.01) for d in others]
        of_student = [(unit(student[i]) @ d / 0.2).exp() for d in others]
        p = [x / sum(of_teacher) for x in of_teacher]
        expected.append(-sum(p_j * (x / sum(of_student)).log() for p_j, x in zip(p, of_student, strict=True)))
    assert counted.all()
    assert_same(losses, torch.stack(expected), student)


class Fixed:
    """A sampler whose draws are known."""

    size = N

    def draw(self, shape: tuple[int, ...], generator: Any) -> Tensor:
        return torch.tensor([3, 0, 7, 3])

    def log_prob(self, ids: Tensor) -> Tensor:
        return torch.full(ids.shape, -math.log(N), dtype=torch.float64)


def test_crd() -> None:
    """Tian et al. 2020: h = exp(s) / (exp(s) + M / N); the bank holds the teacher's features."""
    student, teacher, ids = rows(1, B, D), rows(1, B, D, seed=1).detach(), torch.tensor([4, 1, 8, 3, 0])
    bank = Bank(N, D, Fixed(), draws=4, momentum=0.5, of_keys=True).double()  # type: ignore[arg-type]
    before = bank.vectors.clone()
    ((query, candidates),) = bank(student, teacher, ids)
    losses, _ = NCE(0.2).double()(query, candidates)
    expected = []
    for i in range(B):
        scores = [unit(student[0, i]) @ before[j] / 0.2 for j in (ids[i], 3, 0, 7, 3)]
        h = [s.exp() / (s.exp() + 4 / N) for s in scores]
        expected.append(-h[0].log() - sum((1 - x).log() for x in h[1:]))
    assert_same(losses, torch.stack(expected), student)
    bank.update(student.detach(), teacher, ids)
    torch.testing.assert_close(bank.vectors[ids], unit(0.5 * before[ids] + 0.5 * unit(teacher[0])))
    rest = [row for row in range(N) if row not in ids.tolist()]
    assert torch.equal(bank.vectors[rest], before[rest])
    with pytest.raises(InputError, match="key=teacher"):
        bank(student, None, ids)
