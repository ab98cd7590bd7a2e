"""What every reader of boxes is told, and the columns that readers of formats other than COCO fill."""

from __future__ import annotations

import csv
import math
import os
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from detector.data.formats.coco_values import MAX_SIDE, number_of_text
from detector.data.formats.columns import WITHOUT_SIZE, Faults, Ids, Rows, Texts, is_file_name
from detector.data.images import read_size
from detector.errors import DataError, unreadable
from detector.structures import Category
from detector.system.json_stream import show, show_text

# The usual names of the parts of a data set.
PARTS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
LISTED_AGAIN = "image{s} listed again, read once"  # a note
LARGEST_TEXT = 1 << 26  # bytes of a label or XML file: far more than any image's objects


@dataclass(frozen=True)
class Source:
    """Annotations, and how to read them."""

    path: Path  # a file or a folder
    images: Path | None = None  # the folder that file names are relative to; None: where the format has it
    format: str = "auto"  # a key of :data:`detector.data.formats.reading.FORMATS`
    part: str = "train"  # train, val or test, of what holds several
    one_based: bool | None = None  # Pascal VOC: whether the first pixel is 1; None: by the corners
    exif: str = "auto"  # data.exif, where sizes come from the image files
    allow_outside: bool = False  # data.allow_outside


class Builder:
    """Columns of images and boxes, with the faults in the rows that they are read from."""

    def __init__(self, source: Source, is_strict: bool) -> None:
        self.source, self.is_strict = source, is_strict
        self.notes: Counter[str] = Counter()
        self.faults: dict[str, Faults] = {}
        self.names = bytearray()
        self.name_ends, self.widths, self.heights, self.image, self.label = (array("q") for _ in range(5))
        self.corners, self.areas = array("d"), array("d")
        self.is_crowd = array("b")
        self.classes: dict[str, int] = {}  # names in the order of their first object, where only objects name them

    def fault(self, path: Path | str, line: int, words: str) -> None:
        """Report a row, by its file and line (0: the whole file), that cannot be read."""
        text = f"{path}:{line}: {words}" if line else f"{path}: {words}"
        if self.is_strict:
            raise DataError(text)
        faults = self.faults.setdefault("row-malformed", Faults())
        faults.rows.append(len(faults.rows))
        faults.words.append(text)  # all of them: what --fix leaves out is listed

    def add_image(self, name: str, width: int = 0, height: int = 0) -> int:
        """Add an image by its name relative to the root, with its size where that is known; returns its index."""
        if not is_file_name(name):
            raise DataError(f"{self.source.path}: the file name {show(name)} is not UTF-8 text; rename the file")
        self.names += name.encode()
        self.name_ends.append(len(self.names))
        self.widths.append(width)
        self.heights.append(height)
        return len(self.widths) - 1

    def whole_size(self, path: Path | str, line: int, width: str | None, height: str | None) -> tuple[int, int]:
        """Width and height as texts give them; 0, 0 where they are missing or 0, or else no size of an image."""
        sides = [number_of_text((side or "0").strip() or "0") for side in (width, height)]
        if any(side is None or side != int(side) or not 0 <= side <= MAX_SIDE for side in sides):
            self.fault(path, line, f"width {show(width)}, height {show(height)} must be positive integers")
            return 0, 0
        if not all(sides):
            self.notes[WITHOUT_SIZE] += 1
            return 0, 0
        return int(sides[0]), int(sides[1])  # type: ignore[arg-type]

    def numbers(self, path: Path | str, line: int, texts: Sequence[str]) -> tuple[float, ...]:
        """The finite numbers that texts spell; none, with a fault, where one does not."""
        try:
            numbers = tuple(map(float, texts))
        except ValueError:
            numbers = (math.nan,)
        if all(map(math.isfinite, numbers)):
            return numbers
        self.fault(path, line, f"the box {show(list(texts))} must be four finite numbers")
        return ()

    def label_of(self, name: str) -> int:
        """The index of a class that objects name."""
        return self.classes.setdefault(name, len(self.classes))

    def shift(self, *moves: float) -> None:
        """Move all left, top, right and bottom sides."""
        corners = np.asarray(self.corners).reshape(-1, 4)
        corners += moves

    def size_of(self, path: Path) -> tuple[int, int]:
        """Width and height of an image file, for boxes that are fractions; 0, 0 and a fault where it has none."""
        try:
            height, width = read_size(path, self.source.exif)
        except DataError as error:
            self.fault(*_without_place(error, path))
            return 0, 0
        return width, height

    def add_box(
        self, image: int, label: int, corners: tuple[float, ...], area: float | None = None, is_crowd: bool = False
    ) -> None:
        """Add a box xyxy in pixels; ``area`` is that of its polygon, or else the box's."""
        self.image.append(image)
        self.label.append(label)
        self.corners.extend(corners)
        self.areas.append(math.nan if area is None else area)
        self.is_crowd.append(is_crowd)

    def named_rows(self, root: Path, form: str, ids: dict[str, int] | None = None) -> Rows:
        """:meth:`rows` with the classes that objects name, sorted; their ids count from 1 unless ``ids`` has them."""
        names = sorted(self.classes)
        order = np.empty(len(names), dtype=np.int64)
        order[[self.classes[name] for name in names]] = np.arange(len(names))
        label = np.asarray(self.label)
        label[:] = order[label]
        categories = [
            Category(number if ids is None else ids[name], name) for number, name in enumerate(names, start=1)
        ]
        return self.rows(categories, root, form)

    def rows(self, categories: list[Category], root: Path, form: str) -> Rows:
        """The columns, without exact duplicates; ``form`` says how the source was read."""
        if not len(self.widths) and not self.faults:
            raise DataError(f"{self.source.path}: has no images ({form}); give the data that has them")
        image, label, is_crowd = np.asarray(self.image), np.asarray(self.label), np.asarray(self.is_crowd).view(bool)
        boxes, areas = np.asarray(self.corners).reshape(-1, 4), np.asarray(self.areas)
        boxes[:, 2:] -= boxes[:, :2]
        is_of_box = np.isnan(areas)
        areas[is_of_box] = boxes[is_of_box, 2:].prod(axis=1)
        if again := _equals_of_earlier(image, label, boxes):
            self.notes["exact duplicate{s} of a box, removed"] += len(again)
            image, label, boxes, areas, is_crowd = (
                np.delete(column, again, axis=0) for column in (image, label, boxes, areas, is_crowd)
            )
        names = Texts(np.frombuffer(self.names, dtype=np.uint8), np.asarray(self.name_ends))
        sizes = {"heights": np.asarray(self.heights), "widths": np.asarray(self.widths)}
        columns = {"image": image, "label": label, "boxes_xywh": boxes, "areas": areas, "is_crowd": is_crowd}
        rows = numbered_rows(self.source.path, categories, names, sizes | columns, self.notes, root, form)
        return replace(rows, faults=self.faults)


