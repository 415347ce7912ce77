"""Retrieval: whether a right answer to a query is among its k most similar keys, and how early all of them come.

M queries, N keys, D dimensions, P pairs of a query and a right answer, R rows of a data set.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor
from tqdm import tqdm

from contrast.candidates import as_ids
from contrast.data.images.image_set import ImageFiles, Images
from contrast.data.store import digest
from contrast.errors import InputError
from contrast.evaluation.encoder import Towers
from contrast.evaluation.features import (
    EvaluationData,
    check_finite,
    check_labelled,
    evaluating,
    features,
    with_float64,
)

DIRECTIONS = {"image_to_text": "captions for images", "text_to_image": "images for captions"}


@torch.no_grad()
def recall(
    query: Tensor, key: Tensor, pairs: Tensor | ArrayLike, k: Sequence[int] = (1, 5, 10), block: int = 512
) -> dict[int, float]:
    """Recall at k, for each k: the share of the queries, 0 to 1, with a right answer among the k most similar keys.

    query [M, D], key [N, D], on one device. Similarity is the cosine, in float64, over tiles of [block, block]; that of
    a row of zeros is 0. (Karpathy and Fei-Fei 2015, section 4.2)

    pairs  [P, 2] whole numbers: key pairs[p, 1] is a right answer to query pairs[p, 0]. If equal labels make a key
           right, these are `(query_labels[:, None] == key_labels).nonzero()`. Keys should be distinct, because copies
           of a key take several of the first places

    A query is answered at k if fewer than k other keys are at least as similar as the best of its right answers. So a
    tie counts against it, whatever the order of the keys: if all embeddings are equal, it is answered only where k
    exceeds the number of other keys. Similarities that differ by no more than their rounding are tied.

    Raises InputError where shapes do not fit, something is empty or not finite, k or block is below 1, a pair names
    no query or key (-1 names none), or a query has no right answer.
    """
    pairs = _checked(query, key, pairs)
    _check_sizes(k, block)
    query, key = F.normalize(query.double(), dim=1), F.normalize(key.double(), dim=1)
    answered = dict.fromkeys(k, 0)
    for start in range(0, len(query), block):
        rows = query[start : start + block]
        inside = (pairs[:, 0] >= start) & (pairs[:, 0] < start + block)
        answers = pairs[inside] - pairs.new_tensor([start, 0])
        best = rows.new_full((len(rows),), -math.inf)  # [b] similarity of the best right answer
        for similarity, right in _tiles(rows, key, answers, block):
            best = best.maximum(similarity.masked_fill(~right, -math.inf).amax(dim=1))
        before = pairs.new_zeros(len(rows))  # [b] other keys that are as similar
        for similarity, right in _tiles(rows, key, answers, block):
            before += ((similarity >= best[:, None] - rounding(query.shape[1])) & ~right).sum(dim=1)
        for most in answered:
            answered[most] += int((before < most).sum())
    return {most: count / len(query) for most, count in answered.items()}


@torch.no_grad()
def recall_by_label(
    features: Tensor, labels: Tensor | ArrayLike, k: Sequence[int] = (1, 5, 10), block: int = 2**22
) -> dict[str, float]:
    """Each image is a query among all others; those with its label are right. Shares, 0 to 1, over the queries.

    recall1  of the queries: whether one of the k = 1 most similar images is right; and so on for each k
    map      mean average precision: the mean over the right images, in order, of the share of right ones up to there
    queries_left_out  the number of images whose label no other image has: they are no queries

    features [N, F], labels [N], from 0. Similarity is the cosine, in float64, for so many queries at a time that one
    tensor has at most `block` elements, or N. A wrong image that is as similar as a right one comes before it, as in
    `recall`. InputError for labels of -1, features that are not finite, k or block below 1, and without any query.
    """
    labels = check_labelled(features, labels, "retrieval")
    _check_sizes(k, block)
    queries = (labels.bincount()[labels] > 1).nonzero().flatten()  # [M]
    if not len(queries):
        raise InputError(f"retrieval: none of {len(labels)} images shares its label with another one")
    features = F.normalize(features.double(), dim=1)
    places = torch.arange(1, len(labels) + 1, device=labels.device)
    answered, precision = dict.fromkeys(k, 0), 0.0
    for rows in tqdm(queries.split(max(1, block // len(labels))), desc="retrieval", delay=1, leave=False):
        similarity = features[rows] @ features.T  # [b, F] x [N, F] -> [b, N]
        right = labels[rows, None] == labels
        similarity -= rounding(features.shape[1]) * right
        right.scatter_(1, rows[:, None], False)
        similarity.scatter_(1, rows[:, None], -math.inf)  # the query itself comes last
        right = right.gather(1, similarity.argsort(dim=1, descending=True))
        precision += float((right.cumsum(dim=1) / places.double() * right).sum(dim=1).div(right.sum(dim=1)).sum())
        for most in answered:
            answered[most] += int(right[:, :most].any(dim=1).sum())
    metrics = {f"recall{most}": count / len(queries) for most, count in answered.items()}
    return metrics | {"map": precision / len(queries), "queries_left_out": len(labels) - len(queries)}


def _check_sizes(k: Sequence[int], block: int) -> None:
    if not k or min(k) < 1 or block < 1:
        raise InputError(f"recall: k ({list(k)}) and block ({block}) must be 1 or more")


def rounding(dim: int) -> float:
    """Two float64 cosines of vectors of `dim` dimensions are tied if they differ by no more than this.

    Each is off by at most (dim + 2) eps: dim / 2 from the sum of products, the rest from the two lengths.
    """
    return 2 * (dim + 2) * torch.finfo(torch.float64).eps


def _tiles(query: Tensor, key: Tensor, pairs: Tensor, block: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Similarities [b, c] of some queries to block after block of keys, and which are right answers by `pairs`."""
    for start in range(0, len(key), block):
        similarity = query @ key[start : start + block].T  # [b, D] x [c, D] -> [b, c]
        right = torch.zeros_like(similarity, dtype=torch.bool)
        inside = (pairs[:, 1] >= start) & (pairs[:, 1] < start + block)
        right[pairs[inside, 0], pairs[inside, 1] - start] = True
        yield similarity, right


