"""COCO annotation files as flat arrays, sorted by image, ready to train on and to score against.

Everything that grows with the data is a tensor, not a Python object: forked workers share its pages (nothing touches a
reference count), spawned ones get it through shared memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from detector.data.formats.coco_rows import (
    Ids,
    Rows,
    Texts,
    class_differences,
    describe_notes,
    duplicated,
    id_key,
    indices_of,
    read_rows,
    shift_between,
    sort_key,
)
from detector.errors import DataError
from detector.files.json_stream import show, show_text
from detector.structures import Category, Id


@dataclass(frozen=True)
class Annotations:
    """A COCO JSON file as columns: I images, M annotations sorted by image. Images are known by their place."""

    path: Path
    categories: list[Category]  # sorted by id; the label is the place
    image_ids: Ids  # [I] as given
    heights: Tensor  # [I] int64; 0: not given
    widths: Tensor  # [I] int64
    names: Texts  # [I] file names
    first: Tensor  # [I + 1] int64; image i owns rows first[i]:first[i + 1] of all below
    annotation_ids: Ids  # [M] as given, None for those without one
    boxes_xywh: Tensor  # [M, 4] float64, as annotated
    labels: Tensor  # [M] int64, 0..K-1
    areas: Tensor  # [M] float64
    is_crowd: Tensor  # [M] bool; crowds, and what the file says to ignore
    notice: str = ""  # a line that says what was read although it is written otherwise
    dropped: int = 0  # annotations that data.invalid_boxes left out of these

    def __len__(self) -> int:
        return len(self.image_ids)

    def file_name(self, index: int) -> str:
        return self.names[index]

    def rows(self, index: int) -> slice:
        return slice(int(self.first[index]), int(self.first[index + 1]))

    def select(self, indices: Sequence[int]) -> Annotations:
        """Some of the images, in this order; the classes stay."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        counts = self.first.diff()[chosen]
        no_rows = torch.empty(0, dtype=torch.int64)
        rows = torch.cat([no_rows, *(torch.arange(*self.first[index : index + 2]) for index in chosen.tolist())])
        return replace(
            self._of_rows(rows),
            image_ids=self.image_ids.select(chosen),
            heights=self.heights[chosen],
            widths=self.widths[chosen],
            names=Texts.of(self.file_name(index) for index in chosen.tolist()).map(torch.from_numpy),
            first=torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
        )

    def keep(self, is_kept: Tensor) -> Annotations:
        """The annotations of a mask [M], and all images."""
        ends = torch.cat([is_kept.new_zeros(1, dtype=torch.int64), is_kept.cumsum(0)])
        return replace(self._of_rows(is_kept), first=ends[self.first])

    def _of_rows(self, rows: Tensor) -> Annotations:
        return replace(
            self,
            annotation_ids=self.annotation_ids.select(rows),
            boxes_xywh=self.boxes_xywh[rows],
            labels=self.labels[rows],
            areas=self.areas[rows],
            is_crowd=self.is_crowd[rows],
        )

    def image_index(self) -> Tensor:
        """The image of each annotation, [M]."""
        return torch.repeat_interleave(torch.arange(len(self)), self.first.diff())

    def describe(self, row: int) -> str:
        """An annotation in words: by its id, or by its place in its image."""
        own = self.annotation_ids[row]
        if own is not None:
            return f"annotation {show_id(own)}"
        image = int(torch.searchsorted(self.first, row, right=True)) - 1
        return f"annotation {row - int(self.first[image]) + 1} of its image, which has no id"


def show_id(value: Id | None) -> str:
    """An id in a message."""
    return show_text(value) if isinstance(value, str) else str(value)


def read_annotations(path: str | Path, categories: list[Category] | None = None) -> Annotations:
    """Annotations of a COCO JSON file; its classes must be among ``categories`` (of a checkpoint) where given.

    Sizes that the file does not give are 0 (see :func:`~detector.data.detection.with_sizes`). Raises
    :class:`~detector.errors.DataError` that names file, line, image or annotation id, value and remedy.
    """
    rows = read_rows(Path(path), is_strict=True)
    own = sorted(rows.categories, key=lambda category: sort_key(category.id))
    for first, second in pairwise(own):
        if id_key(first.id) == id_key(second.id):
            names = f"{show_text(first.name)}, {show_text(second.name)}"
            raise DataError(f"{path}: category id {show_id(first.id)} is duplicated: {names}; give each its own")
    if categories is not None and (differences := class_differences(own, categories)):
        said = (
            f"{_show(category)}, which is {_show(other) if other else 'no class'} there"
            for category, other in differences
        )
        raise DataError(
            f"{path}: has classes that are not those of the model: {'; '.join(said)}; give the same ids and names"
            " (classes that do not occur may be missing)"
        )
    return _join(rows, own, own if categories is None else categories)


