"""Parts of a data set as ``detector split`` writes them: in the format that was read, with all else in it kept."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from detector.data.formats import box_csv, voc
from detector.data.formats.annotations import Annotations
from detector.data.formats.building import Source, read_cells
from detector.errors import DataError
from detector.files.atomic import atomic_write, storing

Parts = Mapping[Path, np.ndarray]  # the file of each part, and which images are in it, [I] bool


def write_coco(source: Source, annotations: Annotations, parts: Parts) -> None:
    """COCO JSON files that differ from the whole one in ``images`` and ``annotations`` alone."""
    tree = json.loads(source.path.read_text(encoding="utf-8-sig"))
    for path, is_in in parts.items():
        images = [image for image, chosen in zip(tree["images"], is_in, strict=True) if chosen]
        ids = {_key(image["id"]) for image in images}
        rows = [row for row in tree["annotations"] if _key(row["image_id"]) in ids]
        with atomic_write(path) as file:
            json.dump(tree | {"images": images, "annotations": rows}, file)


def _key(image_id: Any) -> str:
    """The same for an id that is written as 1, 1.0 or "1"."""
    return str(int(image_id) if isinstance(image_id, float) else image_id)


def write_csv(source: Source, annotations: Annotations, parts: Parts) -> None:
    """CSV files with the rows of their images."""
    table = box_csv.open_table(source.path)
    index_of = {annotations.file_name(index): index for index in range(len(annotations))}
    index_of |= (
        {Path(name).with_suffix("").as_posix(): index for name, index in index_of.items()}
        if table.columns.is_fraction
        else {}
    )
    for path, is_in in parts.items():
        with atomic_write(path) as file:
            writer = csv.writer(file, delimiter=table.separator, lineterminator="\n")
            writer.writerows(table.header)
            writer.writerows(cells for _, cells in table.rows() if is_in[index_of[cells[table.columns.image].strip()]])


def write_yolo(source: Source, annotations: Annotations, parts: Parts) -> None:
    """Lists of images, a ``data.yaml``, and ``data``, a link to the data set, through which its labels are found."""
    root = annotations.images.absolute()
    before, found, _ = f"{root}/".rpartition("/images/")
    base = Path(before) if found else root
    names = {label: category.name for label, category in enumerate(annotations.categories)}
    for path, is_in in parts.items():
        link = path.parent / "data"
        with storing(link):
            if not link.is_symlink():
                link.symlink_to(base, target_is_directory=True)
        with atomic_write(path) as file:
            for index in np.flatnonzero(is_in).tolist():
                file.write(f"./data/{(root / annotations.file_name(index)).relative_to(base)}\n")
    for folder in {path.parent for path in parts}:
        own = {path.stem: path.name for path in parts if path.parent == folder}
        with atomic_write(folder / "data.yaml") as file:
            yaml.safe_dump(own | {"names": names}, file, allow_unicode=True, sort_keys=False)
