"""A table of vectors in a file: .parquet, .csv, .safetensors, or .npy with a .csv for the other columns.

N images, F features, k neighbours of each.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from contrast.atomic import check_file, replacing, rewrite_csv
from contrast.data.store import from_texts, save_tensors
from contrast.deploy.parts import new_memmap
from contrast.errors import InputError, need
from contrast.evaluation.knn import nearest

SUFFIXES = (".parquet", ".csv", ".npy", ".safetensors")
_ROWS = 8192  # rows that are in memory at a time


class Neighbours(NamedTuple):
    """The k nearest other images of each image, nearest first: their rows in the table, [N, k] int64, and cosines."""

    rows: np.ndarray
    cosines: np.ndarray


class Table(NamedTuple):
    """Vectors, float32 [N, F], with the file, the name of the class ("" if unlabelled) and the split of each image."""

    files: list[str]
    labels: list[str]
    splits: list[str]
    vectors: np.ndarray
    neighbours: Neighbours | None = None


def check_out(path: str | Path) -> Path:
    """`path` as the file of a table.

    Raises InputError for an unknown suffix, a place where no file can be written, .parquet without pyarrow, and .npy if
    its .csv would take the place of another table.
    """
    if str(path).endswith(("/", os.sep)):
        raise InputError(f"{path} is the name of a folder, and vectors are saved in a file")
    path = Path(path).expanduser()
    if path.suffix not in SUFFIXES:
        raise InputError(f"vectors are saved as {', '.join(SUFFIXES)}, not as '{path.name}'")
    check_file(path)
    if path.suffix == ".parquet":
        need("pyarrow", "parquet", path.name)
    if path.suffix == ".npy" and (beside := path.with_suffix(".csv")).exists() and not path.exists():
        raise InputError(f"{path} would be written with {beside.name}, which exists already: choose another name")
    return path


def nearest_neighbours(vectors: np.ndarray, k: int, scratch: Path, device: torch.device) -> Neighbours:
    """The k nearest other vectors of each of the vectors [N, F] by exact cosine similarity; k is at most N - 1.

    faiss does the search, if it is installed and the device is a CPU, and needs all vectors in memory. Otherwise
    `evaluation.knn.nearest` does it.

    scratch  a temporary file for the vectors scaled to length 1
    """
    count, k = len(vectors), min(k, len(vectors) - 1)
    unit = new_memmap(scratch, vectors.shape)
    for rows in _blocks(count):
        unit[rows] = F.normalize(torch.from_numpy(vectors[rows]), dim=1).numpy()
    search = _search(unit, device)
    near = Neighbours(np.empty((count, k), np.int64), np.empty((count, k), np.float32))
    for rows in _blocks(count, 512):
        cosines, others = search(unit[rows], k + 1)  # [b, k + 1], the image itself among them
        own = others == np.arange(rows.start, rows.stop)[:, None]
        own[~own.any(axis=1), -1] = True  # with more than k equal images it may be missing
        near.rows[rows], near.cosines[rows] = (x[~own].reshape(len(x), k) for x in (others, cosines))
    return near


def _search(unit: np.ndarray, device: torch.device) -> Callable[[np.ndarray, int], Sequence[np.ndarray]]:
    """(query [b, F], k) -> cosines and rows [b, k]."""
    if device.type == "cpu" and find_spec("faiss") is not None:
        import faiss

        index = faiss.IndexFlatIP(unit.shape[1])
        index.add(unit)
        return index.search
    train = torch.from_numpy(unit).to(device)

    def search(query: np.ndarray, k: int) -> list[np.ndarray]:
        return [x.cpu().numpy() for x in nearest(torch.from_numpy(query).to(device), train, k, 32768)]

    return search


def save_table(path: Path, table: Table) -> None:
    """Writes the table in the format of the suffix. An interruption leaves no half-written file.

    .parquet      columns file, label, split, vector, and neighbours {ids: rows of the table, distances: 1 - cosine}
    .csv          file, label, split, neighbours, cosines, then a column for each feature: f0, f1, ...
    .npy          the vectors [N, F]; the other columns are in a .csv of the same name
    .safetensors  vectors [N, F], neighbours and cosines [N, k]; files, labels and splits are JSON lists of texts in
                  uint8 tensors
    """
    if path.suffix == ".parquet":
        _save_parquet(path, table)
    elif path.suffix == ".csv":
        _save_csv(path, table, with_vectors=True)
    elif path.suffix == ".npy":
        _save_csv(path.with_suffix(".csv"), table, with_vectors=False)
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.save(file, table.vectors)
    else:
        texts = {"files": table.files, "labels": table.labels, "splits": table.splits}
        tensors = {"vectors": torch.from_numpy(table.vectors), **{key: from_texts(x) for key, x in texts.items()}}
        if table.neighbours is not None:
            tensors |= {"neighbours": torch.from_numpy(table.neighbours.rows)}
            tensors |= {"cosines": torch.from_numpy(table.neighbours.cosines)}
        with replacing(path) as temporary:
            save_tensors(tensors, temporary)


def _save_parquet(path: Path, table: Table) -> None:
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    width = table.vectors.shape[1]
    columns = [("file", pa.string()), ("label", pa.string()), ("split", pa.string())]
    columns += [("vector", pa.list_(pa.float32(), width))]
    if table.neighbours is not None:
        columns += [("neighbours", pa.struct([("ids", pa.list_(pa.int64())), ("distances", pa.list_(pa.float32()))]))]
    schema = pa.schema(columns)
    with replacing(path) as temporary, ParquetWriter(temporary, schema) as writer:
        for rows in _blocks(len(table.vectors)):
            values = pa.array(table.vectors[rows].reshape(-1))
            labels = [label or None for label in table.labels[rows]]
            arrays = [table.files[rows], labels, table.splits[rows], pa.FixedSizeListArray.from_arrays(values, width)]
            if table.neighbours is not None:
                near = zip(table.neighbours.rows[rows].tolist(), 1 - table.neighbours.cosines[rows], strict=True)
                arrays.append([{"ids": ids, "distances": distances} for ids, distances in near])
            writer.write_table(
                pa.Table.from_arrays([pa.array(x, f.type) for x, f in zip(arrays, schema, strict=True)], schema=schema)
            )


def _save_csv(path: Path, table: Table, with_vectors: bool) -> None:
    near = ["neighbours", "cosines"] if table.neighbours is not None else []
    features = [f"f{i}" for i in range(table.vectors.shape[1])] if with_vectors else []

    def lines() -> Iterator[list[object]]:
        yield ["file", "label", "split", *near, *features]
        for row in range(len(table.vectors)):
            others = [" ".join(map(str, each[row])) for each in table.neighbours or ()]
            values = [f"{value:.9g}" for value in (table.vectors[row] if with_vectors else ())]
            yield [table.files[row], table.labels[row], table.splits[row], *others, *values]

    rewrite_csv(path, lines())


def _blocks(count: int, size: int = _ROWS) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
