"""Retrieval: whether a query's answer is among its k most similar keys.

M queries, N keys, D dimensions. Ids say what belongs together, of whichever kind suits the data: those of the texts
(`text_ids`) where one text describes many images, those of the images (`image_ids`) where one image has several
captions. Each key should stand once (`distinct`), or its copies take the first places together.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from contrast.data.images.image_set import ImageFiles, Images
from contrast.data.store import digest
from contrast.errors import InputError


@torch.no_grad()
def recall(
    query: Tensor,
    key: Tensor,
    query_ids: Tensor,
    key_ids: Tensor,
    k: Sequence[int] = (1, 5, 10),
    block: int = 512,
) -> dict[int, float]:
    """Share of the queries, 0 to 1, that have a key of their id among the k most similar, for each k: recall at k.

    query [M, D], key [N, D], query_ids [M], key_ids [N] int64, on one device. Similarity is the cosine, in float64,
    over tiles of [block, block]; a row of zeros is similar to nothing. (Karpathy and Fei-Fei 2015, section 4.2)

    A query is answered at k if fewer than k keys of other ids are at least as similar as the best of its own. So a tie
    counts against it, whatever the order of the keys: if all embeddings are equal, it is answered only where k exceeds
    the number of other keys. Similarities that differ by no more than their rounding are tied.

    Raises InputError where shapes do not fit, something is empty or not finite, k or block is below 1, or no key has
    the id of a query.
    """
    _check(query, key, query_ids, key_ids)
    if not k or min(k) < 1 or block < 1:
        raise InputError(f"recall: k ({list(k)}) and block ({block}) must be 1 or more")
    query, key = F.normalize(query.double(), dim=1), F.normalize(key.double(), dim=1)
    rounding = 2 * torch.finfo(torch.float64).eps * math.sqrt(query.shape[1])
    answered = dict.fromkeys(k, 0)
    for rows, ids in zip(query.split(block), query_ids.split(block), strict=True):
        best = rows.new_full((len(rows),), -math.inf)  # [b] similarity of the best key of its own
        for similarity, own in _tiles(rows, ids, key, key_ids, block):
            best = best.maximum(similarity.masked_fill(~own, -math.inf).amax(dim=1))
        before = torch.zeros_like(ids)  # [b] keys of other ids that are as similar
        for similarity, own in _tiles(rows, ids, key, key_ids, block):
            before += ((similarity >= best[:, None] - rounding) & ~own).sum(dim=1)
        for most in answered:
            answered[most] += int((before < most).sum())
    return {most: count / len(query) for most, count in answered.items()}


def text_ids(text: Tensor) -> Tensor:
    """A number for every distinct row of token ids [N, L], [N] int64: equal texts have equal ids."""
    return torch.unique(text, dim=0, return_inverse=True)[1]


def image_ids(images: Images | ImageFiles) -> Tensor:
    """A number for every distinct image, by its pixels or, for ImageFiles, its name, [N] int64."""
    if isinstance(images, ImageFiles):
        keys = images.names
    else:
        keys = np.array([digest(image) for image in images.pixels.cpu()])
    return torch.from_numpy(np.unique(keys, return_inverse=True)[1].reshape(-1).astype(np.int64))


def distinct(ids: Tensor) -> Tensor:
    """The first row of every id, ascending: of ids [N] the rows [n] int64."""
    order = ids.argsort(stable=True)
    ordered = ids[order]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return order[first].sort().values


def _tiles(query: Tensor, ids: Tensor, key: Tensor, key_ids: Tensor, block: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Similarities [b, c] of some queries to block after block of keys, and which are of the same id."""
    for keys, theirs in zip(key.split(block), key_ids.split(block), strict=True):
        yield query @ keys.T, ids[:, None] == theirs  # [b, D] x [c, D] -> [b, c]


def _check(query: Tensor, key: Tensor, query_ids: Tensor, key_ids: Tensor) -> None:
    if query.ndim != 2 or key.ndim != 2 or query.shape[1] != key.shape[1] or not (len(query) and len(key)):
        raise InputError(f"recall: query [M, D] and key [N, D] wanted, got {list(query.shape)} and {list(key.shape)}")
    if query_ids.shape != query.shape[:1] or key_ids.shape != key.shape[:1]:
        raise InputError(
            f"recall: {len(query)} queries and {len(key)} keys have ids {list(query_ids.shape)} and "
            f"{list(key_ids.shape)}"
        )
    for rows, what in ((query, "queries"), (key, "keys")):
        broken = int((~torch.isfinite(rows).all(dim=1)).sum())
        if broken:
            raise InputError(f"recall: {broken} of {len(rows)} {what} are not finite")
    alone = int((~torch.isin(query_ids, key_ids)).sum())
    if alone:
        raise InputError(f"recall: {alone} of {len(query)} queries have an id that no key has")
