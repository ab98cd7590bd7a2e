"""Annotation formats recognised by their content: those that are read, and others so that the error names them."""

from __future__ import annotations

import contextlib
import csv
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from detector.errors import DataError

PIECE = 1 << 16  # bytes read at the beginning and at the end of a file
CORNERS = (("xmin", "ymin", "xmax", "ymax"), ("x1", "y1", "x2", "y2"), ("left", "top", "right", "bottom"))
SIDES = (("x", "y", "width", "height"), ("x", "y", "w", "h"), ("left", "top", "width", "height"))
BOX_CSV = "a CSV file of boxes"
RESULTS = "COCO results, which are detections and not annotations"
SUPPORTED = {"YOLO's data.yaml": "yolo", "YOLO labels": "yolo", "Pascal VOC XML": "voc", BOX_CSV: "csv"}
ROBOFLOW = "_annotations.coco.json"  # in the folder of its images
MOST_ENTRIES = 2000  # of a folder that are looked at
LISTS: dict[str, set[str]] = {  # by keys that the file must all have
    RESULTS: {"image_id", "bbox", "score"},
    "CreateML JSON": {"image", "annotations", "coordinates"},
    "Label Studio's JSON": {"data", "annotations", "result"},
}
OBJECTS: dict[str, set[str]] = {
    "COCO panoptic annotations": {"images", "segments_info"},
    "labelme's JSON": {"shapes", "imagePath"},
    "VIA's JSON": {"filename", "regions"},
}
WITHOUT_BOXES = {"caption": "COCO captions, which have no boxes", "keypoints": "COCO keypoints without boxes"}


def what_it_is(path: Path) -> str | None:
    """The format of an annotation file or a folder of them, if it is a known one other than COCO JSON."""
    if os.path.isdir(path):  # noqa: PTH112 (Path.is_dir raises for a name that is too long)
        return _folder(path)
    try:
        with path.open("rb") as file:
            head = file.read(PIECE)
            file.seek(max(len(head), path.stat().st_size - PIECE))
            text = (head + b"\n" + file.read()).decode("utf-8-sig", errors="replace").lstrip()
    except (OSError, ValueError):  # ValueError: a path with a NUL in it
        return None
    if text[:1] in ("{", "["):
        return _json(text)
    if text.startswith("<"):
        return _xml(text)
    if path.suffix.lower() in (".yaml", ".yml"):
        return "YOLO's data.yaml" if re.search(r"^names\s*:", text, re.MULTILINE) else None
    lines = [line for line in text.splitlines()[:20] if line.strip()]
    is_row = [bool(re.fullmatch(r"\s*\d+(\s+-?[01]?\.?\d+(e-\d+)?){4,}\s*", line)) for line in lines]
    if lines and 2 * sum(is_row) >= len(lines):  # a faulty row is the reader's to report
        return "YOLO labels"
    for separator in ",;\t":
        with contextlib.suppress(csv.Error):
            if _has_boxes(list(csv.reader(lines, delimiter=separator))):
                return BOX_CSV
    return None


def _json(text: str) -> str | None:
    keys = set(re.findall(r'"([^"\\]{1,40})"\s*:', text))
    for name, needed in (LISTS if text[0] == "[" else OBJECTS).items():
        if needed <= keys:
            return name
    if {"images", "annotations"} <= keys and "bbox" not in keys:
        return next((name for key, name in WITHOUT_BOXES.items() if key in keys), None)
    return None


def _xml(text: str) -> str | None:
    if re.search(r"<annotations[\s>]", text):
        return "CVAT's XML"
    return "Pascal VOC XML" if re.search(r"<annotation[\s>]", text) else None


def _folder(folder: Path) -> str | None:
    """The format of the first few files of each kind in a folder and the folders directly below it."""
    with contextlib.suppress(OSError):
        entries = sorted(islice(folder.iterdir(), 1000))
        for parent in (folder, *(entry for entry in entries if entry.is_dir())):
            for suffix in (".yaml", ".xml", ".txt", ".json"):
                for file in islice((file for file in parent.iterdir() if file.suffix.lower() == suffix), 3):
                    if what := what_it_is(file):
                        return what if suffix == ".yaml" else f"a folder of {what}"
    return None


