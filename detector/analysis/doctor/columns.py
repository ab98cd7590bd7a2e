"""A split as columns, however broken it is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from detector.analysis.doctor.findings import Example, Finding, findings_of
from detector.data.formats.columns import BAD_ID, Ids, Rows
from detector.data.formats.joining import choose_classes
from detector.data.split import hold_back
from detector.errors import DataError
from detector.structures import Category


def _nothing(index: int) -> str:
    return ""


def _indices(chosen: np.ndarray | list[int]) -> list[int]:
    """Indices as they are, or those of the true values of a mask."""
    array = np.asarray(chosen)
    return (np.flatnonzero(array) if array.dtype == bool else array).tolist()


_OF_ANNOTATIONS = ("image", "label", "boxes", "areas", "is_crowd")  # one row per annotation


@dataclass
class Split:
    """I images, M annotations, K classes. Images and annotations are in the file's order, none skipped.

    Unusable values are marked: a negative index, a size of 0, a box of NaN, an empty name.
    """

    name: str  # train or val, or train 1, train 2, … of several sets
    source: Path  # the annotation file, or the folder of class folders
    root: Path  # the folder that file names are relative to
    has_boxes: bool  # else each annotation is the class of a whole image
    categories: list[Category]  # [K], those with an id and a name
    files: list[str]  # [I]
    image_ids: Ids  # [I]
    sizes: np.ndarray  # [I, 2] int64, width and height as annotated
    annotation_ids: Ids  # [M]
    image: np.ndarray  # [M] int64, index of its image
    label: np.ndarray  # [M] int64, index of its category
    boxes: np.ndarray  # [M, 4] float64 xywh
    areas: np.ndarray  # [M] float64
    is_crowd: np.ndarray  # [M] bool: crowds, and what the file says to ignore
    notice: str = ""  # a line that names what was read leniently
    rows: Rows | None = None  # as the reader returned them, unless this is a part of them
    has_ids: bool = True  # whether the categories' ids are the file's own; else only names tell classes apart
    faults: list[Finding] = field(default_factory=list)  # found by reading

    @property
    def is_train(self) -> bool:
        return self.name.startswith("train")

    @cached_property
    def is_entry(self) -> np.ndarray:
        """Images with an id and a file name, [I] bool."""
        return np.array([file != "" for file in self.files], dtype=bool) & (self.image_ids.codes > BAD_ID)

    @cached_property
    def is_sound(self) -> np.ndarray:
        """Annotations whose image, class and (where there are any) box can be used, [M] bool."""
        is_known = (self.image >= 0) & (self.label >= 0)
        if not self.has_boxes:
            return is_known
        return is_known & np.isfinite(self.boxes).all(axis=1) & (self.boxes[:, 2:] > 0).all(axis=1)

    @cached_property
    def is_object(self) -> np.ndarray:
        """Sound annotations that are not crowds, [M] bool."""
        return self.is_sound & ~self.is_crowd

    @cached_property
    def objects_per_image(self) -> np.ndarray:
        """[I] int64."""
        return np.bincount(self.image[self.is_object], minlength=len(self.files))

    @cached_property
    def has_region(self) -> np.ndarray:
        """Images with an ignore region, [I] bool."""
        return np.bincount(self.image[self.is_sound & self.is_crowd], minlength=len(self.files)) > 0

    @cached_property
    def is_empty(self) -> np.ndarray:
        """Images without objects, [I] bool."""
        return self.is_entry & (self.objects_per_image == 0)

    @cached_property
    def is_used(self) -> np.ndarray:
        """Classes with annotations, [K] bool."""
        return np.bincount(self.label[self.label >= 0], minlength=len(self.categories)) > 0

    @cached_property
    def objects_per_class(self) -> np.ndarray:
        """[K] int64."""
        return np.bincount(self.label[self.is_object], minlength=len(self.categories))

    def select(self, name: str, is_chosen: np.ndarray) -> Split:
        """The images of a mask [I] and their annotations, without faults and annotations of no image."""
        is_kept = (self.image >= 0) & is_chosen[self.image]
        own: dict[str, Any] = {key: getattr(self, key)[is_kept] for key in _OF_ANNOTATIONS}
        own["image"] = np.cumsum(is_chosen)[own["image"]] - 1
        own |= {"annotation_ids": self.annotation_ids.select(is_kept), "image_ids": self.image_ids.select(is_chosen)}
        files = [file for file, chosen in zip(self.files, is_chosen, strict=True) if chosen]
        return replace(self, name=name, files=files, sizes=self.sizes[is_chosen], rows=None, faults=[], **own)

    def path(self, index: int) -> Path:
        return self.root / self.files[index]

    def in_images(
        self, check: str, images: np.ndarray | list[int], detail: Callable[[int], str] = _nothing, of_all: str = ""
    ) -> Iterator[Finding]:
        """What a check found in images, by index or as a mask [I]; ``detail`` describes each, ``of_all`` them all."""

        def example(index: int) -> Example:
            return Example(self.files[index] or f"image {index + 1} of the list", detail=detail(index))

        return findings_of(check, self.name, _indices(images), example, of_all)

    def in_annotations(
        self, check: str, rows: np.ndarray | list[int], detail: Callable[[int], str] = _nothing
    ) -> Iterator[Finding]:
        """What a check found in annotations, by row or as a mask [M]; ``detail`` describes each."""
        return findings_of(check, self.name, _indices(rows), lambda row: self.example_of_annotation(row, detail(row)))

    def example_of_annotation(self, row: int, detail: str) -> Example:
        image = int(self.image[row])
        has_box = self.has_boxes and np.isfinite(self.boxes[row]).all()
        box = tuple(self.boxes[row].tolist()) if has_box else None
        file = self.files[image] if image >= 0 else ""
        return Example(file, self.annotation_ids[row], box, detail, row=row)

    def rows_at_fault(self, check: str) -> set[int]:
        """Rows of the file that fail one of the reader's checks."""
        faults = self.rows.faults.get(check) if self.rows else None
        return set(faults.rows) if faults else set()

    def class_name(self, row: int) -> str:
        label = int(self.label[row])
        return "?" if label < 0 else self.categories[label].name


def with_classes(split: Split, members: Mapping[str, Sequence[str]]) -> Split:
    """A split with the classes of ``data.classes`` only; what reading found is still of all of them."""
    assert split.rows is not None
    rows = choose_classes(split.rows, members)
    return replace(
        split,
        categories=rows.categories,
        annotation_ids=rows.annotation_ids,
        image=rows.image,
        label=rows.label,
        boxes=rows.boxes_xywh,
        areas=rows.areas,
        is_crowd=rows.is_crowd,
        notice=rows.notice,
        rows=None,
        has_ids=False,
    )


def hold_back_val(split: Split, fraction: float, seed: int) -> list[Split]:
    """Train and val as ``data.val_share`` splits them; where that is impossible, the split itself with a finding."""
    is_known = (split.image >= 0) & (split.label >= 0)
    names = [os.fsencode(file) for file in split.files]
    try:
        is_val = hold_back(split.source, names, split.image[is_known], split.label[is_known], fraction, seed)
    except DataError as error:
        split.faults.append(Finding("split-impossible", split.name, 1, [Example(detail=str(error))]))
        return [split]
    train, val = split.select("train", ~is_val), split.select("val", is_val)
    train.faults = split.faults
    return [train, val]
