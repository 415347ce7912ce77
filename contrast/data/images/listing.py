"""Lists images with the label and the split of each: from folders of any usual layout, and from tables.

    ROOT/train/CLASS/*, ROOT/test/CLASS/*     or val, valid, validation, in upper or lower case
    ROOT/CLASS/*                              the folders are classes
    ROOT/CLASS/train/*, ROOT/CLASS/test/*     the same
    ROOT/*, ROOT/train/*                      without class folders: unlabelled
    TABLE.csv, .tsv, .txt, .parquet           columns path, label and split; only path is required

Every layout is first turned into rows of path, label and split. `Listing.notes` says how the images are used and which
files were ignored.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import torch

from contrast.data.images.decode import HEIF, UnreadableImage, pillow_heif, suffixes
from contrast.data.images.subset import check_test_fraction, hold_out_test
from contrast.data.images.table import SUFFIXES as TABLES
from contrast.data.images.table import column_names, pick, read_table
from contrast.errors import InputError, first_few, shown

TRAIN, TEST, VAL, OTHER = "train", "test", "val", ""
SPLITS = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("test", "testing"), TEST),
    **dict.fromkeys(("val", "valid", "validation"), VAL),
}
COLUMNS = {  # of a table
    "path": ("path", "image", "file", "filename", "file_name"),
    "label": ("label", "class", "category"),
    "split": ("split", "subset"),
}


class Row(NamedTuple):
    """An image."""

    path: str  # absolute
    real: str  # the path with all links resolved
    label: str  # "" if it has none
    split: str  # TRAIN, TEST, VAL, or OTHER if it is in no split


class Split(NamedTuple):
    """The images of a split."""

    paths: list[str]  # absolute
    labels: list[int]  # -1 where unlabelled


@dataclass
class Listing:
    """The training images and the test images, which have none in common, and any images of other splits."""

    train: Split
    test: Split | None
    classes: tuple[str, ...]
    notes: list[str]
    others: dict[str, Split] = field(default_factory=dict)

    def __str__(self) -> str:
        return "; ".join(shown(note) for note in self.notes)


@dataclass
class Passed:
    """What was ignored below a folder, and files that a table names but that do not exist."""

    suffixes: Counter[str] = field(default_factory=Counter)
    hidden: int = 0
    empty: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    linked: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def notes(self) -> list[str]:
        files = [f"{count} {suffix or 'without a suffix'}" for suffix, count in sorted(self.suffixes.items())]
        notes = [f"passed over files that are no images: {', '.join(files)}"] if files else []
        if pillow_heif is None and any(suffix in HEIF for suffix in self.suffixes):
            notes.append("pip install 'contrast-learning[heif]' reads .heic")
        if self.hidden:
            notes.append(f"passed over {self.hidden} hidden files and folders")
        return notes + _noted(
            (self.empty, "folders hold no image"),
            (self.linked, "links lead to a folder around them or read before"),
            (self.unreadable, "folders cannot be read"),
            (self.missing, "files of the table do not exist"),
        )


def listing(
    roots: Sequence[Path],
    labels: bool = True,
    test_fraction: float = 0.1,
    seed: int = 0,
    on_error: str = "raise",
    every_split: bool = False,
) -> Listing:
    """The images below the folders and in the tables `roots`. Raises InputError as `contrast.data.images.folder`.

    every_split  keep the images that neither training nor an evaluation uses
    """
    check_test_fraction(test_fraction)
    passed, rows = Passed(), list[Row]()
    for root in roots:
        read = _table if root.suffix.lower() in TABLES and not root.is_dir() else rows_below
        rows += read(root, passed)
    lost = _noted((passed.unreadable, "folders cannot be read"), (passed.missing, "images are missing"))
    if lost and on_error == "raise":
        raise UnreadableImage(f"{' and '.join(lost)}; data.on_error=skip leaves them out")
    where = " and ".join(map(str, roots))
    if not rows:
        notes = "; ".join(passed.notes())
        raise InputError(f"no images in {where}{': ' if notes else ''}{shown(notes)}")
    result = (_every_split if every_split else _splits)(rows, where, labels, test_fraction, seed)
    result.notes += passed.notes()
    return result


def _by_split(rows: list[Row], where: str, labels: bool) -> tuple[dict[str, list[Row]], list[str]]:
    """The rows of each split, every image once, and notes."""
    by_split: dict[str, list[Row]] = {TEST: [], VAL: [], TRAIN: [], OTHER: []}
    once: dict[str, Row] = {}  # by the resolved path, so that no test image is trained on through a link
    for row in sorted(rows, key=lambda row: ((TEST, VAL, TRAIN, OTHER).index(row.split), row.path)):
        first = once.setdefault(row.real, row)
        if first is row:
            by_split[row.split].append(row)
        elif first.label != row.label and first.split == row.split and labels:
            raise InputError(f"{shown(row.path)} has two labels, {first.label} and {row.label}: an image has one")
    notes = [where]
    if again := len(rows) - len(once):
        notes.append(f"{again} images are there under another name as well and count once, in the test set if any")
    return by_split, notes


def _every_split(rows: list[Row], where: str, labels: bool, test_fraction: float, seed: int) -> Listing:
    """All images in the splits in which they are, or with those that are held out of the training images."""
    by_split, notes = _by_split(rows, where, labels)
    splits = {TRAIN: by_split[TRAIN] or by_split[OTHER], TEST: by_split[TEST], VAL: by_split[VAL]}
    splits["other"] = by_split[OTHER] if by_split[TRAIN] else []
    classes = tuple(sorted({row.label for row in rows if row.label})) if labels else ()
    number = {name: place for place, name in enumerate(classes)}
    if not splits[TEST] and not splits[VAL]:
        splits[TRAIN], splits[TEST] = _held_out(splits[TRAIN], number, test_fraction, seed)
    notes += [f"{_count(members)} in {name}" for name, members in splits.items() if members]
    chosen = {name: _split(members, number) for name, members in splits.items() if members or name == TRAIN}
    return Listing(chosen.pop(TRAIN), chosen.pop(TEST, None), classes, notes, chosen)


def _splits(rows: list[Row], where: str, labels: bool, test_fraction: float, seed: int) -> Listing:
    """Divides the rows into training and test images, and notes how."""
    by_split, notes = _by_split(rows, where, labels)
    train = by_split[TRAIN] or by_split[OTHER]
    if not train:
        raise InputError(f"{where} has images to test on ({len(rows)}) but none to train on, no train/")
    if by_split[TRAIN] and by_split[OTHER]:
        notes.append(f"passed over {_count(by_split[OTHER])} beside the training images")
    test = by_split[TEST] or by_split[VAL]
    if by_split[TEST] and by_split[VAL]:
        notes.append(f"passed over {_count(by_split[VAL])} of the validation split: the test split is evaluated")
    classes = _classes(train, labels, notes)
    number = {name: place for place, name in enumerate(classes)}
    if classes and test:
        test = _labelled(test, number, where, notes)
    folders = f" of {len(classes)} classes" if classes else ", unlabelled"
    share = ""
    if not test:
        train, test = _held_out(train, number, test_fraction, seed)
        share = f", {test_fraction:g} of each class, held out of them" if classes else ", held out of them"
    to_test = [f"{_count(test)}{share} to test on"] if test else []
    notes[1:1] = [f"{_count(train)}{folders} to train on", *to_test]
    return Listing(_split(train, number), _split(test, number) if test else None, classes, notes)


def _classes(train: list[Row], labels: bool, notes: list[str]) -> tuple[str, ...]:
    """The names of the classes; none without labels, or if a single folder contains all images."""
    names = sorted({row.label for row in train if row.label}) if labels else []
    loose = [row.path for row in train if not row.label]
    if len(names) == 1 and not loose and train[0].split == OTHER:
        notes.append(f"one class alone, {names[0]!r}, is no label")
        return ()
    if names and loose:
        notes.append(f"{len(loose)} images to train on are in no class and unlabelled: {first_few(loose)}")
    return tuple(names)


def _labelled(test: list[Row], number: dict[str, int], where: str, notes: list[str]) -> list[Row]:
    """The test images whose class is among the training classes; notes which others are left out."""
    unlabelled = [row for row in test if not row.label]
    unknown = [row for row in test if row.label and row.label not in number]
    known = [row for row in test if row.label in number]
    if unlabelled:
        notes.append(f"passed over {_count(unlabelled)} to test on that have no label")
    if unknown:
        names = [repr(name) for name in sorted({row.label for row in unknown})]
        notes.append(f"passed over {_count(unknown)} to test on of classes without training images: {first_few(names)}")
    if unknown and not known:
        raise InputError(f"the classes to train on and to test on have none in common in {where}; {notes[-1]}")
    if absent := sorted(set(number) - {row.label for row in known}) if known else []:
        notes.append(f"{len(absent)} classes only in train: {first_few([repr(name) for name in absent])}")
    return known


def _held_out(rows: list[Row], number: dict[str, int], fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    """The remaining training rows, and those that `hold_out_test` chooses."""
    if fraction == 0:
        return rows, []
    labels = torch.tensor([number.get(row.label, -1) for row in rows])
    fit, held = hold_out_test(labels, fraction, seed)
    return [rows[i] for i in fit.tolist()], [rows[i] for i in held.tolist()]


def _split(rows: list[Row], number: dict[str, int]) -> Split:
    return Split([row.path for row in rows], [number.get(row.label, -1) for row in rows])


def rows_below(root: Path, passed: Passed) -> list[Row]:
    """The images below `root`, folder by folder; InputError if `root` is no folder."""
    if not root.is_dir():
        raise InputError(f"{root} is not a folder" if root.exists() else f"data folder {root} does not exist")
    rows, top, empty = list[Row](), os.path.abspath(root), dict[str, tuple[str, str]]()
    for place, real, files in _walk(top, passed):
        folders = os.path.relpath(place, top).split(os.sep) if place != top else []
        split, label = _place(folders)
        for file in files:
            if not file.name.lower().endswith(suffixes()):
                passed.suffixes[os.path.splitext(file.name)[1].lower()] += 1
                continue
            target = os.path.realpath(file.path) if file.is_symlink() else os.path.join(real, file.name)
            rows.append(Row(file.path, target, label, split))
        if label and len(folders) == 1 + (split != OTHER):
            empty[place] = split, label
    filled = {(row.split, row.label) for row in rows}
    passed.empty += [place for place, kind in empty.items() if kind not in filled]
    return rows


def _place(folders: list[str]) -> tuple[str, str]:
    """The split and the label that the names of the first two folders below the root give."""
    for position, name in enumerate(folders[:2]):
        if split := SPLITS.get(name.lower()):
            others = folders[:position] + folders[position + 1 :]
            return split, others[0] if others else ""
    return OTHER, folders[0] if folders else ""


def _walk(top: str, passed: Passed) -> Iterator[tuple[str, str, list[os.DirEntry[str]]]]:
    """Every folder below `top`, its path with links resolved, and its visible files; no folder twice in one split.

    Whether a file is a link, the listing of its folder says: no file is looked at by itself.
    """
    seen: set[tuple[str, str]] = set()
    places = [top]  # that are still to be listed, the last one first
    while places:
        place = places.pop()
        real, around = os.path.realpath(place), os.path.realpath(os.path.dirname(place))
        split, _ = _place(os.path.relpath(place, top).split(os.sep))
        if place != top and (os.path.join(around, "").startswith(os.path.join(real, "")) or (real, split) in seen):
            passed.linked.append(place)
            continue
        seen.add((real, split))
        try:
            with os.scandir(place) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
        except OSError:
            passed.unreadable.append(place)
            continue
        visible = [entry for entry in entries if not entry.name.startswith(".")]
        passed.hidden += len(entries) - len(visible)
        is_folder = [os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir() for entry in visible]
        yield place, real, [entry for entry, is_dir in zip(visible, is_folder, strict=True) if not is_dir]
        # links last, so that images have the label of their own folder, not that of a link to it
        folders = sorted(compress(visible, is_folder), key=lambda entry: entry.is_symlink())
        places += [entry.path for entry in reversed(folders)]


def _table(file: Path, passed: Passed) -> list[Row]:
    """The rows of a table, whose paths are relative to its folder."""
    header = column_names(file, "labels")
    chosen = {kind: name for kind, names in COLUMNS.items() if (name := pick(header, names)) in header}
    if "path" not in chosen:
        raise InputError(f"{file} has no column {' or '.join(COLUMNS['path'])}; its columns are {', '.join(header)}")
    values = dict(zip(chosen, read_table(file, list(chosen.values()), "labels"), strict=True))
    blank = [""] * len(values["path"])
    splits = values.get("split", blank)
    if unknown := sorted({name for name in splits if name.lower() not in SPLITS}) if "split" in values else []:
        raise InputError(f"{file}: a split is train, val or test, not {first_few([repr(name) for name in unknown])}")
    rows = []
    for name, label, split in zip(values["path"], values.get("label", blank), splits, strict=True):
        path = os.path.join(os.path.abspath(file.parent), name)
        if os.path.isfile(path):
            rows.append(Row(path, os.path.realpath(path), label, SPLITS.get(split.lower(), OTHER)))
        else:
            passed.missing.append(name)
    return rows


def _count(rows: list[Row]) -> str:
    return f"{len(rows):,} image{'s' * (len(rows) != 1)}"


def _noted(*kinds: tuple[list[str], str]) -> list[str]:
    """What is said of each list of places that is not empty."""
    return [f"{len(places)} {what}: {first_few(places)}" for places, what in kinds if places]
