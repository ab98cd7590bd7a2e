"""COCO JSON files read leniently: whatever is in them becomes columns and findings.

The strict reader (``detector.data.coco``) stops at the first fault; this one is to see them all. While the file is
parsed, every sound annotation is packed into a record of 57 bytes at once, so a million of them never exist as Python
objects together.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from detector.doctor.columns import DANGLING, MALFORMED, NO_ID, Category, Split
from detector.doctor.findings import Example, Finding, found, in_words
from detector.errors import DataError, unreadable

_RECORD = struct.Struct("<qqq4db")
_FIELDS = np.dtype([("id", "<i8"), ("image", "<i8"), ("category", "<i8"), ("box", "<f8", 4), ("crowd", "?")])


class _Packed(int):
    """The number of a record, in place of the annotation that it was."""

    __slots__ = ()


class _Packer:
    """What the JSON parser calls for each object: annotations become records, images four values."""

    def __init__(self) -> None:
        self.records = bytearray()

    def __call__(self, row: dict[str, Any]) -> Any:
        if "image_id" in row and "bbox" in row:
            crowd = row.get("iscrowd", 0)
            try:
                # Refuses what is no integer or number, and boxes of other than four; so does the float of the area.
                record = _RECORD.pack(row["id"], row["image_id"], row["category_id"], *row["bbox"], crowd)
                is_packed = crowd in (0, 1) and math.isfinite(row.get("area", 0))
            except (KeyError, TypeError, OverflowError, struct.error):
                return row
            if not is_packed:
                return row
            self.records += record
            return _Packed(len(self.records) // _RECORD.size - 1)
        if "file_name" in row:
            return row.get("id"), row["file_name"], row.get("width"), row.get("height")
        return row


def read_json(path: Path, hook: Any = None) -> dict[str, Any]:
    """The tree of a JSON file; raises :class:`~detector.errors.DataError` where it is none, or no COCO annotations."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8-sig"), object_hook=hook)
    except OSError as error:
        raise DataError(f"{path}: {unreadable(path, error, '*.json')}") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not valid JSON: {error.msg} (column {error.colno})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a COCO JSON file: {error}") from None
    if not isinstance(tree, dict) or not isinstance(tree.get("images"), list):
        raise DataError(f"{path}: has no list of images; COCO annotations need images, annotations, categories")
    return tree


def read_coco(name: str, path: Path, root: Path) -> Split:
    """The split of a COCO JSON file; only a file that is none raises :class:`~detector.errors.DataError`."""
    packer = _Packer()
    tree = read_json(path, packer)
    lists = {}
    faults = []
    for key in ("annotations", "categories"):
        rows = tree.get(key)
        lists[key] = rows if isinstance(rows, list) else []
        if not isinstance(rows, list):
            faults.append(Finding("list-missing", name, 1, [Example(path.name, detail=f"no list {key!r}")]))
    categories, category_faults = _categories(name, lists["categories"])
    files, image_ids, sizes, index_of, image_faults = _images(name, tree["images"])
    index_of_category = {category.id: index for index, category in reversed(list(enumerate(categories)))}
    split = Split(
        name, path, root, True, categories, files, image_ids, sizes,
        *_annotations(lists["annotations"], packer.records, index_of, index_of_category),
    )  # fmt: skip
    split.faults = [*faults, *category_faults, *image_faults, *_annotation_faults(split, lists["annotations"])]
    return split


def _categories(name: str, rows: list[Any]) -> tuple[list[Category], list[Finding]]:
    categories, malformed = [], []
    for row in rows:
        if isinstance(row, dict) and _is_int(row.get("id")) and isinstance(row.get("name"), str):
            categories.append(Category(row["id"], row["name"]))
        else:
            malformed.append(_short(row))
    return categories, list(found("category-malformed", name, malformed, in_words))


