"""Class folders and CSV files of paths and labels: what training and the doctor both ask of them."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from detector.data.formats.recognition import BOX_CSV, has_boxes, unread
from detector.errors import DataError, one_of

# A first row is a header if it begins with one of these, else it is data.
PATH_NAMES = ("path", "file", "file_name", "filename", "file_path", "filepath", "image", "image_path", "image_name")


class LabelRow(NamedTuple):
    """A row of a CSV file of paths and labels; ``fault`` says why it cannot be used, and is empty if it can."""

    line: int
    file: str
    labels: list[str]
    fault: str


class LabelTable(NamedTuple):
    header: str  # as it stands in the file; empty if the first row is data
    rows: Iterator[LabelRow]

    def note(self) -> str:
        """What was made of the first row, in one line."""
        return f"the first row is a header: {self.header}" if self.header else "without a header"


def read_label_table(path: Path, multi_label: bool) -> LabelTable:
    """The rows of a CSV file: the path of an image, then its label; with ``multi_label`` several, or none.

    Several labels stand in cells of their own, or separated by ``;`` in one. Raises
    :class:`~detector.errors.DataError` for a file that is not CSV, is empty, or has boxes.
    """
    cells = _cells(path)
    first = list(islice(cells, 20))
    if has_boxes([row for _, row in first]):
        raise unread(path, BOX_CSV)
    header = ""
    if first and first[0][1][0].strip().lower() in PATH_NAMES:
        header = ",".join(first.pop(0)[1])
    if not first:
        raise DataError(f"{path}: has no rows{' below its header' if header else ''}")
    return LabelTable(header, _rows(chain(first, cells), multi_label))


def _rows(cells: Iterator[tuple[int, list[str]]], multi_label: bool) -> Iterator[LabelRow]:
    line_of: dict[str, int] = {}
    for line, (file, *rest) in cells:
        labels = [part.strip() for cell in rest for part in (cell.split(";") if multi_label else [cell])]
        labels = [label for label in labels if label]
        fault = ""
        if not file.strip():
            fault = "has no path"
        elif not rest and (separator := next((sign for sign in ";\t|" if sign in file), "")):
            fault = f"{file!r} has no comma; separate path and label by one, not by {separator!r}"
        elif not multi_label and len(labels) != 1:
            fault = f"{file} has {len(labels)} labels ({', '.join(labels[:4])})" if labels else f"{file} has no label"
            fault += "; give one, or set model.multi_label=true for several or none"
        elif file in line_of:
            fault = f"{file} is listed twice, first in line {line_of[file]}; keep one row per image"
        else:
            line_of[file] = line
        yield LabelRow(line, file, labels, fault)


def _cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of each row that is not empty."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            yield from ((reader.line_num, cells) for cells in reader if cells)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: is not a CSV file in UTF-8: {error}") from None


def header_hint(line: int) -> str:
    """What to add to a fault of the first row, which may have been meant as a header."""
    return f"; a header would begin with {one_of(PATH_NAMES)}" if line == 1 else ""


def class_folders(root: Path) -> list[str]:
    """The names of the class folders, sorted. Raises :class:`~detector.errors.DataError` where there are none."""
    folders = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise DataError(f"{root}: has no class folders; put the images of each class into a folder of its name")
    for folder in folders:
        if any("\ud800" <= character <= "\udfff" for character in folder):  # bytes that Python kept as they were
            raise DataError(f"{root / folder}: the folder's name is not UTF-8, and no class can have it; rename it")
    return folders