def _checked(query: Tensor, key: Tensor, pairs: Tensor | ArrayLike) -> Tensor:
    pairs = as_ids("recall: pairs", pairs).to(query.device)
    if query.ndim != 2 or key.ndim != 2 or query.shape[1] != key.shape[1] or not (len(query) and len(key)):
        raise InputError(f"recall: expected query [M, D] and key [N, D], got {list(query.shape)} and {list(key.shape)}")
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise InputError(f"recall: expected pairs [P, 2] of a query and a key, got {list(pairs.shape)}")
    check_finite(query, "recall", "queries")
    check_finite(key, "recall", "keys")
    outside = int(((pairs < 0) | (pairs >= pairs.new_tensor([len(query), len(key)]))).any(dim=1).sum())
    if outside:
        raise InputError(
            f"recall: {outside} of {len(pairs)} pairs name none of {len(query)} queries or {len(key)} keys"
        )
    without = len(query) - len(pairs[:, 0].unique())
    if without:
        raise InputError(f"recall: {without} of {len(query)} queries have no right answer")
    return pairs


def retrieval(data: EvaluationData, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """The protocol: recall at k of captions for the test images, and of images for their captions.

    Equal images count as one, and so do equal captions. The right answers to an image are the captions of its own rows
    of the data set; those to a caption are the images of its own rows. Where the test images have no captions,
    `recall_by_label` measures the features of these images.

    ks  the k of each recall: how many of the most similar answers are considered
    """
    _check_sizes(ks, block=1)  # before features are computed
    images = data.test
    if images.text is None:
        return recall_by_label(data.test_features.to(with_float64(data.device)), images.labels, ks)
    if not isinstance(data.encoder, Towers):
        raise InputError("retrieval of captions needs a checkpoint with an encoder of captions (method=clip or siglip)")
    image_rows, image_of = distinct(image_keys(images))
    text_rows, text_of = distinct(images.text.numpy())
    pictures, captions = in_common_space(data, images.select(image_rows), images.text[text_rows])
    pairs = torch.stack([image_of, text_of], dim=1)  # [R, 2]
    both = recall(pictures, captions, pairs, ks), recall(captions, pictures, pairs.flip(1), ks)
    return {
        f"{way}_recall{k}": share for way, shares in zip(DIRECTIONS, both, strict=True) for k, share in shares.items()
    }


def retrieval_names(captions: bool, ks: Sequence[int] = (1, 5, 10)) -> set[str]:
    """Names of the metrics of `retrieval`, for test images with or without captions."""
    if captions:
        return {f"{way}_recall{k}" for way in DIRECTIONS for k in ks}
    return {*(f"recall{k}" for k in ks), "map", "queries_left_out"}


def in_common_space(data: EvaluationData, images: Images | ImageFiles, text: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors of images [M, D] and of texts [N, L] -> [N, D] by the two encoders of `data`, float32 on the CPU."""
    towers, device = data.encoder, data.device
    assert isinstance(towers, Towers)
    towers.to(device)
    with evaluating(towers):
        pictures = features(towers.image, images, data.batch_size, device, "images", data.workers)
        with torch.inference_mode():
            captions = torch.cat([towers.text(part.to(device)).float().cpu() for part in text.split(data.batch_size)])
    return pictures, captions


def image_keys(images: Images | ImageFiles) -> np.ndarray:
    """A value [R] for each image, equal for equal images: the first row of its file, or a digest of its pixels."""
    if isinstance(images, ImageFiles):
        return images.first_rows()
    return np.array([digest(image) for image in images.pixels.cpu()])


def distinct(values: np.ndarray) -> tuple[Tensor, Tensor]:
    """The first row of each of the n distinct values [R, ...], [n] int64, and which of these each row equals, [R]."""
    _, first, number = np.unique(values, axis=0, return_index=True, return_inverse=True)
    return torch.from_numpy(first), torch.from_numpy(number.reshape(-1))
