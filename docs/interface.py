"""The reference of the interface, as mkdocstrings reads it: the names that public modules export."""

import pydoc

PUBLIC: dict[str, tuple[str, list[str]]] = {
    "The package": ("contrast", []),
    "Trained encoders and words": (
        "contrast.deploy",
        ["load.ImageEncoder", "load.ImageClassifier", "words.WordEmbeddings"],
    ),
    "Losses as modules": ("contrast.losses", []),
    "Losses as functions": ("contrast.functional", []),
    "The module that is trained": ("contrast.module", ["Contrastive"]),
    "Candidates": ("contrast.candidates", ["Candidates"]),
    "Heads": ("contrast.heads", []),
    "Keys": ("contrast.keys", ["Shared", "Momentum", "Second"]),
    "Negatives": ("contrast.negatives", []),
    "Samplers": ("contrast.samplers", []),
    "Encoders": ("contrast.encoders", []),
    "Views": ("contrast.views", []),
    "Optimisers": ("contrast.optim", []),
    "Models of words": ("contrast.words", ["WordVectors", "LanguageModel"]),
    "Data": ("contrast.data.images.image_set", ["Splits", "Images", "ImageFiles"]),
    "Errors": ("contrast.errors", ["InputError"]),
}


def page() -> str:
    """What is public, for mkdocstrings: the names that modules export."""
    lines = [
        "# Interface\n",
        "This page lists what is public; everything else may change without notice. [design.md](design.md) explains "
        "how the parts fit together. In shapes, N is the number of images or pairs, B of queries, C of candidates, K "
        "of negatives or draws, and D of dimensions.\n",
    ]
    for title, (module, names) in PUBLIC.items():
        exported = names or [name for name in pydoc.locate(module).__all__ if not name.startswith("_")]  # type: ignore[attr-defined]
        lines += [f"## {title}\n", *(f"::: {module}.{name}" for name in exported), ""]
    return "\n".join(lines)
