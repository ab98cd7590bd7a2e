"""Parts of a data set as ``detector split`` writes them: in the format that was read, with all else in it kept."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import yaml

from detector.data.formats import box_csv, voc
from detector.data.formats.annotations import Annotations
from detector.data.formats.building import Source
from detector.data.formats.columns import id_key
from detector.data.names import leads_out
from detector.structures import Id
from detector.system.atomic import atomic_write, check_new, storing

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


def _key(image_id: Any) -> Id:
    """The same for all ways of writing one id."""
    return id_key(int(image_id) if isinstance(image_id, float) else image_id)


def write_csv(source: Source, annotations: Annotations, parts: Parts) -> None:
    """CSV files with the rows of their images, as they are, and the file of their classes."""
    classes = source.path.parent / box_csv.CLASSES_FILE
    folders = [own for own in {path.parent: None for path in parts} if not own.samefile(classes.parent)]
    if classes.is_file():
        check_new(*(folder / classes.name for folder in folders))
        for folder in folders:
            with storing(folder / classes.name):
                shutil.copy(classes, folder)
    layout = box_csv.layout_of(source.path)
    index_of = {annotations.file_name(index): index for index in range(len(annotations))}
    if layout.columns.is_id:
        index_of = {
            PurePosixPath(name).with_suffix("").as_posix(): index for name, index in index_of.items()
        } | index_of
    for path, is_in in parts.items():
        with atomic_write(path) as file:
            writer = csv.writer(file, delimiter=layout.separator, lineterminator="\n")
            writer.writerows([layout.header] if layout.header else [])
            for _, cells in layout.rows(source.path):
                if is_in[index_of[box_csv.plain_name(cells[layout.columns.image].strip())]]:
                    writer.writerow(cells)


def write_yolo(source: Source, annotations: Annotations, parts: Parts) -> None:
    """Lists of images, a ``data.yaml``, and ``data``, a link to the data set, through which its labels are found."""
    root = annotations.images.absolute()
    before, is_below, _ = f"{root}/".rpartition("/images/")
    base = Path(before) if is_below else root  # labels are looked for beside the last folder ``images``
    names = {label: category.name for label, category in enumerate(annotations.categories)}

    def line(index: int) -> str:
        name = annotations.file_name(index)
        if leads_out(name):
            return os.path.normpath(root / name)
        return f"./data/{(root / name).relative_to(base)}"

    folders = {path.parent: None for path in parts}
    check_new(*(folder / name for folder in folders for name in ("data", "data.yaml")))
    for path, is_in in parts.items():
        _write_lines(path, is_in, line)
    for folder in folders:
        _link(folder / "data", base)
        own = {path.stem: path.name for path in parts if path.parent == folder}
        with atomic_write(folder / "data.yaml") as file:
            yaml.safe_dump(own | {"names": names}, file, allow_unicode=True, sort_keys=False)


def write_voc(source: Source, annotations: Annotations, parts: Parts) -> None:
    """Lists of images as in ``ImageSets/Main``, and links to the data set, through which their files are found."""
    layout, files = voc.layout_of(source), voc.listed_files(source)
    roots = {path.parents[2]: None for path in parts}  # of root/ImageSets/Main/train.txt
    check_new(*(root / name for root in roots for name in ("Annotations", "JPEGImages")))
    for path, is_in in parts.items():
        _write_lines(path, is_in, lambda index: files[index][:-4])
    for root in roots:
        _link(root / "Annotations", layout.annotations)
        _link(root / "JPEGImages", layout.images)


def _write_lines(path: Path, is_in: np.ndarray, line: Callable[[int], str]) -> None:
    with atomic_write(path) as file:
        file.writelines(f"{line(index)}\n" for index in np.flatnonzero(is_in).tolist())


def _link(path: Path, target: Path) -> None:
    with storing(path):
        path.symlink_to(target.absolute(), target_is_directory=True)


class Parted(NamedTuple):
    """How the parts of a data set are written."""

    suffix: str  # of the file of a part
    write: Callable[[Source, Annotations, Parts], None]
    folder: str = ""  # of the file, below that of the parts


PART_WRITERS = {
    "coco": Parted(".json", write_coco),
    "yolo": Parted(".txt", write_yolo),
    "voc": Parted(".txt", write_voc, "ImageSets/Main"),
    "csv": Parted(".csv", write_csv),
}
