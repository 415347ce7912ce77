"""Embeddings in the plane: PCA and t-SNE, and UMAP where it is installed. N rows of F features."""

from importlib.util import find_spec

import numpy as np
import torch.nn.functional as F
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import Tensor

AXES = 50  # t-SNE and UMAP start from so many principal axes, which makes them faster (van der Maaten and Hinton 2008)
PERPLEXITY = 30.0
FEWEST = 5  # rows of which there is a map


def maps(features: Tensor, seed: int = 0) -> dict[str, list[list[float]]]:
    """Points [N, 2] in 0..1 of each method by its name, of features [N, F]; none for fewer than `FEWEST` rows.

    Rows are scaled to length 1 first, so that close points are similar by the cosine. The longer side of the map is 1.
    """
    count, width = features.shape
    if count < FEWEST:
        return {}
    unit = F.normalize(features.double(), dim=1).numpy()
    with np.errstate(invalid="ignore"):  # if all rows are equal
        axes = PCA(min(AXES, count, width), svd_solver="full").fit_transform(unit)  # [N, min(AXES, N, F)]
    axes = np.pad(axes, ((0, 0), (0, max(0, 2 - axes.shape[1]))))
    start = axes[:, :2] * 1e-4 / max(axes[:, 0].std(), 1e-12)  # as scikit-learn scales it
    points = {
        "t-SNE": TSNE(perplexity=min(PERPLEXITY, (count - 1) / 3), init=start, random_state=seed).fit_transform(axes),
        "PCA": axes[:, :2],
    }
    if find_spec("umap") is not None:
        import umap

        near = min(15, count - 1)
        points["UMAP"] = umap.UMAP(n_neighbors=near, random_state=seed, n_jobs=1).fit_transform(axes)
    return {name: _scaled(each) for name, each in points.items()}


def _scaled(points: np.ndarray) -> list[list[float]]:
    low, high = points.min(axis=0), points.max(axis=0)
    side = max(float((high - low).max()), 1e-12)
    return ((points - (low + high) / 2) / side + 0.5).round(4).tolist()
