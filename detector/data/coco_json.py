"""COCO annotation files as flat arrays.

Everything that grows with the data is a tensor, not a Python object: forked workers share its pages (nothing touches a
reference count), spawned ones get it through shared memory. While a file is read, a row lives as an object only until
its numbers are in the columns, so keys that nobody asks for and long segmentations cost no memory.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from detector.data.json_stream import is_integer, is_number, open_json, show, show_text
from detector.errors import DataError

# OpenCV's own limits: it decodes no picture beyond them.
MAX_SIDE, MAX_PIXELS = 1 << 20, 1 << 30


class Category(NamedTuple):
    """A class by the data set's own id and name; its label is its place in the list of categories."""

    id: int
    name: str


@dataclass(frozen=True)
class Annotations:
    """A COCO JSON file as columns: I images, M annotations sorted by image."""

    path: Path
    categories: list[Category]  # sorted by id; the label is the place
    image_ids: Tensor  # [I] int64
    heights: Tensor  # [I] int64
    widths: Tensor  # [I] int64
    name_bytes: Tensor  # uint8, all file names in one
    name_ends: Tensor  # [I] int64
    first: Tensor  # [I + 1] int64; image i owns rows first[i]:first[i + 1] of all below
    annotation_ids: Tensor  # [M] int64
    boxes_xywh: Tensor  # [M, 4] float64, as annotated
    labels: Tensor  # [M] int64, 0..K-1
    areas: Tensor  # [M] float64
    is_crowd: Tensor  # [M] bool

    def __len__(self) -> int:
        return len(self.image_ids)

    def file_name(self, index: int) -> str:
        start = int(self.name_ends[index - 1]) if index else 0
        return self.name_bytes[start : int(self.name_ends[index])].numpy().tobytes().decode()

    def rows(self, index: int) -> slice:
        return slice(int(self.first[index]), int(self.first[index + 1]))

    def select(self, indices: Sequence[int]) -> Annotations:
        """Some of the images, in this order; the classes stay."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        counts = self.first.diff()[chosen]
        names = [self.file_name(index).encode() for index in chosen.tolist()]
        no_rows = torch.empty(0, dtype=torch.int64)
        rows = torch.cat([no_rows, *(torch.arange(*self.first[index : index + 2]) for index in chosen.tolist())])
        return Annotations(
            path=self.path,
            categories=self.categories,
            image_ids=self.image_ids[chosen],
            heights=self.heights[chosen],
            widths=self.widths[chosen],
            name_bytes=torch.frombuffer(bytearray(b"".join(names)), dtype=torch.uint8),
            name_ends=torch.tensor([len(name) for name in names]).cumsum(0),
            first=torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
            annotation_ids=self.annotation_ids[rows],
            boxes_xywh=self.boxes_xywh[rows],
            labels=self.labels[rows],
            areas=self.areas[rows],
            is_crowd=self.is_crowd[rows],
        )

    def image_index(self) -> Tensor:
        """The image of each annotation, [M]."""
        return torch.repeat_interleave(torch.arange(len(self)), self.first.diff())


def read_annotations(path: str | Path, categories: list[Category] | None = None) -> Annotations:
    """Annotations of a COCO JSON file; with ``categories`` given (of a checkpoint), the file's must be the same ones.

    Raises :class:`~detector.errors.DataError` that names file, line, image or annotation id, value and remedy.
    """
    path = Path(path)
    own, images, rows = _read_tables(path)
    if categories is not None and own != categories:
        raise DataError(
            f"{path}: has {len(own)} classes ({_names(own)}), the model {len(categories)} ({_names(categories)});"
            " evaluate on annotations with the classes that the model was trained on"
        )
    return _join(path, own, images, rows)


def _names(categories: list[Category]) -> str:
    names = [show_text(f"{category.id} {category.name}") for category in categories]
    return ", ".join(names if len(names) <= 6 else [*names[:5], "…"])


@dataclass
class _Images:
    """The rows of ``images`` as columns, in the file's order; the reader completes messages with file and line."""

    ids: array[int] = field(default_factory=lambda: array("q"))
    heights: array[int] = field(default_factory=lambda: array("q"))
    widths: array[int] = field(default_factory=lambda: array("q"))
    names: bytearray = field(default_factory=bytearray)
    name_ends: array[int] = field(default_factory=lambda: array("q"))

    def add(self, row: dict[str, Any]) -> None:
        image_id, height, width, name = (row.get(key) for key in ("id", "height", "width", "file_name"))
        # COCO results are tables of float64, which hold integers up to 2^53.
        if not is_integer(image_id) or abs(image_id) > 2**53:
            raise DataError(f"image {show(image_id)}: the id must be an integer of at most 2^53")
        if not isinstance(name, str) or not name or not _is_file_name(name):
            raise DataError(f"image {image_id}: file_name is {show(name)}; it must be a path")
        size = f"image {image_id} ({show_text(name)}): height {show(height)}, width {show(width)}"
        if not (is_integer(height) and is_integer(width) and height > 0 and width > 0):
            raise DataError(f"{size} must be positive integers; write the picture's own")
        if max(height, width) > MAX_SIDE or height * width > MAX_PIXELS:
            raise DataError(f"{size} is larger than any picture that can be decoded (2^30 pixels); write its own size")
        self.ids.append(image_id)
        self.heights.append(height)
        self.widths.append(width)
        self.names += name.encode()
        self.name_ends.append(len(self.names))


