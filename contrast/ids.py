"""Labels, ids and groups as int64 tensors, whatever integers a user has them in."""

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from contrast.errors import InputError


def as_ids(name: str, values: Tensor | ArrayLike) -> Tensor:
    """`values`, a tensor, numpy array or sequence of whole numbers of any shape, as an int64 tensor of that shape.

    Narrower integers are widened, because `candidates.ABSENT` and -1 must fit; floats are accepted if they are whole.
    A tensor stays on its device, and an int64 tensor is returned as it is. The error message names the values `name`.

    Raises InputError for booleans, strings and other objects, and for NaN, infinite, fractional or too large numbers.
    """
    if not isinstance(values, Tensor):
        values = _tensor(name, values)
    if values.dtype == torch.int64:
        return values
    if values.dtype == torch.bool or values.is_complex():
        raise InputError(f"{name} must be whole numbers, not {values.dtype}")
    ids = values.long()
    if values.is_floating_point():
        whole = (values == values.round()) & (values.abs().float() < 2.0**63)  # both are false for NaN
        if not whole.all():
            wrong = values[~whole]
            raise InputError(f"{name} must be whole numbers, but {len(wrong)} of {values.numel()} are not: {wrong[0]}")
    elif values.dtype == torch.uint64 and ids.numel() and int(ids.min()) < 0:
        raise InputError(f"{name} must be below 2^63, but {int((ids < 0).sum())} of {ids.numel()} are not")
    return ids


def linked(numbers: Tensor) -> Tensor:
    """The group of each row of `numbers` [N, K] int64, [N]: rows that share a number in any column are one group.

    So are rows that a third one connects. A group is named by the lowest number in the first column of its rows.
    """
    places = [column.unique(return_inverse=True)[1] for column in numbers.T]  # K x [N]
    group, before = numbers[:, 0], None
    while before is None or not torch.equal(group, before):
        before = group
        for place in places:
            group = torch.empty_like(group).scatter_reduce(0, place, group, "amin", include_self=False)[place]
    return group


def _tensor(name: str, values: ArrayLike) -> Tensor:
    try:
        array = np.asarray(values)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} must be an array of whole numbers: {' '.join(str(error).split())}") from error
    if array.dtype.kind not in "biuf":
        first = f", such as {array.flat[0]!r}" if array.size else ""
        raise InputError(f"{name} must be whole numbers, not {array.dtype}{first}")
    if array.dtype == np.longdouble:
        array = array.astype(np.float64)
    # `newbyteorder` and the copy: torch reads neither foreign byte orders, negative strides nor read-only memory
    return torch.from_numpy(np.array(array, array.dtype.newbyteorder("="), order="C"))
