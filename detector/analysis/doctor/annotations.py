"""Checks of the annotations: ids, categories and boxes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from detector.analysis.doctor.columns import Split
from detector.analysis.doctor.findings import Finding, findings_of, in_words
from detector.data.box_rules import check_boxes
from detector.data.formats.coco_values import odd_areas
from detector.data.formats.columns import id_key

DUPLICATE_IOU = 0.95
TINY_SIDE = 2.0  # pixels
WHOLE_IMAGE = 0.98  # of the image's area
EXTREME_RATIO = 10.0


def check_annotations(split: Split, image_sizes: np.ndarray) -> Iterator[Finding]:
    """Findings in one split, those of reading it included; ``image_sizes`` [I, 2] width and height, 0 where unknown."""
    yield from split.faults
    yield from _ids(split)
    yield from _categories(split)
    if split.has_boxes:
        yield from _boxes(split, image_sizes)


def _ids(split: Split) -> Iterator[Finding]:
    first_of: dict[str, int] = {}
    again = [index for index, file in enumerate(split.files) if file and first_of.setdefault(file, index) != index]
    yield from split.in_images("image-listed-twice", again, lambda index: f"image {split.image_ids[index]}")


def _categories(split: Split) -> Iterator[Finding]:
    name, categories = split.name, split.categories
    alike: dict[str, list[str]] = {}
    for own in dict.fromkeys(category.name for category in categories):
        alike.setdefault(re.sub(r"[\W_]+", "", own.casefold()) or own, []).append(own)
    groups = [", ".join(map(repr, names)) for names in alike.values() if len(names) > 1]
    yield from findings_of("category-name-similar", name, groups, in_words)
    if split.has_boxes:
        numbers = sorted({key for category in categories if isinstance(key := id_key(category.id), int)})
        gaps = [f"{low} to {high}" for low, high in pairwise(numbers) if high > low + 1]
        yield from findings_of("category-id-gap", name, gaps, in_words)


def _boxes(split: Split, image_sizes: np.ndarray) -> Iterator[Finding]:
    is_finite = np.isfinite(split.boxes).all(axis=1)
    size = sizes_of_annotations(split, image_sizes)
    yield from split.in_annotations("box-no-area", is_finite & ~has_area(split, size))
    is_odd = odd_areas(split.boxes, split.areas) & split.is_object
    yield from split.in_annotations("area-odd", is_odd, lambda row: f"area {split.areas[row]:g}")

    def image(row: int) -> str:
        return f"in an image of {size[row, 0]:.0f}×{size[row, 1]:.0f}" if np.isfinite(size[row, 0]) else ""

    yield from split.in_annotations("box-outside", is_outside(split, size), image)
    pairs = duplicate_boxes(split)
    other_of = dict(zip(pairs[:, 1].tolist(), pairs[:, 0].tolist(), strict=True))

    def other(row: int) -> str:
        first = split.annotation_ids[other_of[row]]
        return f"{split.class_name(row)}, as {'an earlier one' if first is None else f'annotation {first}'}"

    yield from split.in_annotations("box-duplicate", sorted(other_of), other)

    width, height = split.boxes[:, 2], split.boxes[:, 3]
    shorter, longer = np.minimum(width, height), np.maximum(width, height)
    is_tiny = split.is_object & (shorter < TINY_SIDE)
    yield from split.in_annotations("box-tiny", is_tiny, split.class_name)
    with np.errstate(invalid="ignore"):
        is_whole = split.is_object & (width * height >= WHOLE_IMAGE * size.prod(axis=1))
        is_long = split.is_object & ~is_tiny & (longer > EXTREME_RATIO * shorter)

    def ratio(row: int) -> str:
        return f"{split.class_name(row)}, {longer[row] / shorter[row]:.0f} : 1"

    yield from split.in_annotations("box-whole-image", is_whole, split.class_name)
    yield from split.in_annotations("box-extreme-ratio", is_long, ratio)
    yield from split.in_annotations("crowd", split.is_crowd, split.class_name)


def sizes_of_annotations(split: Split, image_sizes: np.ndarray) -> np.ndarray:
    """Width and height of each annotation's image, infinite where unknown, [M, 2] float64."""
    sizes = np.vstack([image_sizes, [[0, 0]]]).astype(np.float64)
    sizes[(sizes == 0).any(axis=1)] = np.inf
    return sizes[np.maximum(split.image, -1)]  # the last row for annotations without an image


def is_outside(split: Split, size: np.ndarray) -> np.ndarray:
    """Boxes with an area that extend outside images of ``size`` [M, 2] by more than the tolerance, [M] bool."""
    return has_area(split, size) & check_boxes(split.boxes, size)[2]


def has_area(split: Split, size: np.ndarray) -> np.ndarray:
    """Finite boxes with an area, also after clipping to images of ``size`` [M, 2] unless wholly outside, [M] bool."""
    _, is_empty, is_outside = check_boxes(split.boxes, size)
    with np.errstate(invalid="ignore"):
        has_sides = np.isfinite(split.boxes).all(axis=1) & (split.boxes[:, 2:] > 0).all(axis=1)
    return has_sides & (~is_empty | is_outside)


def duplicate_boxes(split: Split) -> np.ndarray:
    """Pairs of annotations of the same image and class with IoU over 0.95, [P, 2]; the earlier one is first.

    Boxes are sorted by image, class and left side. Each is compared with those that follow, one step further per turn,
    while the left sides are near enough for such an IoU. So the cost grows with the number of near pairs, not with the
    square of the boxes per image.
    """
    rows = np.flatnonzero(split.is_object)
    left = split.boxes[rows, 0]
    order = np.lexsort((left, split.label[rows], split.image[rows]))
    rows = rows[order]
    group = split.image[rows] * max(1, len(split.categories)) + split.label[rows]
    corners = np.concatenate([split.boxes[rows, :2], split.boxes[rows, :2] + split.boxes[rows, 2:]], axis=1)
    area = split.boxes[rows, 2:].prod(axis=1)
    # The overlap is at most first's right side minus second's left, and must be at least 0.95 of first's width.
    last_left = corners[:, 0] + (1 - DUPLICATE_IOU) * split.boxes[rows, 2]
    pairs = [np.empty((0, 2), dtype=np.int64)]
    first = np.arange(len(rows))
    shift = 0
    while len(first):
        shift += 1
        first = first[first + shift < len(rows)]
        second = first + shift
        is_near = (group[first] == group[second]) & (corners[second, 0] <= last_left[first])
        first, second = first[is_near], second[is_near]
        overlap = np.minimum(corners[first, 2:], corners[second, 2:]) - np.maximum(
            corners[first, :2], corners[second, :2]
        )
        intersection = overlap.clip(min=0).prod(axis=1)
        is_same = intersection > DUPLICATE_IOU * (area[first] + area[second] - intersection)
        pairs.append(np.stack([rows[first[is_same]], rows[second[is_same]]], axis=1))
    return np.sort(np.concatenate(pairs), axis=1)
