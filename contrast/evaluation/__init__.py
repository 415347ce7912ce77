"""What frozen features are worth: kNN, a linear probe, retrieval, geometry; and word vectors. Pure functions."""

from contrast.evaluation.features import cached_features, digest, features
from contrast.evaluation.geometry import alignment, effective_rank, uniformity
from contrast.evaluation.knn import KNN, knn_predict, knn_score
from contrast.evaluation.linear import fit_linear
from contrast.evaluation.probe import LinearProbe, Setting, linear_probe
from contrast.evaluation.protocol import frozen_scores
from contrast.evaluation.retrieval import distinct, image_ids, recall, text_ids
from contrast.evaluation.words import Analogy, Similarity, analogies, neighbours, similarity_score, word_scores

__all__ = [
    "KNN",
    "Analogy",
    "LinearProbe",
    "Setting",
    "Similarity",
    "alignment",
    "analogies",
    "cached_features",
    "digest",
    "distinct",
    "effective_rank",
    "features",
    "fit_linear",
    "frozen_scores",
    "image_ids",
    "knn_predict",
    "knn_score",
    "linear_probe",
    "neighbours",
    "recall",
    "similarity_score",
    "text_ids",
    "uniformity",
    "word_scores",
]
