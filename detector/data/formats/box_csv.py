"""CSV files with a row per box: keras-retinanet's, DeepForest's, OpenImages', TensorFlow's.

With a header, the columns are found by their names; without one they are ``path,x1,y1,x2,y2,class``. Corners are pixels
from 0, or (OpenImages, by ``ImageID``) fractions of the image. An image without objects is a row without a box.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from detector.data.formats.building import Builder, Source, read_cells
from detector.data.formats.columns import Rows, is_file_name
from detector.data.formats.recognition import CORNERS
from detector.data.listing import list_images
from detector.data.names import ALLOW_OUTSIDE, leads_out
from detector.errors import DataError
from detector.system.json_stream import show, show_text

# Names of columns in lower case, without spaces and underscores; the first of a row that a header has is taken.
IMAGE = ("imagepath", "filename", "path", "filepath", "file", "image", "imagename", "imagefile", "imgpath", "imageid")
CLASS = ("label", "class", "classname", "labelname", "name", "category", "categoryname", "classid", "categoryid")
SIZE = ("width", "height")
CLASSES_FILE = "classes.csv"  # keras-retinanet's, beside annotations without a header: name,id


class Columns(NamedTuple):
    """The index of each column; -1: there is none."""

    image: int
    corners: tuple[int, ...]
    label: int
    size: tuple[int, ...] = ()  # width, height
    is_group: int = -1
    is_fraction: bool = False
    is_id: bool = False  # names of images may lack the suffix


PLAIN = Columns(0, (1, 2, 3, 4), 5)


class Layout(NamedTuple):
    """How a CSV file of boxes is written."""

    separator: str
    header: list[str] | None  # its first row, if that names the columns
    columns: Columns

    def rows(self, path: Path) -> Iterator[tuple[int, list[str]]]:
        """Line number and cells of each row below the header."""
        return islice(read_cells(path, self.separator), int(self.header is not None), None)


def layout_of(path: Path) -> Layout:
    """The layout of a CSV file, by its first row."""
    separator = _separator(path)
    first = next(read_cells(path, separator), None)
    if first is None:
        raise DataError(f"{path}: is empty")
    columns = _columns_of(path, first[1])
    return Layout(separator, None, PLAIN) if columns is None else Layout(separator, first[1], columns)


def read(source: Source, is_strict: bool) -> Rows:
    """The images and boxes of a CSV file; images are those that it names."""
    path, root = source.path, source.images or source.path.parent
    layout = layout_of(path)
    form = "CSV without a header: path,x1,y1,x2,y2,class"
    if layout.header:
        form = f"CSV with the header {show_text(layout.separator.join(layout.header))}"
    ids = None if layout.header else _class_ids(path.parent / CLASSES_FILE)
    reader = _Reader(Builder(source, is_strict), root, layout.columns, ids)
    point = "," if layout.separator == ";" else "."  # where commas do not separate, they may be decimal points
    for line, cells in layout.rows(path):
        reader.add_row(line, [cell.strip() for cell in cells], point)
    return reader.builder.named_rows(root, form + (f"; ids of {CLASSES_FILE}" if ids else ""), ids)


def has_part(path: Path, part: str) -> bool:
    """A CSV file is one set."""
    return False


def plain_name(name: str) -> str:
    """The name of an image without ``./`` before it, with and without which one file may name it."""
    return re.sub(r"^(\./)+", "", name)


class _Reader:
    """Adds the rows of a file to a builder."""

    def __init__(self, builder: Builder, root: Path, columns: Columns, ids: dict[str, int] | None) -> None:
        self.builder, self.root, self.columns, self.ids = builder, root, columns, ids
        self.path = builder.source.path
        self.index_of: dict[str, int] = {}
        names = list_images(root).files if columns.is_id else []
        self.name_of = {os.path.splitext(name)[0]: name for name in names}  # noqa: PTH122

    def add_row(self, line: int, cells: list[str], point: str) -> None:
        builder, columns = self.builder, self.columns
        needed = max(columns.image, *columns.corners, columns.label) + 1
        padded = cells + [""] * (max(needed, columns.is_group + 1, *(side + 1 for side in columns.size)) - len(cells))
        name, label, given = (
            padded[columns.image],
            padded[columns.label],
            ["" if padded[one].lower() == "nan" else padded[one].replace(point, ".") for one in columns.corners],
        )
        if not name or not is_file_name(name):
            builder.fault(self.path, line, f"{show(cells)} names no image")
        elif len(cells) < needed and any((label, *given)):
            builder.fault(self.path, line, f"{show(cells)} has {len(cells)} cells; a box needs {needed}")
        else:
            image = self.image_of(name, line, padded)
            if not any(given):
                builder.notes["row{s} with a class and no box, as an image without objects"] += bool(label)
            elif corners := builder.numbers(self.path, line, given):
                self.add_box(image, line, label, corners, columns.is_group >= 0 and padded[columns.is_group] == "1")

    def image_of(self, name: str, line: int, cells: list[str]) -> int:
        """The index of an image, which is new at its first row."""
        builder, columns = self.builder, self.columns
        name = plain_name(name)
        name = self.name_of.get(name, name)
        if name not in self.index_of:
            size = (0, 0)
            if columns.size:
                size = builder.whole_size(self.path, line, *(cells[side] for side in columns.size))
            elif columns.is_fraction:
                size = self.size_of(name, line)
            self.index_of[name] = builder.add_image(name, *size)
        return self.index_of[name]

    def size_of(self, name: str, line: int) -> tuple[int, int]:
        if leads_out(name) and not self.builder.source.allow_outside:
            self.builder.fault(self.path, line, f"{show_text(name)} leads out of {self.root}; {ALLOW_OUTSIDE}")
            return 0, 0
        return self.builder.size_of(self.root / name)

    def add_box(self, image: int, line: int, label: str, corners: tuple[float, ...], is_group: bool) -> None:
        builder = self.builder
        size = (builder.widths[image], builder.heights[image])
        if not any(corners):
            builder.notes["box{es} of zeros, as an image without objects"] += 1
        elif not label:
            builder.fault(self.path, line, "the box has no class")
        elif self.ids is not None and label not in self.ids:
            builder.fault(self.path, line, f"class {show_text(label)} is not in {CLASSES_FILE}; add or correct it")
        elif not self.columns.is_fraction:
            builder.add_box(image, builder.label_of(label), corners)
        elif any(not 0 <= one <= 1 for one in corners):
            builder.fault(self.path, line, f"the box {show(list(corners))} must be fractions of the image, 0 to 1")
        elif size != (0, 0):
            pixels = tuple(one * side for one, side in zip(corners, size * 2, strict=True))
            builder.add_box(image, builder.label_of(label), pixels, is_crowd=is_group)


def _columns_of(path: Path, header: Sequence[str]) -> Columns | None:
    """The columns of a header; None for a first row that is none. Raises where columns are missing."""
    names = [re.sub(r"[\s_]", "", name).lower() for name in header]

    def first_of(known: Sequence[str]) -> int:
        return next((names.index(name) for name in known if name in names), -1)

    corners = next((tuple(map(names.index, known)) for known in CORNERS if set(known) <= set(names)), ())
    image, label = first_of(IMAGE), first_of(CLASS)
    if corners and image >= 0 and label >= 0:
        size = tuple(map(names.index, SIZE)) if set(SIZE) <= set(names) else ()
        is_openimages = header[image].strip().lower() == "imageid"
        is_group = names.index("isgroupof") if "isgroupof" in names else -1
        return Columns(image, corners, label, size, is_group, is_openimages, names[image] == "imageid")
    if len(header) == 6 and image < 0 and label < 0 and not corners:
        return None
    missing = [
        what
        for what, is_there in (
            ("the image (image_path, …)", image >= 0),
            ("the box (xmin, ymin, xmax, ymax)", corners),
            (f"the class ({CLASS[0]}, …)", label >= 0),
        )
        if not is_there
    ]
    raise DataError(
        f"{path}:1: {show(list(header))} is neither a header with {', '.join(missing)} nor a row path,x1,y1,x2,y2,class"
    )


def _class_ids(path: Path) -> dict[str, int] | None:
    """The ids of the classes by name, if there is such a file."""
    if not path.is_file():
        return None
    ids: dict[str, int] = {}
    for line, cells in read_cells(path):
        name = cells[0].strip()
        if len(cells) != 2 or not cells[1].strip().isdecimal() or name in ids or int(cells[1]) in ids.values():
            raise DataError(f"{path}:{line}: {show(cells)} must be a class and its id, each only once: name,id")
        ids[name] = int(cells[1])
    return ids


def _separator(path: Path) -> str:
    """Comma, semicolon or tab: what the first row has most of."""
    first = next((cells[0] for _, cells in read_cells(path, "\0")), "")
    return max(",;\t", key=first.count)