def _show(category: Category) -> str:
    return f"{show_id(category.id)} {show_text(category.name)}"


def _join(rows: Rows, own: list[Category], categories: list[Category]) -> Annotations:
    """The columns with the boxes sorted by image, in place: copies would be the most that a whole run holds."""
    path, image_ids, ids, of_image, labels = (
        rows.path, rows.image_ids, rows.annotation_ids, rows.of_image, rows.of_category
    )  # fmt: skip
    if (again := duplicated(image_ids.codes)).size:
        places = np.flatnonzero(image_ids.codes == image_ids.codes[again[0]])[:2].tolist()
        first, second = (f"{show_text(rows.names[place])}" for place in places)
        said = " and ".join(dict.fromkeys(show(image_ids[place]) for place in places))
        raise DataError(f"{path}: image id {said} is duplicated: {first}, {second}; give each its own")
    place = indices_of(image_ids.codes, of_image)
    if (unknown := np.flatnonzero(place < 0)).size:
        value = show_id(rows.id_of(of_image[unknown[0]]))
        raise DataError(
            f"{path}: {_annotation(rows, unknown[0])}: image_id {value} is not among the images;"
            " remove the annotation or add the image"
        )
    if (again := duplicated(ids.codes)).size:
        first, second = (show_id(image_ids[place[row]]) for row in np.flatnonzero(ids.codes == ids.codes[again[0]])[:2])
        raise DataError(
            f"{path}: annotation id {show_id(ids[again[0]])} is duplicated, for image {first} and for image {second};"
            " give each its own"
        )
    # Own labels first, for the message; then those of the model, which may have more classes.
    codes = np.array([rows.code(category.id) for category in own])
    label = indices_of(codes, labels)
    if (unknown := np.flatnonzero(label < 0)).size:
        value = show_id(rows.id_of(labels[unknown[0]]))
        raise DataError(
            f"{path}: {_annotation(rows, unknown[0])}: category_id {value} is not among the categories ({_names(own)});"
            f" remove the annotation or add the category{_shift_hint(labels, codes)}"
        )
    label_of = {id_key(category.id): label for label, category in enumerate(categories)}
    labels[:] = np.array([label_of[id_key(category.id)] for category in own])[label]

    order = np.argsort(place, kind="stable")
    for column in (ids.codes, ids.is_text, labels, rows.areas, rows.is_crowd, *rows.boxes_xywh.T):
        column[:] = column[order]
    return Annotations(
        path=path,
        categories=categories,
        image_ids=image_ids.map(torch.from_numpy),
        heights=torch.from_numpy(rows.heights),
        widths=torch.from_numpy(rows.widths),
        names=rows.names.map(torch.from_numpy),
        first=torch.from_numpy(np.searchsorted(place[order], np.arange(len(image_ids) + 1))),
        annotation_ids=ids.map(torch.from_numpy),
        boxes_xywh=torch.from_numpy(rows.boxes_xywh),
        labels=torch.from_numpy(labels),
        areas=torch.from_numpy(rows.areas),
        is_crowd=torch.from_numpy(rows.is_crowd),
        notice=describe_notes(path, rows.notes),
    )


def _annotation(rows: Rows, row: int) -> str:
    own = rows.annotation_ids[row]
    return f"annotation {show_id(own)}" if own is not None else f"annotation {row + 1} of the list"


def _names(categories: list[Category]) -> str:
    names = [_show(category) for category in categories]
    return ", ".join(names if len(names) <= 6 else [*names[:5], "…"])


def _shift_hint(used: np.ndarray, known: np.ndarray) -> str:
    """What to do where all ids are off by one."""
    return ", or have detector doctor --fix join them: all are off by one" if shift_between(used, known) else ""
