"""Images with classes: one folder per class, or a CSV file of paths and labels. The one reader, also of the doctor.

By default the first fault is raised. With a list of ``faults``, all are collected: rows at fault are skipped, and
unknown classes become further classes.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from detector.data.formats.building import read_cells
from detector.data.formats.recognition import BOX_CSV, unread, what_it_is
from detector.data.listing import list_images
from detector.data.names import ALLOW_OUTSIDE, Names, check_names, files_below
from detector.data.split import hold_back
from detector.errors import DataError, counted, one_of, unreadable
from detector.structures import Category
from detector.system.json_stream import has_surrogates

# A first row is a header if it begins with one of these, else it is data.
PATH_NAMES = ("path", "file", "file_name", "filename", "file_path", "filepath", "image", "image_path", "image_name")


class Fault(NamedTuple):
    """What is wrong with one row, image or folder."""

    check: str  # the doctor's name for its kind
    path: Path  # the CSV file, or the image or folder at fault
    words: str  # with the value and the remedy
    line: int = 0  # in the CSV file; 0: not of one

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.words}" if self.line else f"{self.path}: {self.words}"


@dataclass(frozen=True)
class Labelled:
    """Images and their labels as columns: I images, M labels sorted by image. Forked workers share the arrays."""

    source: Path  # the folder or CSV file of the labels
    root: Path
    categories: list[Category]
    files: np.ndarray  # [I] names relative to root, in the bytes of the file system
    first: np.ndarray  # [I + 1] int64; image i has labels[first[i]:first[i + 1]]
    labels: np.ndarray  # [M] int64, 0..K-1
    note: str = ""  # on how the files were found, for the summary

    def __len__(self) -> int:
        return len(self.files)

    def file(self, index: int) -> Path:
        return self.root / os.fsdecode(self.files[index])

    def labels_of(self, index: int) -> np.ndarray:
        return self.labels[self.first[index] : self.first[index + 1]]

    def image_index(self) -> np.ndarray:
        """The image of each label, [M]."""
        return np.repeat(np.arange(len(self)), np.diff(self.first))

    def is_true(self) -> np.ndarray:
        """Which classes each image has, [I, K] bool."""
        is_true = np.zeros((len(self), len(self.categories)), dtype=bool)
        is_true[self.image_index(), self.labels] = True
        return is_true

    def counts(self) -> np.ndarray:
        """Images of each class, [K]."""
        return np.bincount(self.labels, minlength=len(self.categories))

    def select(self, indices: np.ndarray) -> Labelled:
        """Some of the images, in this order."""
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


def read_folders(root: Path, classes: Sequence[str] | None, faults: list[Fault] | None = None) -> Labelled:
    """A folder of class folders, each searched recursively; without ``classes`` their names are the classes.

    Faults are added to ``faults`` if it is given. Otherwise :class:`detector.errors.DataError` is raised for the first
    one, and for links that lead nowhere.
    """
    folders = _class_folders(root)
    listing = list_images(root)
    own_files: dict[str, list[str]] = {folder: [] for folder in folders}
    stray = [file for file in listing.files if "/" not in file]
    for file in stray:
        words = f"lies outside the class folders ({counted(len(stray), 'image')} in all); move or remove it"
        _report(Fault("file-stray", root / file, words), faults)
    for file in listing.files:
        if "/" in file:
            own_files[file.split("/", 1)[0]].append(file)
    known = folders if classes is None else classes
    label_of = {name: label for label, name in enumerate(known)}
    files: list[str] = []
    labels: list[list[int]] = []
    for folder, own in own_files.items():
        if folder not in label_of:
            words = f"the folder's name {unknown_class(folder, known)}"
            _report(Fault("class-unknown", root / folder, words), faults)
        if not own:
            words = "the class folder has no images; fill it or remove it"
            _report(Fault("folder-empty", root / folder, words), faults)
        files += sorted(own, key=lambda file: file.split("/"))
        labels += [[label_of.setdefault(folder, len(label_of))]] * len(own)
    if faults is None:
        for index, _, reason in check_names(files, root, allow_outside=False):
            raise DataError(f"{root / files[index]}: {reason}; restore the file, or remove the link")
    return _labelled(root, root, label_of, files, labels, listing.note())


def _class_folders(root: Path) -> list[str]:
    """The names of the class folders, sorted. Raises :class:`detector.errors.DataError` where there are none."""
    try:
        folders = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"{root}: {unreadable(root, error, '*')}") from None
    if not folders:
        raise DataError(f"{root}: has no class folders; put the images of each class into a folder of its name")
    for folder in folders:
        if has_surrogates(folder):  # bytes that are not UTF-8
            raise DataError(f"{root / folder}: the folder's name is not UTF-8, and no class can have it; rename it")
    return folders


def read_csv(
    path: Path,
    root: Path,
    classes: Sequence[str] | None,
    multi_label: bool,
    allow_outside: bool = False,
    faults: list[Fault] | None = None,
) -> Labelled:
    """A CSV file with the path of an image (relative to ``root``), then its label, with or without a header.

    With ``multi_label`` a row may have none or several, in separate cells or separated by ``;`` in one. Faults are
    added to ``faults`` if it is given. Otherwise :class:`detector.errors.DataError` is raised for the first one, for a
    path that leads to no file and, unless ``allow_outside``, for one that leads out of ``root``. A file that is not
    CSV, is empty, or has boxes always raises it.
    """
    if what_it_is(path) == BOX_CSV:
        raise unread(path, BOX_CSV)
    header = ""
    names = dict.fromkeys(classes or ())
    line_of: dict[str, int] = {}
    texts: list[list[str]] = []
    for number, (line, (file, *rest)) in enumerate(read_cells(path)):
        if number == 0 and (file.lstrip().startswith("{") or path.suffix.lower() == ".json"):
            raise unread(path, "JSON")
        if number == 0 and file.strip().lower() in PATH_NAMES:
            header = ",".join([file, *rest])
            continue
        labels = [part.strip() for cell in rest for part in (cell.split(";") if multi_label else [cell])]
        labels = [label for label in labels if label]
        if words := _row_fault(file, rest, labels, multi_label, line_of):
            _report(Fault("csv-row", path, words + _header_hint(line), line), faults)
            continue
        for label in labels:
            if classes is not None and label not in names:
                _report(Fault("class-unknown", path, f"label {unknown_class(label, classes)}", line), faults)
            names[label] = None
        line_of[file] = line
        texts.append(labels)
    if not line_of and not faults:
        raise DataError(f"{path}: has no rows{' below its header' if header else ''}")
    files = list(line_of)
    if faults is None:
        for index, is_outside, reason in check_names(files, root, allow_outside):
            file = files[index]
            words, remedy = f"{root / file} {reason}", f"paths are relative to {root}, the split's images in the config"
            if is_outside:
                words = f"{file} {reason} of {root}"
                remedy = f"put the image into the folder, or {ALLOW_OUTSIDE} if you trust the file"
            remedy = Names(files_below(root)).hint(file) or remedy
            raise DataError(f"{path}:{line_of[file]}: {words}; {remedy}{_header_hint(line_of[file])}")
    if not names and not faults:
        raise DataError(f"{path}: has no label in any row")
    label_of = {name: label for label, name in enumerate(sorted(names) if classes is None else names)}
    note = f"the first row is a header: {header}" if header else "without a header"
    return _labelled(path, root, label_of, files, [sorted({label_of[text] for text in row}) for row in texts], note)


def _row_fault(
    file: str, rest: Sequence[str], labels: Sequence[str], multi_label: bool, line_of: dict[str, int]
) -> str:
    """Why a row cannot be used; empty if it can."""
    if not file.strip():
        return "has no path"
    if not rest and (separator := next((sign for sign in ";\t|" if sign in file), "")):
        return f"{file!r} has no comma; separate path and label by one, not by {separator!r}"
    if not multi_label and len(labels) != 1:
        fault = f"{file} has {len(labels)} labels ({', '.join(labels[:4])})" if labels else f"{file} has no label"
        return fault + "; give one, or set model.multi_label=true for several or none"
    if file in line_of:
        return f"{file} is listed twice, first in line {line_of[file]}; keep one row per image"
    return ""


def _header_hint(line: int) -> str:
    """The end of a message about the first row, which may have been meant as a header."""
    return f"; a header would begin with {one_of(PATH_NAMES)}" if line == 1 else ""


def unknown_class(name: str, names: Sequence[str]) -> str:
    """A message that ``name`` is not among ``names``, with the one that may be meant."""
    if len(names) == 1:
        return f"{name!r} is not the one class, which is {names[0]!r}"
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"they are {one_of(names[:10])}{', …' if len(names) > 10 else ''}"
    return f"{name!r} is not among the {counted(len(names), 'class')}; {hint}"


def _report(fault: Fault, faults: list[Fault] | None) -> None:
    if faults is None:
        raise DataError(str(fault))
    faults.append(fault)


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


def divide(labelled: Labelled, fraction: float, seed: int) -> tuple[Labelled, Labelled]:
    """The images to train on and those held back (see :func:`detector.data.split.hold_back`)."""
    names = labelled.files.tolist()
    is_val = hold_back(labelled.source, names, labelled.image_index(), labelled.labels, fraction, seed)
    return labelled.select(np.flatnonzero(~is_val)), labelled.select(np.flatnonzero(is_val))