def _has_boxes(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first rows of a CSV file have boxes: by the names of the columns, or, without a header, by rows of
    path, x1, y1, x2, y2, class, or with the class before the box.
    """
    if not rows:
        return False
    names = {name.strip().lower().replace("_", "") for name in rows[0]}
    if any(names.issuperset(columns) for columns in (*CORNERS, *SIDES)) or "region_shape_attributes" in rows[0]:
        return True
    # keras-retinanet writes images without boxes as path,,,,,
    has_box = [any(cells[1:]) for cells in rows]
    return any(has_box) and all(len(cells) == 6 and (_is_box(cells) or not any(cells[1:])) for cells in rows)


def _is_box(cells: Sequence[str]) -> bool:
    for start in (1, 2):
        with contextlib.suppress(ValueError):
            x1, y1, x2, y2 = (float(cell.replace(",", ".")) for cell in cells[start : start + 4])
            if x1 < x2 and y1 < y2:
                return True
    return False


def formats_of(path: Path) -> dict[str, Path]:
    """The formats with boxes that a file or folder holds, each with the file that shows it."""
    if not os.path.isdir(path):  # noqa: PTH112 (Path.is_dir raises for a name that is too long)
        what = what_it_is(path)
        if what is None and path.suffix.lower() == ".txt":  # a list of images, or one of ImageSets
            return {"voc" if "ImageSets" in path.parts else "yolo": path}
        return {SUPPORTED[what]: path} if what in SUPPORTED else {}
    found: dict[str, Path] = {}
    for folder in _below(path):
        looked_at: Counter[str] = Counter()
        for file in _entries(folder):
            suffix = file.suffix.lower()
            looked_at[suffix] += 1
            if file.name == ROBOFLOW:
                found.setdefault("coco", file)
            elif suffix in (".yaml", ".yml", ".xml", ".txt") and looked_at[suffix] <= 3:
                what = what_it_is(file)
                if what in SUPPORTED:
                    found.setdefault(SUPPORTED[what], file)
    return found


def _below(folder: Path) -> Iterator[Path]:
    """A folder, the folders up to two levels below, and the folder of the labels of YOLO images."""
    yield folder
    children = [child for child in _entries(folder) if child.is_dir()]
    yield from children
    for child in children:
        yield from (below for below in _entries(child) if below.is_dir())
    if labels := labels_folder(folder):
        yield labels


def labels_folder(images: Path) -> Path | None:
    """The folder of YOLO's labels: the last ``images`` of the path becomes ``labels``; None if there is none."""
    parts = images.parts
    if "images" not in parts:
        return None
    last = len(parts) - 1 - parts[::-1].index("images")
    return Path(*parts[:last], "labels", *parts[last + 1 :])


def _entries(folder: Path) -> list[Path]:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return sorted(Path(entry.path) for entry in islice(entries, MOST_ENTRIES))
    return []


@contextlib.contextmanager
def naming_format(path: Path, has_boxes: bool = False) -> Iterator[None]:
    """Where ``path`` is refused and has a format that is not read, name it; with ``has_boxes``, boxes are read."""
    try:
        yield
    except DataError as error:
        what = what_it_is(path)
        if what and not (has_boxes and what.removeprefix("a folder of ") in SUPPORTED):
            raise unread(path, what, has_boxes) from error
        raise


def unread(path: Path, what: str, has_boxes: bool = False) -> DataError:
    """The error of a file that was recognised, but cannot be read where boxes or where classes are."""
    if not has_boxes:
        remedy = "a classifier reads a CSV file of paths and labels, or one folder per class (boxes: task detection)"
    elif what == RESULTS:
        remedy = "give the annotations, and results as --results to evaluate"
    else:
        remedy = "that cannot be read; convert it to COCO JSON with boxes"
    return DataError(f"{path}: looks like {what}; {remedy}")
