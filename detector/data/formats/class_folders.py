"""Labelled images as training reads them: one folder per class, or a CSV file of paths and labels."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detector.data.detection import Category
from detector.data.formats.class_labels import class_folders, header_hint, read_label_table
from detector.data.listing import list_images
from detector.data.names import Names, check_names, files_below
from detector.data.split import hold_back
from detector.errors import DataError, one_of


@dataclass(frozen=True)
class Labelled:
    """Pictures and their labels as columns: I pictures, M labels sorted by picture. Forked workers share the arrays."""

    source: Path  # the folder or CSV file that says so
    root: Path
    categories: list[Category]
    files: np.ndarray  # [I] names as the file system has them, in bytes, relative to root
    first: np.ndarray  # [I + 1] int64; picture i has labels[first[i]:first[i + 1]]
    labels: np.ndarray  # [M] int64, 0..K-1
    note: str = ""  # on how the files were found, for the summary

    def __len__(self) -> int:
        return len(self.files)

    def file(self, index: int) -> Path:
        return self.root / os.fsdecode(self.files[index])

    def labels_of(self, index: int) -> np.ndarray:
        return self.labels[self.first[index] : self.first[index + 1]]

    def is_true(self) -> np.ndarray:
        """Which classes each picture has, [I, K] bool."""
        is_true = np.zeros((len(self), len(self.categories)), dtype=bool)
        is_true[np.repeat(np.arange(len(self)), np.diff(self.first)), self.labels] = True
        return is_true

    def counts(self) -> np.ndarray:
        """Pictures of each class, [K]."""
        return np.bincount(self.labels, minlength=len(self.categories))

    def select(self, indices: np.ndarray) -> Labelled:
        """Some of the pictures."""
        labels = [self.labels_of(index) for index in indices]
        return Labelled(
            self.source,
            self.root,
            self.categories,
            self.files[indices],
            np.cumsum([0, *map(len, labels)]),
            np.concatenate([np.empty(0, dtype=np.int64), *labels]),
            self.note,
        )


def read_folders(root: Path, classes: Sequence[str] | None) -> Labelled:
    """A folder of class folders, each searched whole; without ``classes`` their names are the classes.

    Raises :class:`~detector.errors.DataError` for a class without images, for images outside the class folders, and
    for links that lead nowhere.
    """
    folders = class_folders(root)
    listing = list_images(root)
    if stray := [file for file in listing.files if "/" not in file]:
        raise DataError(
            f"{root / stray[0]}: lies outside the class folders ({len(stray)} images do); move or remove it"
        )
    names = list(classes) if classes is not None else folders
    own_files: dict[str, list[str]] = {folder: [] for folder in folders}
    for file in listing.files:
        own_files[file.split("/", 1)[0]].append(file)
    files: list[str] = []
    labels: list[list[int]] = []
    for folder, own in own_files.items():
        label = label_of_name(folder, names, f"{root / folder}: the folder's name")
        if not own:
            raise DataError(f"{root / folder}: the class folder has no images; fill it or remove it")
        files += sorted(own, key=lambda file: file.split("/"))
        labels += [[label]] * len(own)
    for index, _, reason in check_names(files, root, allow_outside=False):
        raise DataError(f"{root / files[index]}: {reason}; restore the file, or remove the link")
    return _labelled(root, root, names, files, labels, listing.note())


def read_csv(
    path: Path, root: Path, classes: Sequence[str] | None, multi_label: bool, allow_outside: bool = False
) -> Labelled:
    """A CSV file: the path of an image (relative to ``root``), then its label, with or without a header.

    With ``multi_label`` a row may have several, in cells of their own or separated by ``;`` in one, or none. Raises
    :class:`~detector.errors.DataError` with the line for all that is wrong, also, unless ``allow_outside``, for a path
    that leads out of ``root``.
    """
    table = read_label_table(path, multi_label)
    lines: list[int] = []
    files: list[str] = []
    texts: list[list[str]] = []
    for line, file, found, fault in table.rows:
        if fault:
            raise DataError(f"{path}:{line}: {fault}{header_hint(line)}")
        for text in found:
            if classes is not None:
                label_of_name(text, classes, f"{path}:{line}: label")
        lines.append(line)
        files.append(file)
        texts.append(found)
    for index, is_outside, reason in check_names(files, root, allow_outside):
        fault, remedy = f"{root / files[index]} {reason}", f"paths are relative to {root}"
        if is_outside:
            fault = f"{files[index]} {reason} of {root}"
            remedy = "put the image into the folder, or set data.allow_outside=true if you trust the file"
        remedy = Names(files_below(root)).hint(files[index]) or remedy
        raise DataError(f"{path}:{lines[index]}: {fault}; {remedy}{header_hint(lines[index])}")
    names = list(classes) if classes is not None else sorted({text for row in texts for text in row})
    if not names:
        raise DataError(f"{path}: has no label in any row")
    label_of = {name: label for label, name in enumerate(names)}
    labels = [sorted({label_of[text] for text in row}) for row in texts]
    return _labelled(path, root, names, files, labels, table.note())


def label_of_name(name: str, names: Sequence[str], where: str) -> int:
    if name in names:
        return names.index(name)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"they are {one_of(names[:10])}{', …' if len(names) > 10 else ''}"
    raise DataError(f"{where} {name!r} is not among the {len(names)} classes; {hint}")


def _labelled(
    source: Path, root: Path, names: Iterable[str], files: list[str], labels: list[list[int]], note: str
) -> Labelled:
    return Labelled(
        source=source,
        root=root,
        categories=[Category(label, name) for label, name in enumerate(names)],
        files=np.array([os.fsencode(file) for file in files]),
        first=np.cumsum([0, *map(len, labels)]),
        labels=np.array([label for row in labels for label in row], dtype=np.int64),
        note=note,
    )


def divide(labelled: Labelled, share: float, seed: int) -> tuple[Labelled, Labelled]:
    """The images to train on and those held back (see :func:`~detector.data.split.hold_back`)."""
    image = np.repeat(np.arange(len(labelled)), np.diff(labelled.first))
    is_val = hold_back(labelled.source, labelled.files.tolist(), image, labelled.labels, share, seed)
    return labelled.select(np.flatnonzero(~is_val)), labelled.select(np.flatnonzero(is_val))
