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
from detector.data.formats.building import Source
from detector.data.formats.class_folders import Fault, read_csv, read_folders
from detector.data.formats.columns import WITHOUT_SIZE, Ids, Rows
from detector.data.formats.reading import read_rows
from detector.errors import DataError


def read_boxes(name: str, source: Source) -> Split:
    """The split of a source; only one of another kind, or without its images, raises an error."""
    rows = read_rows(source, is_strict=False)
    if rows.root is None:
        raise DataError(f"{source.path}: does not say where its images are; give --images, or data.{name}.images")
    split = Split(
        name=name,
        source=rows.path,
        root=rows.root,
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
        has_ids=rows.has_ids,
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
    is_general = check in ("list-missing", "row-malformed") or (
        check.startswith("category-") and check != "category-dangling"
    )
    return Example(detail=words) if is_general else split.example_of_annotation(row, words)


def read_json(path: Path) -> dict[str, Any]:
    """The tree of a COCO JSON file that ``read_boxes`` has read."""
    return json.loads(path.read_text(encoding="utf-8-sig"))


def as_tree(split: Split) -> dict[str, Any]:
    """What a COCO JSON file of the split would hold."""
    images = zip(split.image_ids.tolist(), split.files, split.sizes.tolist(), strict=True)
    rows = zip(
        split.annotation_ids.tolist(),
        [split.image_ids[index] for index in split.image.tolist()],
        [split.categories[label].id for label in split.label.tolist()],
        split.boxes.tolist(),
        split.areas.tolist(),
        split.is_crowd.tolist(),
        strict=True,
    )
    return {
        "images": [
            {"id": own, "file_name": file} | ({"width": width, "height": height} if width else {})
            for own, file, (width, height) in images
        ],
        "annotations": [
            {"id": own, "image_id": image, "category_id": label, "bbox": box, "area": area, "iscrowd": int(crowd)}
            for own, image, label, box, area, crowd in rows
        ],
        "categories": [{"id": category.id, "name": category.name} for category in split.categories],
    }


def read_labelled(
    name: str,
    annotations: Path | None,
    images: Path,
    classes: Sequence[str] | None,
    multi_label: bool,
    allow_outside: bool = False,
) -> Split:
    """The split of a CSV file of paths and labels, or (None) of a folder of class folders."""
    faults: list[Fault] = []
    if annotations is None:
        labelled = read_folders(images, classes, faults)
    else:
        labelled = read_csv(annotations, images, classes, multi_label, allow_outside, faults=faults)
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
