"""The table of labelled images that every writer takes: truth, or detections with their scores.

Dimension key: D boxes of one image.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from detector.data.formats.columns import counts_in_words
from detector.structures import Category, Id

if TYPE_CHECKING:
    from detector.data.formats.annotations import Annotations

IGNORED = "ignore region{s}"
SCORES = "score{s}"
AREAS = "area{s} other than the box's"
NO_BOXES = "class{es} without boxes"
OUTSIDE = "box{es} clipped to the image"
THIN = "box{es} under a pixel wide or high, widened to one"
EMPTY = "box{es} without area in the image"

Lost = Counter[str]  # what a format cannot hold, in words, and how often


class LabelledImage(NamedTuple):
    """An image and its boxes, which have scores if they are detections."""

    id: Id
    name: str  # relative to the folder of images, with slashes
    width: int
    height: int
    boxes: np.ndarray  # [D, 4] float64 xyxy in pixels; the first pixel reaches from 0 to 1
    labels: np.ndarray  # [D] int64 indices of categories
    scores: np.ndarray | None = None  # [D]
    is_ignored: np.ndarray | None = None  # [D] bool: crowds and other ignore regions; None: no box is
    areas: np.ndarray | None = None  # [D]; None: the boxes'


@dataclass(frozen=True)
class Labels:
    """Labelled images that can be gone through several times: they come from a file, not from memory."""

    categories: Sequence[Category]
    read: Callable[[], Iterator[LabelledImage]]
    source: str = "detector"  # what made them
    images: Path | None = None  # the folder of the images, which folders of labels then link to

    def __iter__(self) -> Iterator[LabelledImage]:
        return self.read()


def labels_of(annotations: Annotations) -> Labels:
    """The truth of a data set; every image must have its size."""

    def read() -> Iterator[LabelledImage]:
        for index in range(len(annotations)):
            rows = annotations.rows(index)
            xywh = annotations.boxes_xywh[rows].numpy()
            yield LabelledImage(
                annotations.image_ids[index],
                annotations.file_name(index),
                int(annotations.widths[index]),
                int(annotations.heights[index]),
                np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1),
                annotations.labels[rows].numpy(),
                is_ignored=annotations.is_crowd[rows].numpy(),
                areas=annotations.areas[rows].numpy(),
            )

    return Labels(annotations.categories, read, images=annotations.images)


def join_labels(parts: Sequence[tuple[str, Labels]]) -> Labels:
    """Several sets in one, the images of each in a folder of this name (none if it is empty).

    Classes are joined by name. Ids of classes and of images are kept where they fit together, or else numbered from 1.
    """
    sets = [own for _, own in parts]
    classes = list(dict.fromkeys(category for own in sets for category in own.categories))
    names = list(dict.fromkeys(category.name for category in classes))
    if len({str(category.id) for category in classes}) < len(classes) or len(names) < len(classes):
        classes = [Category(number, name) for number, name in enumerate(names, start=1)]
    ids = [str(image.id) for own in sets for image in own]
    is_numbered = len(set(ids)) < len(ids)

    def read() -> Iterator[LabelledImage]:
        numbers = itertools.count(1)
        for folder, own in parts:
            label_of = np.array([names.index(category.name) for category in own.categories], dtype=np.int64)
            for image in own:
                yield image._replace(
                    id=next(numbers) if is_numbered else image.id,
                    name=f"{folder}/{image.name}" if folder else image.name,
                    labels=label_of[image.labels],
                )

    return Labels(classes, read)


class Box(NamedTuple):
    """One box as plain numbers."""

    xyxy: tuple[float, float, float, float]
    label: int
    score: float | None
    is_ignored: bool
    area: float


def boxes_of(image: LabelledImage, lost: Lost | None = None, cannot_hold: Sequence[str] = ()) -> Iterator[Box]:
    """The boxes of an image; those that the format ``cannot_hold`` are skipped, and all that is lost is counted."""
    lost = Counter() if lost is None else lost
    count = len(image.boxes)
    columns = [
        image.boxes.tolist(),
        image.labels.tolist(),
        [None] * count if image.scores is None else image.scores.tolist(),
        [False] * count if image.is_ignored is None else image.is_ignored.tolist(),
    ]
    areas = [None] * count if image.areas is None else image.areas.tolist()
    for (xyxy, label, score, is_ignored), area in zip(zip(*columns, strict=True), areas, strict=True):
        own = (xyxy[2] - xyxy[0]) * (xyxy[3] - xyxy[1])
        if is_ignored and IGNORED in cannot_hold:
            lost[IGNORED] += 1
            continue
        if AREAS in cannot_hold and area is not None and abs(area - own) > 1e-3 * own + 0.01:
            lost[AREAS] += 1
        if SCORES in cannot_hold and score is not None:
            lost[SCORES] += 1
        yield Box(tuple(xyxy), label, score, is_ignored, own if area is None else area)


def describe_lost(lost: Lost) -> str:
    """What was lost in writing, as one text; empty if nothing was."""
    return ", ".join(counts_in_words(lost))