def _images(name: str, rows: list[Any]) -> tuple[list[str], np.ndarray, np.ndarray, dict[Hashable, int], list[Finding]]:
    """File names, ids, sizes, the first place of each id, and findings."""
    files: list[str] = []
    ids = np.full(len(rows), NO_ID, dtype=np.int64)
    sizes = np.zeros((len(rows), 2), dtype=np.int64)
    index_of: dict[Hashable, int] = {}
    malformed: dict[int, str] = {}
    for index, row in enumerate(rows):
        image_id, file, width, height = row if isinstance(row, tuple) else (None, None, None, None)
        if isinstance(row, dict):
            image_id = row.get("id")
        is_named = isinstance(file, str) and file != "" and _is_path(file)
        files.append(file if is_named else "")
        if _is_int(image_id):
            ids[index] = image_id
        if not _is_int(image_id) or not is_named:
            malformed[index] = f"id {_short(image_id)}, file_name {_short(file)}"
        if isinstance(image_id, Hashable) and image_id is not None:
            index_of.setdefault(image_id, index)
        if all(_is_int(side) and 0 < side < 2**31 for side in (width, height)):
            sizes[index] = width, height
    findings = found(
        "image-malformed", name, list(malformed), lambda index: Example(files[index], detail=malformed[index])
    )
    return files, ids, sizes, index_of, list(findings)


def _annotations(
    rows: list[Any], records: bytearray, index_of: dict[Hashable, int], index_of_category: dict[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Ids, image, label, boxes, crowds and implied boxes, a row for each entry of the list."""
    packed = np.frombuffer(records, dtype=_FIELDS)
    place = np.fromiter((row if type(row) is _Packed else -1 for row in rows), np.int64, len(rows))
    if len(packed) == 0:
        packed = np.zeros(1, dtype=_FIELDS)
    own = packed[place]
    ids, boxes = own["id"].copy(), own["box"].copy()
    is_crowd, is_implied = own["crowd"].copy(), np.zeros(len(rows), dtype=bool)
    image = _look_up(own["image"], index_of)
    label = _look_up(own["category"], index_of_category)
    for index in np.flatnonzero(place < 0):
        row = rows[index] if isinstance(rows[index], dict) else {}
        image_id, category_id, box = row.get("image_id"), row.get("category_id"), row.get("bbox")
        ids[index] = row["id"] if _is_int(row.get("id")) else NO_ID
        image[index] = (
            index_of.get(image_id, DANGLING if _is_int(image_id) else MALFORMED)
            if isinstance(image_id, Hashable)
            else MALFORMED
        )
        label[index] = index_of_category.get(category_id, DANGLING) if _is_int(category_id) else MALFORMED
        boxes[index] = box if _is_box(box) else np.nan
        is_crowd[index] = row.get("iscrowd") == 1
        is_implied[index] = box is None and bool(row.get("segmentation"))
    return ids, image, label, boxes, is_crowd, is_implied


def _look_up(ids: np.ndarray, index_of: dict[Any, int]) -> np.ndarray:
    """The index of each id, or DANGLING."""
    known = np.array(sorted(key for key in index_of if _is_int(key)), dtype=np.int64)
    if len(known) == 0:
        return np.full(len(ids), DANGLING, dtype=np.int64)
    index = np.array([index_of[key] for key in known.tolist()], dtype=np.int64)
    place = np.searchsorted(known, ids).clip(max=len(known) - 1)
    return np.where(known[place] == ids, index[place], DANGLING)


def _annotation_faults(split: Split, rows: list[Any]) -> Iterator[Finding]:
    """What the packer refused, said field by field; boxes are looked at elsewhere."""
    faults = {}
    for index, row in enumerate(rows):
        if type(row) is not _Packed and (fault := ", ".join(_wrong_fields(row))):
            faults[index] = fault
    yield from split.in_annotations(
        "annotation-malformed", list(faults), lambda index: f"entry {index + 1}: {faults[index]}"
    )


def _wrong_fields(row: Any) -> Iterator[str]:
    if not isinstance(row, dict):
        yield f"{_short(row)} is no object"
        return
    for key in ("id", "image_id", "category_id"):
        if key not in row:
            yield f"no {key}"
        elif not _is_int(row[key]):
            yield f"{key} {_short(row[key])} is no integer"
    if row.get("iscrowd", 0) not in (0, 1):
        yield f"iscrowd {_short(row['iscrowd'])} is neither 0 nor 1"
    area = row.get("area", 0)
    if not _is_number(area) or not math.isfinite(area):
        yield f"area {_short(area)} is no finite number"


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and (value != value or abs(value) < 1e308)


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(_is_number(number) for number in value)


def _is_path(value: str) -> bool:
    """No file can have a name with a null, or with half of a surrogate pair."""
    return "\0" not in value and not any("\ud800" <= character <= "\udfff" for character in value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
