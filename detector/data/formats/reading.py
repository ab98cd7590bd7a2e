"""The one door to annotations of boxes, in any format: a source becomes columns, and these :class:`Annotations`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from detector.data.formats import box_csv, coco_rows, voc, yolo
from detector.data.formats.annotations import Annotations, from_rows
from detector.data.formats.building import Source
from detector.data.formats.columns import Rows
from detector.structures import Category


def read_annotations(source: Source | str | Path, categories: list[Category] | None = None) -> Annotations:
    """Annotations of a :class:`Source`, or of a path; its classes must be among ``categories`` (of a model), if given.

    ``Annotations.images`` is the folder that file names are relative to, if the source says it. Missing sizes are 0
    (see :func:`detector.data.detection.with_sizes`). Raises :class:`detector.errors.DataError` that names file, line or
    image, value and remedy.
    """
    return from_rows(read_rows(source, is_strict=True), categories)


def read_rows(source: Source | str | Path, is_strict: bool) -> Rows:
    """The columns of a source; without ``is_strict``, with the faults in them instead of an error for the first."""
    source = source if isinstance(source, Source) else Source(Path(source))
    if source.format == "auto":
        source = replace(source, format="coco")
    return FORMATS[source.format](source, is_strict)


# By name: reads a source, and raises the first fault if it is strict.
FORMATS: dict[str, Callable[[Source, bool], Rows]] = {
    "coco": coco_rows.read,
    "yolo": yolo.read,
    "voc": voc.read,
    "csv": box_csv.read,
}


def detect(source: Source) -> str:
    """The format of a source."""
    return "coco" if source.format == "auto" else source.format
