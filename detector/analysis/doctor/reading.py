"""Data sets as the doctor reads them: by training's readers, with every fault as a finding."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detector.analysis.doctor.columns import Split
from detector.analysis.doctor.findings import EXAMPLES, Example, Finding, findings_of, in_words
from detector.data.formats.class_folders import Fault, read_csv, read_folders
from detector.data.formats.coco_rows import read_rows
from detector.data.formats.columns import WITHOUT_SIZE, Ids, Rows


def read_coco(name: str, path: Path, root: Path) -> Split:
    """The split of a COCO JSON file; only a file of another kind raises :class:`detector.errors.DataError`."""
    rows = read_rows(path, is_strict=False)
    split = Split(
        name=name,
        source=path,
        root=root,
        has_boxes=True,
        categories=rows.categories,
        files=[rows.names[index] for index in range(len(rows.names))],
        image_ids=rows.image_ids,
        sizes=np.stack([rows.widths, rows.heights], axis=1),
        annotation_ids=rows.annotation_ids,
        image=rows.image,
        label=rows.label,
        boxes=rows.boxes_xywh,
        areas=rows.areas,
        is_crowd=rows.is_crowd,
        notice=rows.notice,
        rows=rows,
    )
    split.faults = list(_findings(split, rows))
    return split


def _findings(split: Split, rows: Rows) -> Iterator[Finding]:
    for check, faults in rows.faults.items():
        examples = [_example(split, check, row, words) for row, words in zip(faults.rows, faults.words, strict=False)]
        yield Finding(check, split.name, len(faults.rows), examples[:EXAMPLES])
    # Images without a size are checked with their files.
    notes = [
        note.format(s="s", es="es") + f": {count:,}"
        for note, count in rows.notes.items()
        if count and note != WITHOUT_SIZE
    ]
    yield from findings_of("read-otherwise", split.name, notes, in_words)


def _example(split: Split, check: str, row: int, words: str) -> Example:
    if check in ("image-malformed", "image-id-duplicate", "size-malformed"):
        return Example(split.files[row] or f"image {row + 1} of the list", detail=words)
    is_general = check == "list-missing" or (check.startswith("category-") and check != "category-dangling")
    return Example(detail=words) if is_general else split.example_of_annotation(row, words)


def read_json(path: Path) -> dict[str, Any]:
    """The tree of a file that ``read_coco`` has read."""
    return json.loads(path.read_text(encoding="utf-8-sig"))


def read_labelled(
    name: str, annotations: Path | None, images: Path, classes: Sequence[str] | None, multi_label: bool
) -> Split:
    """The split of a CSV file of paths and labels, or (None) of a folder of class folders."""
    faults: list[Fault] = []
    if annotations is None:
        labelled = read_folders(images, classes, faults)
    else:
        labelled = read_csv(annotations, images, classes, multi_label, faults=faults)
    num_images, num_labels = len(labelled), len(labelled.labels)
    split = Split(
        name=name,
        source=labelled.source,
        root=images,
        has_boxes=False,
        categories=labelled.categories,
        files=[os.fsdecode(file) for file in labelled.files],
        image_ids=Ids.counting(num_images),
        sizes=np.zeros((num_images, 2), dtype=np.int64),
        annotation_ids=Ids.counting(num_labels),
        image=labelled.image_index(),
        label=labelled.labels,
        boxes=np.zeros((num_labels, 4)),
        areas=np.zeros(num_labels),
        is_crowd=np.zeros(num_labels, dtype=bool),
        notice=f"{labelled.source}: {labelled.note}" if labelled.note else "",
    )
    for check in dict.fromkeys(fault.check for fault in faults):
        own = [fault for fault in faults if fault.check == check]
        split.faults += findings_of(check, name, own, lambda fault: _example_of_label(fault, images))
    return split


def _example_of_label(fault: Fault, root: Path) -> Example:
    if fault.line:
        return Example(detail=f"line {fault.line}: {fault.words}")
    return Example(fault.path.relative_to(root).as_posix(), detail=fault.words)
