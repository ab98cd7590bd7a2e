"""What can be found in the annotation file alone: ids, categories and boxes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

import numpy as np

from detector.doctor.columns import DANGLING, NO_ID, Split
from detector.doctor.findings import Example, Finding, found

TOLERANCE = 1  # pixels outside that are no fault: annotation tools round (as detector.data.coco has it)
DUPLICATE_IOU = 0.95
TINY_SIDE = 2.0  # pixels
WHOLE_IMAGE = 0.98  # of the picture's area
EXTREME_RATIO = 10.0


def check_annotations(split: Split) -> Iterator[Finding]:
    """Findings of one split, those of reading it included."""
    yield from split.faults
    yield from _ids(split)
    yield from _categories(split)
    if split.has_boxes:
        yield from _sizes(split)
        yield from _boxes(split)


def _ids(split: Split) -> Iterator[Finding]:
    name = split.name
    yield from found("image-id-duplicate", name, repeated(split.image_ids), lambda index: split.example_of_image(
        index, f"id {split.image_ids[index]}"))  # fmt: skip
    names = Counter(file for file in split.files if file)
    twice = {file for file, count in names.items() if count > 1}
    seen: set[str] = set()
    again = [i for i, file in enumerate(split.files) if file in twice and (file in seen or seen.add(file))]  # type: ignore[func-returns-value]
    yield from found("image-listed-twice", name, again, lambda index: split.example_of_image(
        index, f"image {split.image_ids[index]}"))  # fmt: skip
    if not split.has_boxes:
        return
    yield from found("annotation-id-duplicate", name, repeated(split.annotation_ids), split.example_of_annotation)
    yield from found("image-dangling", name, np.flatnonzero(split.image == DANGLING), split.example_of_annotation)
    yield from found("category-dangling", name, np.flatnonzero(split.label == DANGLING), split.example_of_annotation)


def repeated(ids: np.ndarray) -> np.ndarray:
    """Places of ids that stand before already, without those of no id."""
    first = np.full(len(ids), False)
    first[np.unique(ids, return_index=True)[1]] = True
    return np.flatnonzero(~first & (ids != NO_ID))


def _categories(split: Split) -> Iterator[Finding]:
    name, categories = split.name, split.categories
    ids = np.array([category.id for category in categories], dtype=np.int64)
    yield from found(
        "category-id-duplicate",
        name,
        repeated(ids),
        lambda place: Example(detail=" ".join(map(str, categories[place]))),
    )
    alike: dict[str, list[str]] = {}
    for category in categories:
        alike.setdefault(re.sub(r"[\W_]+", "", category.name.casefold()) or category.name, []).append(category.name)
    groups = [names for names in alike.values() if len(names) > 1]
    yield from found(
        "category-name-similar",
        name,
        range(len(groups)),
        lambda place: Example(detail=", ".join(map(repr, groups[place]))),
    )
    if split.has_boxes and len(ids) > 1:
        ids = np.unique(ids)
        gaps = [
            f"{low} to {high}" for low, high in zip(ids[:-1].tolist(), ids[1:].tolist(), strict=True) if high > low + 1
        ]
        yield from found("category-id-gap", name, range(len(gaps)), lambda place: Example(detail=gaps[place]))


def _sizes(split: Split) -> Iterator[Finding]:
    places = np.flatnonzero(split.is_entry & (split.sizes == 0).any(axis=1))
    yield from found("size-missing", split.name, places, split.example_of_image)


def _boxes(split: Split) -> Iterator[Finding]:
    name, example = split.name, split.example_of_annotation
    is_finite = np.isfinite(split.boxes).all(axis=1)
    yield from found("box-not-finite", name, np.flatnonzero(~is_finite & ~split.is_implied), example)
    yield from found("box-no-area", name, np.flatnonzero(is_finite & ~has_area(split)), example)
    size = annotated_sizes(split)
    yield from found("box-outside", name, np.flatnonzero(is_outside(split, size)), lambda row: example(
        row, f"in a picture of {size[row, 0]:.0f}×{size[row, 1]:.0f}"))  # fmt: skip
    pairs = duplicate_boxes(split)
    other_of = dict(zip(pairs[:, 1].tolist(), pairs[:, 0].tolist(), strict=True))
    yield from found("box-duplicate", name, sorted(other_of), lambda row: example(
        row, f"{split.class_name(row)}, as annotation {split.annotation_ids[other_of[row]]}"))  # fmt: skip

    is_object = split.is_object
    width, height = split.boxes[:, 2], split.boxes[:, 3]
    shorter, longer = np.minimum(width, height), np.maximum(width, height)
    is_tiny = is_object & (shorter < TINY_SIDE)
    yield from found("box-tiny", name, np.flatnonzero(is_tiny), lambda row: example(row, split.class_name(row)))
    with np.errstate(invalid="ignore", divide="ignore"):
        is_whole = is_object & (width * height >= WHOLE_IMAGE * size.prod(axis=1))
        is_long = is_object & ~is_tiny & (longer > EXTREME_RATIO * shorter)
    yield from found("box-whole-image", name, np.flatnonzero(is_whole), lambda row: example(row, split.class_name(row)))
    yield from found("box-extreme-ratio", name, np.flatnonzero(is_long), lambda row: example(
        row, f"{split.class_name(row)}, {longer[row] / shorter[row]:.0f} : 1"))  # fmt: skip
    yield from found("crowd", name, np.flatnonzero(split.is_crowd), lambda row: example(row, split.class_name(row)))


def annotated_sizes(split: Split) -> np.ndarray:
    """Width and height of each annotation's image, infinite where they are not known, [M, 2] float64."""
    sizes = np.vstack([split.sizes, [[0, 0]]]).astype(np.float64)
    sizes[(sizes == 0).any(axis=1)] = np.inf
    return sizes[np.maximum(split.image, -1)]  # the last row for those of no image


