"""COCO's polygons and run-length masks, drawn as the classes of pixels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detector.data.formats.coco_values import area_of_segmentation, mask_of_segmentation
from detector.errors import DataError, unreadable
from detector.structures import IGNORED_PIXEL, Category

MOST_BYTES = 2**33


@dataclass(frozen=True)
class Drawing:
    """The objects of each image as JSON in one block of bytes, which forked workers share; a row each."""

    path: Path
    block: np.ndarray  # uint8
    ends: np.ndarray  # [I + 1]
    first: np.ndarray  # [I] where the rows of each image begin in ends
    background: int

    def read(self, index: int, height: int, width: int) -> np.ndarray:
        """The mask [H, W] uint8 of an image: large objects first, so that small ones on them are seen."""
        place = self.first[index]
        mask = np.full((height, width), self.background, dtype=np.uint8)
        for identity, label, segmentation in json.loads(self.block[self.ends[place] : self.ends[place + 1]].tobytes()):
            drawn = mask_of_segmentation(segmentation, height, width)
            if drawn is None:
                raise DataError(
                    f"{self.path}: annotation {identity}: its segmentation is neither polygons nor a run-length mask of"
                    f" its image, {width}×{height}; correct or remove it"
                )
            mask[drawn] = label
        return mask

    def select(self, indices: np.ndarray) -> Drawing:
        return Drawing(self.path, self.block, self.ends, self.first[indices], self.background)


@dataclass(frozen=True)
class CocoMasks:
    """What a file says of its images, in its order."""

    categories: list[Category]
    files: list[str]
    sizes: np.ndarray  # [I, 2] height, width; 0 where the file does not say
    drawing: Drawing


def read_coco_masks(path: Path, classes: Sequence[str] | None, background: str | None) -> CocoMasks:
    """The masks of a COCO JSON file; ``classes`` (names) select and order them, objects of others are not drawn.

    Raises :class:`detector.errors.DataError` for the first fault.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8-sig"))
        listed = [Category(one["id"], one["name"]) for one in tree["categories"]]
        images = [(one["id"], one["file_name"], one.get("height", 0), one.get("width", 0)) for one in tree["images"]]
        annotations = tree["annotations"]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {unreadable(path, error, '*.json')}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__} {error}"[:100]
        raise DataError(f"{path}: is not COCO JSON with images, annotations and categories ({reason})") from None
    categories = _categories(path, listed, classes, background)
    label_of = {category.id: label for label, category in enumerate(categories)}
    known = {category.id for category in listed}
    place_of = {image[0]: place for place, image in enumerate(images)}
    if len(place_of) < len(images):
        raise DataError(f"{path}: two images have the same id; give each its own")
    rows: list[list[tuple[float, Any]]] = [[] for _ in images]
    for number, one in enumerate(annotations):
        try:
            identity, place, own = one.get("id", number), place_of[one["image_id"]], one["category_id"]
            if own not in known:
                raise KeyError(own)
            segmentation = one.get("segmentation")
        except (KeyError, TypeError, AttributeError):
            raise DataError(
                f"{path}: annotation {number + 1} of the list has no image or category that is listed"
            ) from None
        if own not in label_of:
            continue
        area = area_of_segmentation(segmentation) if segmentation else None
        if area is None:
            raise DataError(
                f"{path}: annotation {identity}: has no segmentation with an area; boxes alone are no masks: remove it,"
                " or train a detector"
            )
        rows[place].append((area, (identity, label_of[own], segmentation)))
    texts = [json.dumps([row for _, row in sorted(own, key=lambda pair: -pair[0])]).encode() for own in rows]
    label = next((label for label, own in enumerate(categories) if own.name == background), IGNORED_PIXEL)
    block, ends = np.frombuffer(b"".join(texts), dtype=np.uint8), np.cumsum([0, *map(len, texts)])
    sizes = np.array([image[2:] for image in images], dtype=np.int64).reshape(-1, 2)
    drawing = Drawing(path, block, ends, np.arange(len(images)), label)
    return CocoMasks(categories, [image[1] for image in images], sizes, drawing)


def _categories(
    path: Path, listed: list[Category], classes: Sequence[str] | None, background: str | None
) -> list[Category]:
    """The classes by name, with the file's ids; the background, which no object has, gets the id 0 or a free one."""
    by_name = {category.name: category for category in listed}
    if background is not None and background not in by_name:
        ids = {category.id for category in listed}
        by_name[background] = Category(next(number for number in range(len(ids) + 1) if number not in ids), background)
        listed = [by_name[background], *listed]
    if len(by_name) < len(listed):
        raise DataError(f"{path}: two categories have the same name; rename one")
    if classes is None:
        return listed
    for name in classes:
        if name not in by_name:
            raise DataError(f"{path}: has no category {name!r} (data.classes); it has {', '.join(list(by_name)[:10])}")
    return [by_name[name] for name in classes]
