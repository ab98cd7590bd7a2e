"""One split as columns, whatever is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from detector.doctor.findings import Example, Finding, found

# Indices that lead nowhere: an id that is not listed, and a field that is no id.
DANGLING, MALFORMED = -1, -2
NO_ID = -1


def _nothing(place: int) -> str:
    return ""


def _places(places: np.ndarray | list[int]) -> list[int]:
    """Of a mask those that are true."""
    array = np.asarray(places)
    return (np.flatnonzero(array) if array.dtype == bool else array).tolist()


class Category(NamedTuple):
    id: int
    name: str


@dataclass
class Split:
    """I images, M annotations, K classes. Images and annotations stand in the file's own order, none left out.

    What cannot be used has a value that no sound one has: a negative index, a size of 0, a box of NaN, no name.
    """

    name: str  # train or val
    source: Path  # the annotation file, or the folder of class folders
    root: Path  # the folder that file names are relative to
    has_boxes: bool  # else each annotation is the class of a whole picture
    categories: list[Category]  # [K] those with an id and a name
    files: list[str]  # [I]
    image_ids: np.ndarray  # [I] int64
    sizes: np.ndarray  # [I, 2] int64, width and height as annotated
    annotation_ids: np.ndarray  # [M] int64
    image: np.ndarray  # [M] int64, index of its image
    label: np.ndarray  # [M] int64, index of its category
    boxes: np.ndarray  # [M, 4] float64 xywh
    is_crowd: np.ndarray  # [M] bool
    is_implied: np.ndarray  # [M] bool: no box, but a segmentation that training takes it from
    faults: list[Finding] = field(default_factory=list)  # found by reading
    note: str = ""  # on how the files were found

    @cached_property
    def is_entry(self) -> np.ndarray:
        """Images with an id and a file name, [I] bool."""
        return np.array([file != "" for file in self.files], dtype=bool) & (self.image_ids != NO_ID)

    @cached_property
    def is_sound(self) -> np.ndarray:
        """Annotations whose image, class and (where there are any) box can be used, [M] bool."""
        is_known = (self.image >= 0) & (self.label >= 0)
        if not self.has_boxes:
            return is_known
        return is_known & np.isfinite(self.boxes).all(axis=1) & (self.boxes[:, 2:] > 0).all(axis=1)

    @cached_property
    def is_object(self) -> np.ndarray:
        """Sound annotations that are no crowds, [M] bool."""
        return self.is_sound & ~self.is_crowd

    @cached_property
    def objects_an_image(self) -> np.ndarray:
        """[I] int64."""
        return np.bincount(self.image[self.is_object], minlength=len(self.files))

    @cached_property
    def empty_images(self) -> np.ndarray:
        """Indices of images without objects."""
        return np.flatnonzero(self.is_entry & (self.objects_an_image == 0))

    @cached_property
    def objects_a_class(self) -> np.ndarray:
        """[K] int64."""
        return np.bincount(self.label[self.is_object], minlength=len(self.categories))

    def path(self, index: int) -> Path:
        return self.root / self.files[index]

    def in_images(
        self, check: str, images: np.ndarray | list[int], detail: Callable[[int], str] = _nothing, of_all: str = ""
    ) -> Iterator[Finding]:
        """What a check found in images, by index or as a mask [I]; ``detail`` says more of each, ``of_all`` of all."""

        def example(index: int) -> Example:
            return Example(self.files[index] or f"image {index + 1} of the list", detail=detail(index))

        return found(check, self.name, _places(images), example, of_all)

    def in_annotations(
        self, check: str, rows: np.ndarray | list[int], detail: Callable[[int], str] = _nothing
    ) -> Iterator[Finding]:
        """What a check found in annotations, by row or as a mask [M]; ``detail`` says more of each."""
        return found(check, self.name, _places(rows), lambda row: self._example_of_annotation(row, detail(row)))

    def _example_of_annotation(self, row: int, detail: str) -> Example:
        image = int(self.image[row])
        box = tuple(self.boxes[row].tolist()) if self.has_boxes else None
        file = self.files[image] if image >= 0 else ""
        identity = int(self.annotation_ids[row])
        return Example(file, None if identity == NO_ID else identity, box, detail, row=row)

    def class_name(self, row: int) -> str:
        label = int(self.label[row])
        return "?" if label < 0 else self.categories[label].name