def is_outside(split: Split, size: np.ndarray) -> np.ndarray:
    """Boxes with an area that reach more than the tolerance outside images of ``size`` [M, 2], [M] bool."""
    with np.errstate(invalid="ignore"):
        right_below = split.boxes[:, :2] + split.boxes[:, 2:]
        reaches_out = (split.boxes[:, :2] < -TOLERANCE) | (right_below > size + TOLERANCE)
    return has_area(split) & reaches_out.any(axis=1)


def has_area(split: Split) -> np.ndarray:
    """Boxes of finite numbers whose width and height are positive, [M] bool."""
    with np.errstate(invalid="ignore"):
        return np.isfinite(split.boxes).all(axis=1) & (split.boxes[:, 2:] > 0).all(axis=1)


def duplicate_boxes(split: Split) -> np.ndarray:
    """Pairs of annotations of the same image and class with IoU over 0.95, [P, 2]; the earlier one is first.

    Boxes are sorted by image, class and left side; each is compared with those that follow, one further at each turn,
    as long as the left sides are near enough for such an IoU. So the work grows with the pairs there are, not with the
    square of an image's boxes.
    """
    rows = np.flatnonzero(split.is_object)
    left = split.boxes[rows, 0]
    order = np.lexsort((left, split.label[rows], split.image[rows]))
    rows = rows[order]
    group = split.image[rows] * max(1, len(split.categories)) + split.label[rows]
    corners = np.concatenate([split.boxes[rows, :2], split.boxes[rows, :2] + split.boxes[rows, 2:]], axis=1)
    area = split.boxes[rows, 2:].prod(axis=1)
    # The overlap is at most first's right side less second's left, and at least 0.95 of first's width.
    reach = corners[:, 0] + (1 - DUPLICATE_IOU) * split.boxes[rows, 2]
    pairs = [np.empty((0, 2), dtype=np.int64)]
    first = np.arange(len(rows))
    shift = 0
    while len(first):
        shift += 1
        first = first[first + shift < len(rows)]
        second = first + shift
        is_near = (group[first] == group[second]) & (corners[second, 0] <= reach[first])
        first, second = first[is_near], second[is_near]
        overlap = np.minimum(corners[first, 2:], corners[second, 2:]) - np.maximum(
            corners[first, :2], corners[second, :2]
        )
        shared = overlap.clip(min=0).prod(axis=1)
        is_same = shared > DUPLICATE_IOU * (area[first] + area[second] - shared)
        pairs.append(np.stack([rows[first[is_same]], rows[second[is_same]]], axis=1))
    return np.sort(np.concatenate(pairs), axis=1)
