"""Key encoders: who answers whom, and a copy that follows the trained encoder as its equation says."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from contrast.data.images.image_set import Batch
from contrast.encoders.normalize import Normalize
from contrast.errors import InputError
from contrast.keys import Momentum, Second, Shared

GENERATOR = torch.Generator()


class Scale(nn.Module):
    """Pixels times a parameter, flattened: a net whose output says what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.scale * pixels.flatten(1)


class Tied(nn.Module):
    """The same weights under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("mean", torch.tensor(0.5))


def normal_net() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.BatchNorm1d(5))


def momentum(encoder: nn.Module, projector: nn.Module | None = None, **kwargs: Any) -> Momentum:
    return Momentum(Normalize([0.0], [1.0]), encoder, projector or nn.Identity(), **kwargs)


def views(count: int, images: int = 3, sizes: tuple[int, ...] = (2,)) -> list[Tensor]:
    """View v is full of v + 1, with the number of the image in its corner."""
    made = []
    for v in range(count):
        view = torch.full((images, 1, sizes[v % len(sizes)], sizes[v % len(sizes)]), v + 1.0)
        view[:, 0, 0, 0] += 10 * torch.arange(images)
        made.append(view)
    return made


def randomise(*parts: nn.Module) -> None:
    """Every parameter and float buffer is another; whole numbers go up."""
    with torch.no_grad():
        for part in parts:
            for value in [*part.parameters(), *part.buffers()]:
                if value.is_floating_point():
                    value.add_(torch.randn_like(value))
                else:
                    value += 7


# --- the encoder itself


@pytest.mark.parametrize("num_queries", [2, 3, 5])
def test_view_v_is_answered_by_view_v_plus_1_and_the_last_by_the_first(num_queries: int) -> None:
    projection = torch.randn(num_queries, 3, 4, requires_grad=True)
    key = Shared()(views(num_queries), projection, None, GENERATOR)
    for v in range(num_queries):
        assert torch.equal(key[v], projection[(v + 1) % num_queries])
    (gradient,) = torch.autograd.grad(key[0].sum(), projection)
    assert [g.abs().max().item() for g in gradient] == [0, 1] + [0] * (num_queries - 2)  # the answer is trained too


def test_nothing_answers_a_single_view() -> None:
    assert Shared()(views(1), torch.randn(1, 3, 4), None, GENERATOR) is None
    assert Shared(num_queries=1)(views(2), torch.randn(1, 3, 4), None, GENERATOR) is None


def test_the_encoder_itself_has_no_state() -> None:
    assert Shared(2).state_dict() == {}
    Shared().plan(10)
    Shared().advance(nn.Identity(), nn.Identity())


# --- momentum


@pytest.mark.parametrize(
    ("num_queries", "num_keys", "answers"),
    [(1, 2, [1]), (2, 2, [1, 0]), (5, 2, [1, 0, 1, 0, 1]), (4, 3, [1, 2, 0, 1]), (1, 3, [1])],
)
def test_which_view_answers(num_queries: int, num_keys: int, answers: list[int]) -> None:
    key = momentum(Scale(), num_queries=num_queries, num_keys=num_keys)
    seen = views(max(num_queries, num_keys))
    made = key(seen, torch.zeros(num_queries, 3, 4), None, GENERATOR)
    assert made.shape == (num_queries, 3, 4)
    for row, v in zip(made, answers, strict=True):
        assert torch.equal(row, seen[v].flatten(1))


def test_of_multi_crop_only_the_answering_views_are_encoded_once_each() -> None:
    encoder, passes = Scale(), []
    key = momentum(encoder, num_keys=2)
    key.encoder.register_forward_hook(lambda _, inputs, __: passes.append(inputs[0].shape[-1]))
    key(views(6, sizes=(4, 4, 2, 2, 2, 2)), torch.zeros(6, 3, 4), None, GENERATOR)
    assert passes == [4, 4]


def test_the_copy_starts_equal_and_is_apart() -> None:
    normalize, encoder, projector = Normalize([0.3], [0.2]), normal_net(), nn.Linear(5, 2)
    key = Momentum(normalize, encoder, projector)
    trained = {"normalize": normalize, "encoder": encoder, "projector": projector}
    for name, part in trained.items():
        for theirs, ours in zip(part.state_dict().values(), getattr(key, name).state_dict().values(), strict=True):
            assert torch.equal(theirs, ours)
            assert theirs.data_ptr() != ours.data_ptr()
    pixels = torch.rand(3, 1, 2, 2)
    expected = projector(encoder(normalize(pixels)))
    assert torch.equal(key([pixels, pixels], torch.zeros(1, 3, 2), None, GENERATOR)[0], expected)


def test_no_gradient_reaches_the_copy() -> None:
    encoder = normal_net()
    key = momentum(encoder)
    assert all(p.requires_grad for p in encoder.parameters())
    assert not any(p.requires_grad for p in key.parameters())
    made = key([view.requires_grad_() for view in views(2)], torch.zeros(2, 3, 5), None, GENERATOR)
    assert not made.requires_grad


@pytest.mark.parametrize("m", [0.0, 0.5, 0.99, 1.0])
def test_the_copy_follows_parameters_and_float_buffers(m: float) -> None:
    """He et al. 2020, eq. 2, step after step; whole numbers are copied."""
    torch.manual_seed(0)
    encoder, projector = normal_net().double(), nn.Sequential(nn.Linear(5, 2), nn.BatchNorm1d(2)).double()
    key = momentum(encoder, projector, momentum=m).double()
    expected = [copy.deepcopy(part.state_dict()) for part in (encoder, projector)]
    for _ in range(3):
        randomise(encoder, projector)
        before = [copy.deepcopy(part.state_dict()) for part in (encoder, projector)]
        key.advance(encoder, projector)
        for part, trained in zip(expected, before, strict=True):
            for name, value in trained.items():
                part[name] = m * part[name] + (1 - m) * value if value.is_floating_point() else value
        for part, state in zip((key.encoder, key.projector), expected, strict=True):
            for name, value in state.items():
                torch.testing.assert_close(part.state_dict()[name], value, rtol=1e-6, atol=1e-7)
        for part, trained in zip((encoder, projector), before, strict=True):  # which only looks on
            assert all(torch.equal(part.state_dict()[name], value) for name, value in trained.items())
    assert key.encoder[2].num_batches_tracked == 21


def test_weights_under_two_names_are_moved_once() -> None:
    encoder = Tied()
    key = momentum(encoder, momentum=0.75)
    start = encoder.first.weight.detach().clone()
    randomise(encoder)
    key.advance(encoder, nn.Identity())
    expected = 0.75 * start + 0.25 * encoder.first.weight
    torch.testing.assert_close(key.encoder.first.weight.data, expected.detach())
    assert key.encoder.first.weight is key.encoder.second.weight
    assert key.encoder.count == encoder.count


def test_the_momentum_rises_along_half_a_cosine() -> None:
    """Grill et al. 2020, section 3.2: 1 - (1 - m) (cos(pi k / K) + 1) / 2, up to 1."""
    encoder = Scale()
    key = momentum(encoder, momentum=0.9, final=1.0)
    key.plan(8)
    for k in range(12):
        expected = 1 - (1 - 0.9) * (math.cos(math.pi * min(k, 8) / 8) + 1) / 2
        assert key.current().item() == pytest.approx(expected, rel=1e-6)
        key.advance(encoder, nn.Identity())
    less = momentum(encoder, momentum=0.9, final=0.98)
    less.plan(2)
    found = []
    for _ in range(3):
        found.append(less.current().item())
        less.advance(encoder, nn.Identity())
    assert found == pytest.approx([0.9, 0.94, 0.98])


def test_a_step_uses_the_momentum_of_that_step() -> None:
    encoder = Scale()
    key = momentum(encoder, momentum=0.0, final=1.0)
    key.plan(2)
    expected = 1.0
    for value, m in ((3.0, 0.0), (5.0, 0.5), (7.0, 1.0)):
        encoder.scale.data.fill_(value)
        key.advance(encoder, nn.Identity())
        expected = m * expected + (1 - m) * value
        assert key.encoder.scale.item() == pytest.approx(expected)


def test_without_final_the_momentum_is_constant() -> None:
    key = momentum(Scale(), momentum=0.7)
    key.plan(2)
    for _ in range(3):
        assert key.current().item() == pytest.approx(0.7)
        key.advance(Scale(), nn.Identity())


def test_all_of_the_copy_is_in_the_state_dict() -> None:
    encoder = normal_net()
    one, other = (momentum(encoder, momentum=0.5, final=1.0) for _ in range(2))
    one.plan(4)
    for _ in range(3):
        randomise(encoder)
        one.advance(encoder, nn.Identity())
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    assert other.current() == one.current()
    randomise(encoder)
    for key in (one, other):
        key.advance(encoder, nn.Identity())
    for name, value in one.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def test_one_process_has_nothing_to_shuffle() -> None:
    encoder = normal_net()
    plain, shuffled = momentum(encoder), momentum(encoder, shuffle_bn=True)
    seen = views(2)
    keys = [key(seen, torch.zeros(2, 3, 5), None, torch.Generator().manual_seed(0)) for key in (plain, shuffled)]
    assert torch.equal(*keys)


# --- a second encoder


class Words(nn.Module):
    num_features = 6

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 6)

    def forward(self, text: Tensor) -> Tensor:
        return self.table(text).sum(dim=1)  # [B, L] -> [B, F]


def test_captions_answer_the_first_view() -> None:
    key = Second(Words(), 4)
    text = torch.tensor([[1, 2, 0], [3, 3, 8]])
    batch = Batch(torch.zeros(2, 1, 2, 2), torch.zeros(2).long(), torch.arange(2), text)
    made = key(views(1, 2), torch.zeros(1, 2, 4), batch, GENERATOR)
    assert key.num_queries == 1
    assert made.shape == (1, 2, 4)
    assert torch.equal(made[0], key.projector(key.encoder.table(text).sum(dim=1)))
    assert torch.equal(key.embed(text), made[0])
    made.sum().backward()
    assert all(p.grad is not None for p in key.parameters())


# --- errors


def test_errors_carry_the_numbers() -> None:
    for m, final in ((-0.1, None), (1.1, None), (0.9, 0.8), (0.9, 1.2)):
        with pytest.raises(InputError, match=f"0 <= momentum <= final <= 1, got {m} and {final}"):
            momentum(Scale(), momentum=m, final=final)
    with pytest.raises(InputError, match="at least 2 views must be keys, got num_keys=1"):
        momentum(Scale(), num_keys=1)
    with pytest.raises(InputError, match="2 views must be keys, but there are 1 views"):
        momentum(Scale())(views(1), torch.zeros(1, 3, 4), None, GENERATOR)
    for num_queries in (0, -1):
        with pytest.raises(InputError, match=f"at least 1 view must be a query, got num_queries={num_queries}"):
            Shared(num_queries)
        with pytest.raises(InputError, match=f"at least 1 view must be a query, got num_queries={num_queries}"):
            momentum(Scale(), num_queries=num_queries)
    batch = Batch(torch.zeros(2, 1, 2, 2), torch.zeros(2).long(), torch.arange(2))
    with pytest.raises(InputError, match="a second encoder needs captions"):
        Second(Words(), 4)(views(1, 2), torch.zeros(1, 2, 4), batch, GENERATOR)


def test_a_momentum_that_rises_needs_its_steps() -> None:
    with pytest.raises(InputError, match="steps=N"):
        momentum(Scale(), momentum=0.9, final=1.0).advance(Scale(), nn.Identity())
    key = momentum(Scale(), momentum=0.9, final=1.0, steps=7)
    key.plan(3)
    assert key.steps == 7
    with pytest.raises(InputError, match="at least 1 step, got -5"):
        momentum(Scale(), momentum=0.9, final=1.0, steps=-5)


def test_the_first_views_alone_are_keys_with_num_keys() -> None:
    """SwAV with multi-crop: a small view has a large one as its key, and the two large ones each other."""
    projection = torch.randn(4, 3, 2, requires_grad=True)
    key = Shared(num_keys=2)([], projection, None, torch.Generator())
    assert torch.equal(key, projection[[1, 0, 1, 0]])
    assert torch.equal(Shared()([], projection, None, torch.Generator()), projection.roll(-1, dims=0))
    with pytest.raises(InputError, match="num_keys=1"):
        Shared(num_keys=1)
    with pytest.raises(InputError, match="3 views must be keys, but there are 2"):
        Shared(num_keys=3)([], projection[:2], None, torch.Generator())
