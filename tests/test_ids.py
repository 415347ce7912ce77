"""Labels, ids and groups of every integer type become int64, and what is no whole number is refused by name."""

from typing import Any

import numpy as np
import pytest
import torch

from contrast.candidates import as_ids
from contrast.errors import InputError

VALUES = [[0, 3, 1], [2, 127, 5]]


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
@pytest.mark.parametrize("library", ["torch", "numpy"])
def test_integers_are_widened(dtype: str, library: str) -> None:
    values = np.array(VALUES, dtype) if library == "numpy" else torch.tensor(VALUES, dtype=getattr(torch, dtype))
    ids = as_ids("labels", values)
    assert ids.dtype == torch.int64
    assert ids.tolist() == VALUES


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_whole_floats_are_taken(dtype: str) -> None:
    assert as_ids("labels", torch.tensor([-1.0, 0.0, 256.0], dtype=getattr(torch, dtype))).tolist() == [-1, 0, 256]


@pytest.mark.parametrize(
    "values",
    [
        [4, 0, -1],
        (4, 0, -1),
        [4.0, 0.0, -1.0],
        np.array([-1, 0, 4])[::-1],
        np.array([4, 0, -1], ">i4"),
        np.array([4, 0, -1], np.longdouble),
        [torch.tensor(4), torch.tensor(0), torch.tensor(-1)],
    ],
)
def test_sequences_and_any_layout_of_numpy_are_taken(values: Any) -> None:
    assert as_ids("labels", values).tolist() == [4, 0, -1]


def test_read_only_arrays_are_copied_and_numbers_keep_their_shape() -> None:
    fixed = np.array([1, 2])
    fixed.setflags(write=False)
    as_ids("labels", fixed)[0] = 7
    assert fixed[0] == 1
    assert as_ids("labels", 3).shape == ()
    assert as_ids("labels", []).shape == (0,)


def test_an_int64_tensor_is_returned_as_it_is() -> None:
    values = torch.tensor([1, 2])
    assert as_ids("labels", values) is values


@pytest.mark.parametrize(
    ("values", "fact"),
    [
        (torch.tensor([0.0, 1.5]), "1.5"),
        ([0.0, float("nan")], "nan"),
        (torch.tensor([1.0, float("inf"), -float("inf")]), "2 of 3"),
        (torch.tensor([2.0**63]), "1 of 1"),
        (np.array([2**63], np.uint64), "1 of 1"),
        (torch.tensor([True]), "bool"),
        ([True, False], "bool"),
        (torch.tensor([1j]), "complex"),
        (["cat", "dog"], "'cat'"),
        ([2**70], "object"),
        ([[1], [2, 3]], "array"),
        (None, "None"),
    ],
)
def test_everything_else_is_refused_by_name(values: Any, fact: str) -> None:
    with pytest.raises(InputError, match="the labels") as raised:
        as_ids("the labels", values)
    assert fact in str(raised.value)
    assert "\n" not in str(raised.value)
