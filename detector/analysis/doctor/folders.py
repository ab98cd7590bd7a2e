"""Labelled pictures read leniently: a folder a class, or a CSV file of paths and labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from detector.analysis.doctor.columns import Split
from detector.analysis.doctor.findings import Example, Finding, found, in_words
from detector.data.formats.class_labels import class_folders, read_label_table
from detector.data.formats.coco_rows import Category, Ids
from detector.data.listing import list_images


def read_folders(name: str, root: Path, classes: Sequence[str] | None) -> Split:
    """The split of a folder of class folders; raises :class:`~detector.errors.DataError` where there are none."""
    folders = class_folders(root)
    listing = list_images(root)
    stray = [file for file in listing.files if "/" not in file]
    files = [file for file in listing.files if "/" in file]
    names = folders if classes is None else [*classes, *sorted({*folders} - {*classes})]
    label_of = {folder: label for label, folder in enumerate(names)}
    labels = [[label_of[file.split("/", 1)[0]]] for file in files]
    split = _split(name, root, root, names, files, labels, _as_notice(root, listing.note()))
    split.faults += found("file-stray", name, stray, Example)
    filled = {file.split("/", 1)[0] for file in files}
    split.faults += found("folder-empty", name, [folder for folder in folders if folder not in filled], Example)
    split.faults += _unknown_classes(name, folders, classes)
    return split


def _unknown_classes(name: str, names: Sequence[str], classes: Sequence[str] | None) -> Iterator[Finding]:
    unknown = [f"{one!r} is not in data.classes" for one in names if classes is not None and one not in classes]
    yield from found("classes-differ", name, unknown, in_words)


def read_csv(name: str, path: Path, root: Path, classes: Sequence[str] | None, multi_label: bool) -> Split:
    """The split of a CSV file; only one that cannot be read raises :class:`~detector.errors.DataError`."""
    table = read_label_table(path, multi_label)
    rows = list(table.rows)
    faults = [f"line {row.line}: {row.fault}" for row in rows if row.fault]
    files = [row.file for row in rows if not row.fault]
    texts = [row.labels for row in rows if not row.fault]
    used = sorted({text for labels in texts for text in labels})
    names = used if classes is None else [*classes, *sorted({*used} - {*classes})]
    label_of = {text: label for label, text in enumerate(names)}
    labels = [sorted({label_of[text] for text in row}) for row in texts]
    split = _split(name, path, root, names, files, labels, _as_notice(path, table.note()))
    split.faults += found("csv-row", name, faults, in_words)
    split.faults += _unknown_classes(name, used, classes)
    return split


def _as_notice(source: Path, note: str) -> str:
    return f"{source}: {note}" if note else ""


def _split(
    name: str, source: Path, root: Path, names: Sequence[str], files: list[str], labels: list[list[int]], notice: str
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
        notice=notice,
    )