@dataclass
class _Boxes:
    """The rows of ``annotations`` as columns, in the file's order; likewise."""

    ids: array[int] = field(default_factory=lambda: array("q"))
    image_ids: array[int] = field(default_factory=lambda: array("q"))
    category_ids: array[int] = field(default_factory=lambda: array("q"))
    xywh: array[float] = field(default_factory=lambda: array("d"))
    areas: array[float] = field(default_factory=lambda: array("d"))
    is_crowd: array[int] = field(default_factory=lambda: array("b"))

    def add(self, row: dict[str, Any]) -> None:
        annotation_id, image_id, category_id = row.get("id"), row.get("image_id"), row.get("category_id")
        if not is_integer(annotation_id):
            raise DataError(f"annotation {show(annotation_id)}: the id must be an integer")
        where = f"annotation {annotation_id}"
        for key, value in (("image_id", image_id), ("category_id", category_id)):
            if not is_integer(value):
                raise DataError(f"{where}: {key} {show(value)} must be an integer")
        box = row.get("bbox")
        if box is None:
            box = _box_of_segmentation(row.get("segmentation"), where)
        if not is_box(box):
            raise DataError(f"{where}: bbox {show(box)} must be four finite numbers: left, top, width, height")
        area = row.get("area", box[2] * box[3])
        if not is_number(area):
            raise DataError(f"{where}: area {show(area)} must be a finite number")
        is_crowd = row.get("iscrowd", 0)
        if is_crowd not in (0, 1):
            raise DataError(f"{where}: iscrowd {show(is_crowd)} must be 0 or 1")
        self.ids.append(annotation_id)
        self.image_ids.append(image_id)
        self.category_ids.append(category_id)
        self.xywh.extend(box)
        self.areas.append(area)
        self.is_crowd.append(int(is_crowd))


def _read_tables(path: Path) -> tuple[list[Category], _Images, _Boxes]:
    categories: list[Category] = []
    images, boxes = _Images(), _Boxes()
    add = {"images": images.add, "annotations": boxes.add, "categories": lambda row: categories.append(_category(row))}
    seen = set()
    with open_json(path) as stream:
        if stream.peek() != "{":
            kind = type(stream.value()).__name__ if stream.peek() != "[" else "list"
            raise DataError(f"{path}: holds a {kind}; COCO annotations are an object with images, annotations")
        for table in stream.members():
            if table not in add:
                stream.skip()
                continue
            if table in seen:
                raise stream.error(f"key {table!r} stands twice")
            seen.add(table)
            if stream.peek() not in ("[", ""):  # at the end of the file the list is missed below
                raise _no_list(path, table)
            for row in stream.elements():
                if not isinstance(row, dict):
                    raise DataError(f"{path}:{stream.line}: {table}: {show(row)} is no object")
                try:
                    add[table](row)
                except DataError as error:
                    raise DataError(f"{path}:{stream.line}: {error}") from None
        stream.finish()
    for table in add:
        if table not in seen:
            raise _no_list(path, table)
    if not images.ids:
        raise DataError(f"{path}: has no images; list at least one")
    if not categories:
        raise DataError(f"{path}: has no categories; list at least one")
    categories.sort()
    for first, second in pairwise(categories):
        if first.id == second.id:
            names = f"{show_text(first.name)}, {show_text(second.name)}"
            raise DataError(f"{path}: category id {first.id} stands twice: {names}; give each its own")
    return categories, images, boxes


def _no_list(path: Path, table: str) -> DataError:
    return DataError(f"{path}: has no list {table!r}; COCO annotations need images, annotations and categories")


def _category(row: dict[str, Any]) -> Category:
    if not is_integer(row.get("id")) or not isinstance(row.get("name"), str):
        raise DataError(f"category {show(row)}: needs an integer id and a name")
    return Category(row["id"], row["name"])


