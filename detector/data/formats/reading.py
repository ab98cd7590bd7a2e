"""The one door to annotations of boxes, in any format: a source becomes columns, and these :class:`Annotations`."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from detector.data.formats import box_csv, coco, voc, yolo
from detector.data.formats.building import PARTS, Source
from detector.data.formats.columns import Rows
from detector.data.formats.recognition import formats_of, naming_format
from detector.errors import DataError, one_of
from detector.structures import Category

if TYPE_CHECKING:
    from detector.data.formats.annotations import Annotations

BY_SUFFIX = {".json": "coco", ".yaml": "yolo", ".yml": "yolo"}


def read_annotations(source: Source | str | Path, categories: list[Category] | None = None) -> Annotations:
    """Annotations of a :class:`Source`, or of a path; its classes must be among ``categories`` (of a model), if given.

    ``Annotations.images`` is the folder that file names are relative to, if the source says it. Missing sizes are 0
    (see :func:`detector.data.detection.with_sizes`). Raises :class:`detector.errors.DataError` that names file, line or
    image, value and remedy.
    """
    from detector.data.formats.annotations import from_rows  # imports torch, which reading rows does without

    return from_rows(read_rows(source, is_strict=True), categories)


def read_rows(source: Source | str | Path, is_strict: bool, keep_in: Path | None = None) -> Rows:
    """The columns of a source; without ``is_strict``, with the faults in them instead of an error for the first.

    What is read strictly from a file per image is kept in the folder ``keep_in``, if given, and not read again there
    until something changes.
    """
    source = source if isinstance(source, Source) else Source(Path(source))
    with naming_format(source.path, has_boxes=True):
        reader = FORMATS[detect(source)]
        _check_part(source, reader)
        if keep_in is None or reader not in FILE_PER_IMAGE:
            return reader.read(source, is_strict)
        from detector.data.formats.keeping import kept_rows

        return kept_rows(keep_in, source, reader.state(source), lambda: reader.read(source, is_strict=True))


def _check_part(source: Source, reader: ModuleType) -> None:
    """Raises where a source has other parts but not the one to read, as all images would be taken for it."""
    if reader.has_part(source.path, source.part):
        return
    if others := [part for part in PARTS if reader.has_part(source.path, part)]:
        raise DataError(
            f"{source.path}: has no {source.part}, but {' and '.join(others)}; give the folder, the file or the list of"
            f" images to take as {source.part}"
        )


def detect(source: Source) -> str:
    """The format of a source: the given one, or what its path holds. Raises where that may be several, or none."""
    if source.format == "folder":
        raise DataError(f"{source.path}: data.format=folder is one folder per class, which has no boxes")
    if source.format != "auto":
        return source.format
    is_folder = os.path.isdir(source.path)  # noqa: PTH112 (Path.is_dir raises for a name that is too long)
    if not is_folder and (known := BY_SUFFIX.get(source.path.suffix.lower())):
        return known
    found = formats_of(source.path)
    if len(found) > 1:
        said = one_of(f"{name} ({path})" for name, path in found.items())
        raise DataError(
            f"{source.path}: may be {said}; say which one by data.format (--from of a command), or give the"
            " annotations of one"
        )
    if not found and is_folder:
        files = sorted(source.path.glob("*.json"))
        raise DataError(
            f"{source.path}: is a folder; give a file, as {files[0]}"
            if files
            else f"{source.path}: holds no annotations of a known format; give a COCO JSON file, a CSV file of boxes,"
            " YOLO's data.yaml, or a folder of Pascal VOC's XML files; masks are for task segmentation, with --config"
        )
    return next(iter(found), "csv" if source.path.suffix.lower() == ".csv" else "coco")  # the reader says what is wrong


def has_part(source: Source, part: str) -> bool:
    """Whether a source holds the part (train, val or test) apart from others."""
    return FORMATS[detect(source)].has_part(source.path, part)


FILE_PER_IMAGE = (yolo, voc)  # these have ``state(source)``: all that reading depends on, without the labels' content
# By name, the reader: ``read(source, is_strict)`` raises the first fault or collects them, and ``has_part(path, part)``
# tells whether a path holds train, val or test apart from others.
FORMATS: dict[str, ModuleType] = {"coco": coco, "yolo": yolo, "voc": voc, "csv": box_csv}
