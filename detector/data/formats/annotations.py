"""Annotations of boxes as flat arrays, sorted by image, ready to train on and to score against.

Everything that grows with the data is a tensor, not a Python object: forked workers share its pages (no reference count
is touched), spawned ones get it through shared memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from detector.data.formats.columns import (
    Ids,
    Rows,
    Texts,
    class_differences,
    id_key,
    show_category,
    show_id,
    sort_key,
)
from detector.errors import DataError
from detector.structures import Category

LISTED = 20  # differing classes that a message names
NO_LABEL = -1  # of a class without annotations that the model does not know


class Extra(NamedTuple):
    """Images that occur once more than others of their set: in each epoch the next ``count`` of ``order``.

    They are those from index ``first`` on, which hold what epoch 0 shows.
    """

    first: int
    count: int
    order: Tensor  # [n] int64, n >= count: indices of the set's images


@dataclass(frozen=True)
class Annotations:
    """I images, M annotations sorted by image. Images are referred to by index."""

    path: Path
    categories: list[Category]  # sorted by id; a label is an index into these
    image_ids: Ids  # [I] as given
    heights: Tensor  # [I] int64; 0: not given
    widths: Tensor  # [I] int64
    names: Texts  # [I] file names
    first: Tensor  # [I + 1] int64; image i has rows first[i]:first[i + 1] of all below
    annotation_ids: Ids  # [M] as given; None where there is none
    boxes_xywh: Tensor  # [M, 4] float64, as annotated
    labels: Tensor  # [M] int64, 0..K-1
    areas: Tensor  # [M] float64
    is_crowd: Tensor  # [M] bool; iscrowd or ignore
    notice: str = ""  # one line on what was read although it is not strict COCO
    dropped: int = 0  # annotations that data.invalid_boxes has removed
    images: Path | None = None  # the folder that names are relative to; None: not said by the file
    extras: tuple[Extra, ...] = ()  # of several sets with weights

    def __len__(self) -> int:
        return len(self.image_ids)

    def file_name(self, index: int) -> str:
        return self.names[index]

    def rows(self, index: int) -> slice:
        return slice(int(self.first[index]), int(self.first[index + 1]))

    def shown(self, epoch: int, indices: np.ndarray | int) -> np.ndarray:
        """The images that these indices show in an epoch."""
        found = np.asarray(indices)
        for first, count, order in self.extras:
            place = found - first
            turn = order.numpy()[(epoch * count + place) % len(order)]
            found = np.where((place >= 0) & (place < count), turn, found)
        return found

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
            extras=(),
        )

    def keep(self, is_kept: Tensor) -> Annotations:
        """All images, with the annotations of a mask [M]."""
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
        """An annotation in words: by its id, or by its number in its image."""
        own = self.annotation_ids[row]
        if own is not None:
            return f"annotation {show_id(own)}"
        image = int(torch.searchsorted(self.first, row, right=True)) - 1
        return f"annotation {row - int(self.first[image]) + 1} of its image, which has no id"


def from_rows(rows: Rows, categories: list[Category] | None = None) -> Annotations:
    """The columns of a file without faults; its classes must be among ``categories`` (of a model), if given."""
    by_id = sorted(range(len(rows.categories)), key=lambda index: sort_key(rows.categories[index].id))
    own = [rows.categories[index] for index in by_id]
    label_of = {index: label for label, index in enumerate(by_id)}
    if categories is None:
        return _sort(rows, own, label_of)
    if not rows.has_ids:  # the model's hold, and other classes have ids that no model has
        by_name = {category.name: category for category in categories}
        names = (category.name for category in rows.categories)
        rows.categories = [by_name.get(name) or Category(f"class {name}", name) for name in names]
        own = [rows.categories[index] for index in by_id]
    if differences := class_differences(own, categories, rows.is_used[by_id]):
        said = [
            f"{show_category(category)}, which is {show_category(other) if other else 'not a class'} there"
            for category, other in differences[:LISTED]
        ]
        if len(differences) > LISTED:
            said.append(f"and {len(differences) - LISTED} more")
        raise DataError(
            f"{rows.path}: has classes that are not those of the model: {'; '.join(said)}; give the same names"
            " (classes that do not occur may be missing)"
        )
    labels = {category.name: label for label, category in enumerate(categories)}
    label_of = {index: labels.get(category.name, NO_LABEL) for index, category in enumerate(rows.categories)}
    ids = {category.name: id_key(category.id) for category in categories}
    rows.notes["class{es} by name, as the model has other ids"] += sum(
        category.name in ids and id_key(category.id) != ids[category.name] for category in own
    )
    unknown = (rows.categories[index] for index in by_id if label_of[index] == NO_LABEL)
    rows.skipped.extend(f"{show_category(category)}, which the model does not have" for category in unknown)
    return _sort(rows, categories, label_of)


def _sort(rows: Rows, categories: list[Category], label_of: dict[int, int]) -> Annotations:
    """The columns with the annotations sorted by image, in place: copies would set the peak memory of a whole run."""
    ids, labels = rows.annotation_ids, rows.label
    labels[:] = np.array([label_of[index] for index in range(len(label_of))], dtype=np.int64)[labels]
    if np.any(rows.image[1:] < rows.image[:-1]):
        order = np.argsort(rows.image, kind="stable")
        for column in (ids.codes, ids.is_text, rows.image, labels, rows.areas, rows.is_crowd, *rows.boxes_xywh.T):
            column[:] = column[order]
    return Annotations(
        path=rows.path,
        categories=categories,
        image_ids=rows.image_ids.map(torch.from_numpy),
        heights=torch.from_numpy(rows.heights),
        widths=torch.from_numpy(rows.widths),
        names=rows.names.map(torch.from_numpy),
        first=torch.from_numpy(np.searchsorted(rows.image, np.arange(len(rows.image_ids) + 1))),
        annotation_ids=ids.map(torch.from_numpy),
        boxes_xywh=torch.from_numpy(rows.boxes_xywh),
        labels=torch.from_numpy(labels),
        areas=torch.from_numpy(rows.areas),
        is_crowd=torch.from_numpy(rows.is_crowd),
        notice=rows.notice,
        images=rows.root,
    )
