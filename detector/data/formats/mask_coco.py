"""COCO's polygons and run-length masks, drawn as the classes of pixels."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detector.data.formats.coco_rows import read_rows
from detector.data.formats.coco_values import area_of_segmentation, mask_of_segmentation
from detector.data.formats.columns import show_id
from detector.errors import DataError
from detector.structures import IGNORED_PIXEL, Category
from detector.system.json_stream import open_json


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
    note: str  # on what was read although it is not strict COCO


def read_coco_masks(path: Path, classes: Sequence[str] | None, background: str | None) -> CocoMasks:
    """The masks of a COCO JSON file; ``classes`` (names) select and order them, objects of others are not drawn.

    Raises :class:`detector.errors.DataError` for the first fault.
    """
    listed = read_rows(path, is_strict=True)
    categories = _categories(path, listed.categories, classes, background)
    label_of = {category.id: label for label, category in enumerate(categories)}
    rows: list[list[tuple[float, Any]]] = [[] for _ in listed.image_ids]
    for number, segmentation in enumerate(_segmentations(path)):
        label = label_of.get(listed.categories[listed.label[number]].id)
        if label is None:
            continue
        area = area_of_segmentation(segmentation) if segmentation else None
        identity = listed.annotation_ids[number]
        if area is None:
            which = f"annotation {number + 1} of the list" if identity is None else f"annotation {show_id(identity)}"
            raise DataError(
                f"{path}: {which}: has no segmentation with an area; boxes alone are no masks: remove it, or train a"
                " detector"
            )
        rows[listed.image[number]].append((area, (identity, label, segmentation)))
    texts = [json.dumps([row for _, row in sorted(own, key=lambda pair: -pair[0])]).encode() for own in rows]
    rest = next((label for label, own in enumerate(categories) if own.name == background), IGNORED_PIXEL)
    block, ends = np.frombuffer(b"".join(texts), dtype=np.uint8), np.cumsum([0, *map(len, texts)])
    sizes = np.stack([listed.heights, listed.widths], axis=1)
    names = [listed.names[index] for index in range(len(rows))]
    return CocoMasks(categories, names, sizes, Drawing(path, block, ends, np.arange(len(rows)), rest), listed.notice)


def _segmentations(path: Path) -> Iterator[Any]:
    """What the annotations of a file that was read say of their pixels, in its order."""
    with open_json(path) as stream:
        stream.peek()
        for table in stream.members():
            if table == "annotations":
                yield from (one.get("segmentation") for one in stream.elements())
            else:
                stream.skip()


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
