"""Labelled pictures read leniently: a folder a class, or a CSV file of paths and labels."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from detector.data.coco_rows import Category, Ids
from detector.data.images import IMAGE_SUFFIXES
from detector.doctor.columns import Split
from detector.doctor.findings import Example, Finding, found, in_words
from detector.errors import DataError, unreadable


def list_pictures(root: Path) -> list[str]:
    """All pictures below ``root``, relative to it and sorted; hidden files and folders are other programs'."""
    files = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        inside = os.path.relpath(folder, root)
        for name in names:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:  # noqa: PTH122
                files.append(name if inside == "." else f"{inside}/{name}".replace(os.sep, "/"))
    return sorted(files)


def read_folders(name: str, root: Path, classes: Sequence[str] | None) -> Split:
    """The split of a folder of class folders; raises :class:`~detector.errors.DataError` where there are none."""
    folders = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise DataError(f"{root}: has no class folders; give --annotations, or a folder with a folder a class")
    files = list_pictures(root)
    stray = [file for file in files if "/" not in file]
    files = [file for file in files if "/" in file]
    names = sorted({*folders, *(classes or ())}) if classes is None else [*classes, *sorted({*folders} - {*classes})]
    label_of = {folder: label for label, folder in enumerate(names)}
    split = _split(name, root, root, names, files, [[label_of[file.split("/", 1)[0]]] for file in files])
    split.faults += found("file-stray", name, stray, Example)
    split.faults += _unknown_classes(name, folders, classes)
    return split


def _unknown_classes(name: str, names: Sequence[str], classes: Sequence[str] | None) -> Iterator[Finding]:
    unknown = [f"{one!r} is not in data.classes" for one in names if classes is not None and one not in classes]
    yield from found("classes-differ", name, unknown, in_words)


def read_csv(name: str, path: Path, root: Path, classes: Sequence[str] | None, multi_label: bool) -> Split:
    """The split of a CSV file; only one that cannot be read raises :class:`~detector.errors.DataError`."""
    files: list[str] = []
    texts: list[list[str]] = []
    faults: list[str] = []
    seen: dict[str, int] = {}
    for line, (file, *rest) in _rows(path):
        labels = [
            text.strip() for cell in rest for text in (cell.split(";") if multi_label else [cell]) if text.strip()
        ]
        if not file.strip():
            faults.append(f"line {line}: no path")
        elif file in seen:
            faults.append(f"line {line}: {file} stands in line {seen[file]} already")
        elif not multi_label and len(labels) != 1:
            faults.append(f"line {line}: {file} has {len(labels)} labels")
        else:
            seen[file] = line
            files.append(file)
            texts.append(labels)
    used = sorted({text for labels in texts for text in labels})
    names = used if classes is None else [*classes, *sorted({*used} - {*classes})]
    label_of = {text: label for label, text in enumerate(names)}
    split = _split(name, path, root, names, files, [sorted({label_of[text] for text in row}) for row in texts])
    split.faults += found("csv-row", name, faults, in_words)
    split.faults += _unknown_classes(name, used, classes)
    return split


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of each row below the header."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            if len(next(reader, [])) < 2:
                raise DataError(f"{path}:1: the first row must be a header: path,label")
            yield from ((reader.line_num, cells) for cells in reader if cells)
    except OSError as error:
        raise DataError(f"{path}: {unreadable(path, error, '*.csv')}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: is no CSV file in UTF-8: {error}") from None


def _split(
    name: str, source: Path, root: Path, names: Sequence[str], files: list[str], labels: list[list[int]]
) -> Split:
    image = np.repeat(np.arange(len(files)), [len(own) for own in labels]) if files else np.empty(0, dtype=np.int64)
    label = np.array([one for own in labels for one in own], dtype=np.int64)
    count = len(label)
    return Split(
        name=name,
        source=source,
        root=root,
        has_boxes=False,
        categories=[Category(place, one) for place, one in enumerate(names)],
        files=files,
        image_ids=Ids.counting(len(files)),
        sizes=np.zeros((len(files), 2), dtype=np.int64),
        annotation_ids=Ids.counting(count),
        image=image,
        label=label,
        boxes=np.zeros((count, 4)),
        areas=np.zeros(count),
        is_crowd=np.zeros(count, dtype=bool),
    )