def numbered_rows(
    path: Path,
    categories: list[Category],
    names: Texts,
    columns: dict[str, np.ndarray],
    notes: Counter[str],
    root: Path,
    form: str,
) -> Rows:
    """Columns of a source that has no ids: images and annotations are numbered from 1.

    ``columns`` are the heights, widths, image, label, boxes_xywh, areas and is_crowd of :class:`Rows`.
    """
    ids = np.array([category.id for category in categories], dtype=np.int64)
    label = columns["label"]
    return Rows(
        path=path,
        categories=categories,
        # From 1: COCO's own evaluation takes an annotation 0 for none.
        image_ids=Ids.counting(len(names.ends), first=1),
        names=names,
        annotation_ids=Ids.counting(len(label), first=1),
        of_image=columns["image"] + 1,
        of_category=ids[label] if len(ids) else label,
        **columns,
        notes=notes,
        skipped=[],
        faults={},
        text_codes={},
        root=root,
        form=form,
        has_ids=False,
    )


def stamp(path: str) -> tuple[int, int] | None:
    """Size and time of a file, which change with its content; None where there is none."""
    try:
        status = os.stat(path)  # noqa: PTH116 (a Path for each of 100,000 is slow)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def read_text(path: Path, pattern: str) -> str:
    """A text file in UTF-8; ``pattern`` is that of such files. Raises :class:`detector.errors.DataError`."""
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_TEXT + 1)
        if len(data) > LARGEST_TEXT:
            raise DataError(f"{path}: is larger than {LARGEST_TEXT:,} bytes")
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL in it
        raise DataError(f"{show_text(str(path))}: {unreadable(path, error, pattern)}") from None


def read_cells(path: Path, separator: str = ",") -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of each row of a CSV file that is not empty."""
    line = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True, delimiter=separator)
            for cells in reader:
                line = reader.line_num
                if cells:
                    yield line, cells
    except csv.Error as error:
        raise DataError(f"{path}: is not a CSV file: {error} after line {line}; is a quote not closed?") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text ({error.reason} after line {line}); save it as UTF-8") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL in it
        raise DataError(f"{show_text(str(path))}: {unreadable(path, error, '*.csv')}") from None


def _without_place(error: DataError, path: Path) -> tuple[Path, int, str]:
    return path, 0, str(error).removeprefix(f"{path}: ")


def _equals_of_earlier(image: np.ndarray, label: np.ndarray, boxes: np.ndarray) -> list[int]:
    """Indices of the boxes that equal an earlier one of the same image and class."""
    columns = (*boxes.T, label, image)
    rows = _alike(columns)  # few, so that sorting by all columns takes no memory
    columns = [column[rows] for column in columns]
    order = np.lexsort(columns)  # stable: of equals, the earliest comes first
    is_again = np.ones(max(len(order) - 1, 0), dtype=bool)
    for column in columns:
        in_order = column[order]
        is_again &= in_order[1:] == in_order[:-1]
    return rows[order[1:][is_again]].tolist()


def _alike(columns: Sequence[np.ndarray]) -> np.ndarray:
    """The rows, ascending, whose hash another row has: all equal ones, and hardly any others."""
    hashes = np.zeros(len(columns[0]), dtype=np.uint64)
    for column in columns:
        hashes *= np.uint64(0x9E3779B97F4A7C15)
        hashes += (column + 0).view(np.uint64)  # -0.0 becomes 0.0
        hashes ^= hashes >> np.uint64(29)
    in_order = np.sort(hashes)  # not argsort, which would take another column's memory
    again = in_order[1:][in_order[1:] == in_order[:-1]]
    return np.flatnonzero(np.isin(hashes, again))
