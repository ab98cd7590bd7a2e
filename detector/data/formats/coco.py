"""Where COCO annotations are: a JSON file, or a folder as Roboflow writes it."""

from __future__ import annotations

import os
from pathlib import Path

from detector.data.formats.building import PARTS, Source
from detector.data.formats.coco_rows import read_rows
from detector.data.formats.columns import Rows, id_key, show_category
from detector.data.formats.recognition import ROBOFLOW


def read(source: Source, is_strict: bool) -> Rows:
    """The rows of a COCO JSON file, or of a folder as Roboflow writes it: images with the file beside them."""
    file = source.path
    if os.path.isdir(file):  # noqa: PTH112 (Path.is_dir raises for a name that is too long)
        file = _file_of(file, source.part) or file / ROBOFLOW
    rows = read_rows(file, is_strict)
    rows.root = source.images
    if file.name == ROBOFLOW:
        rows.root = source.images or file.parent
        _drop_parent(rows)
    return rows


def has_part(path: Path, part: str) -> bool:
    """Whether a folder has a folder of this part."""
    return os.path.isdir(path) and _file_of(path, part) is not None  # noqa: PTH112 (see read)


def _file_of(folder: Path, part: str) -> Path | None:
    files = (folder / name / ROBOFLOW for name in PARTS[part])
    return next((file for file in files if file.is_file()), None)


def _drop_parent(rows: Rows) -> None:
    """Remove Roboflow's first category, the name of the project: it is the parent of all others, and has no boxes."""
    first = next((index for index, category in enumerate(rows.categories) if id_key(category.id) == 0), None)
    if (
        first is None
        or len(rows.categories) < 2
        or rows.is_used[first]
        or rows.parents != {rows.categories[first].name}
    ):
        return
    rows.skipped.append(f"{show_category(rows.categories[first])}, the parent of the others")
    del rows.categories[first]
    rows.label[rows.label > first] -= 1