def _join(path: Path, categories: list[Category], images: _Images, boxes: _Boxes) -> Annotations:
    """The columns with the boxes sorted by image, in place: copies would be the most that a whole run holds."""
    image_ids, name_ends = np.asarray(images.ids), images.name_ends
    if (pair := _twice(image_ids)) is not None:
        spans = (slice(name_ends[row - 1] if row else 0, name_ends[row]) for row in pair)
        first, second = (show_text(images.names[span].decode()) for span in spans)
        raise DataError(f"{path}: image id {image_ids[pair[0]]} stands twice: {first}, {second}; give each its own")

    ids, of_image, labels = map(np.asarray, (boxes.ids, boxes.image_ids, boxes.category_ids))
    if (pair := _twice(ids)) is not None:
        first, second = (of_image[row] for row in pair)
        raise DataError(
            f"{path}: annotation id {ids[pair[0]]} stands twice, for image {first} and for image {second}; give each"
            " its own"
        )
    order = np.argsort(image_ids)
    place = _places(image_ids[order], of_image)
    if (unknown := np.flatnonzero(place < 0)).size:
        raise DataError(
            f"{path}: annotation {ids[unknown[0]]}: image_id {of_image[unknown[0]]} is not among the images; remove the"
            " annotation or add the image"
        )
    place = order[place]
    known = np.array([category.id for category in categories])
    if (unknown := np.flatnonzero(_places(known, labels) < 0)).size:
        raise DataError(
            f"{path}: annotation {ids[unknown[0]]}: category_id {labels[unknown[0]]} is not among the categories"
            f" ({_names(categories)}); remove the annotation or add the category"
        )
    labels[:] = _places(known, labels)

    order = np.argsort(place, kind="stable")
    xywh, areas = np.asarray(boxes.xywh).reshape(-1, 4), np.asarray(boxes.areas)
    is_crowd = np.asarray(boxes.is_crowd).view(bool)
    for column in (ids, labels, areas, is_crowd, *xywh.T):
        column[:] = column[order]
    return Annotations(
        path=path,
        categories=categories,
        image_ids=torch.from_numpy(image_ids),
        heights=torch.from_numpy(np.asarray(images.heights)),
        widths=torch.from_numpy(np.asarray(images.widths)),
        name_bytes=torch.frombuffer(images.names, dtype=torch.uint8),
        name_ends=torch.from_numpy(np.asarray(name_ends)),
        first=torch.from_numpy(np.searchsorted(place[order], np.arange(len(image_ids) + 1))),
        annotation_ids=torch.from_numpy(ids),
        boxes_xywh=torch.from_numpy(xywh),
        labels=torch.from_numpy(labels),
        areas=torch.from_numpy(areas),
        is_crowd=torch.from_numpy(is_crowd),
    )


def _twice(ids: np.ndarray) -> tuple[int, int] | None:
    """Two rows of the same id."""
    order = np.argsort(ids, kind="stable")
    same = np.flatnonzero(np.diff(ids[order]) == 0)
    return (int(order[same[0]]), int(order[same[0] + 1])) if same.size else None


def _places(known: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Where each of ``ids`` stands in ``known``, which is sorted; -1 where it does not."""
    places = np.searchsorted(known, ids).clip(max=len(known) - 1)
    return np.where(known[places] == ids, places, -1)


def _is_file_name(name: str) -> bool:
    """JSON can escape what no file's name holds: NUL, and half of a surrogate pair."""
    return "\0" not in name and not any("\ud800" <= character <= "\udfff" for character in name)


def is_box(value: Any) -> bool:
    """Whether a JSON value is a list of four finite numbers."""
    return isinstance(value, list) and len(value) == 4 and all(map(is_number, value))


def _box_of_segmentation(segmentation: Any, where: str) -> list[float]:
    """The box around polygons or a run-length mask, for annotations (crowds, mostly) that have no bbox."""
    from pycocotools import mask

    try:
        if isinstance(segmentation, list):
            polygons = np.concatenate([np.asarray(polygon, dtype=float).reshape(-1, 2) for polygon in segmentation])
            (left, top), (right, bottom) = polygons.min(axis=0), polygons.max(axis=0)
            return [float(left), float(top), float(right - left), float(bottom - top)]
        # pycocotools divides by the height without a look: a zero would end the process.
        height, width = segmentation["size"]
        if not all(is_integer(side) and 0 < side <= MAX_SIDE for side in (height, width)):
            raise ValueError
        if isinstance(segmentation["counts"], list):
            segmentation = mask.frPyObjects(segmentation, height, width)
        return [float(number) for number in mask.toBbox(segmentation)]
    except (TypeError, KeyError, ValueError, OverflowError):
        raise DataError(f"{where}: has no bbox, and no segmentation to take it from") from None
