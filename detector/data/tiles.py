"""Training on tiles: a data set whose images are windows of the images of another, listed without being written.

Dimension key: I images, N tiles, M boxes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from detector.config.schema import TilesConfig
from detector.data.detection import CheckedBoxes, CocoDataset
from detector.data.formats.annotations import Annotations, Extra
from detector.data.formats.columns import Ids, Texts
from detector.data.large import read_anywhere
from detector.data.transforms.resize import square
from detector.ops.tiles import Grid


class Listed(NamedTuple):
    """Tiles as images: those with objects, then all others, of which an epoch shows some."""

    annotations: Annotations  # [N]
    image: np.ndarray  # [N] the image that each is a window of
    tile: np.ndarray  # [N] its index in that image's grid
    count: int  # tiles per epoch


def list_tiles(annotations: Annotations, checked: CheckedBoxes, tiles: TilesConfig, seed: int) -> Listed:
    """The tiles of all images, with what is visible of each object in them: see ``data.tiles.min_visible``."""
    lowest, least = tiles.min_visible
    sizes = zip(annotations.heights.tolist(), annotations.widths.tolist(), strict=True)
    grids = [Grid(*size, tiles.size, tiles.overlap) for size in sizes]
    counts = np.array([len(grid) for grid in grids], dtype=np.int64)
    first, found = np.concatenate([[0], counts.cumsum()]), []
    for index, grid in enumerate(grids):
        rows = annotations.rows(index)
        row = np.flatnonzero(checked.is_kept[rows].numpy()) + rows.start
        if len(row):
            tile, which, boxes, visible = visible_boxes(checked.boxes[row].double().numpy(), grid)
            found.append((first[index] + tile, row[which], boxes, visible))
    empty = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros((0, 4)), np.zeros(0)
    tile, row, boxes, visible = (np.concatenate(columns) for columns in zip(empty, *found, strict=True))
    is_crowd = annotations.is_crowd.numpy()[row]
    is_kept = is_crowd | (visible >= lowest)
    tile, row, boxes, visible, is_crowd = (column[is_kept] for column in (tile, row, boxes, visible, is_crowd))
    is_crowd = is_crowd | (visible < least)

    has_object = np.bincount(tile[~is_crowd], minlength=first[-1]) > 0
    order = np.argsort(~has_object, kind="stable")  # of the tiles: those with objects come first
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    by_tile = np.argsort(place[tile], kind="stable")
    tile, row, boxes, is_crowd = (column[by_tile] for column in (tile, row, boxes, is_crowd))
    image = np.repeat(np.arange(len(grids)), counts)[order]

    positives, negatives = int(has_object.sum()), int((~has_object).sum())
    shown = math.ceil(tiles.negatives * negatives)
    turns = positives + np.random.default_rng([seed, 0]).permutation(negatives)
    extras = (Extra(positives, shown, torch.from_numpy(turns)),) if 0 < shown < negatives else ()
    xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    listed = replace(
        annotations,
        image_ids=Ids.counting(len(order)).map(torch.from_numpy),
        heights=torch.full((len(order),), tiles.size),
        widths=torch.full((len(order),), tiles.size),
        names=Texts.of(annotations.file_name(one) for one in image.tolist()).map(torch.from_numpy),
        first=torch.from_numpy(np.searchsorted(place[tile], np.arange(len(order) + 1))),
        annotation_ids=annotations.annotation_ids.select(row),
        boxes_xywh=torch.from_numpy(xywh),
        labels=annotations.labels[row],
        areas=torch.from_numpy(xywh[:, 2:].prod(axis=1)),
        is_crowd=torch.from_numpy(is_crowd),
        extras=extras,
    )
    return Listed(listed, image, order - first[image], positives + shown)


def visible_boxes(boxes: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What each tile shows of boxes [M, 4]: tile, index of the box, box in the tile, and its visible fraction, [n]."""
    rows, columns = (
        _touched(boxes[:, axis::2], starts, grid.size) for axis, starts in ((1, grid.tops), (0, grid.lefts))
    )
    counts = (rows[1] - rows[0]) * (columns[1] - columns[0])
    which = np.repeat(np.arange(len(boxes)), counts)
    number = np.arange(len(which)) - np.repeat(counts.cumsum() - counts, counts)
    row, column = np.divmod(number, (columns[1] - columns[0])[which])
    row, column = row + rows[0][which], column + columns[0][which]
    corner = np.stack([grid.lefts[column], grid.tops[row]] * 2, axis=1)
    whole = boxes[which]
    shown = (whole - corner).clip(0, grid.size)
    visible = (shown[:, 2:] - shown[:, :2]).prod(axis=1) / (whole[:, 2:] - whole[:, :2]).prod(axis=1)
    is_any = visible > 0
    tile = row * len(grid.lefts) + column
    return tile[is_any], which[is_any], shown[is_any], visible[is_any]


def _touched(spans: np.ndarray, starts: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The first tile of an axis that each span [M, 2] lies in, and the one after the last."""
    return np.searchsorted(starts, spans[:, 0] - size, side="right"), np.searchsorted(starts, spans[:, 1], side="left")


class TiledDataset(CocoDataset):
    """The tiles of a data set's images, each an image of its own; ``data.tiles`` says which.

    All tiles with objects come in each epoch; of the others a fraction, in turns. A tile is read when its turn comes:
    nothing is written.
    """

    def __init__(self, whole: CocoDataset, tiles: TilesConfig, listed: Listed) -> None:
        self.whole, self.tiles, self.listed = whole, tiles, listed
        given = whole.transform, "clip", whole.channels, whole.exif, whole.max_value
        super().__init__(listed.annotations, whole.images, *given)

    @classmethod
    def of(cls, whole: CocoDataset, tiles: TilesConfig, seed: int) -> TiledDataset:
        return cls(whole, tiles, list_tiles(whole.annotations, whole.checked, tiles, seed))

    def __len__(self) -> int:
        return self.listed.count

    def file(self, index: int) -> Path:
        return self.whole.file(int(self.listed.image[index]))

    def select(self, indices: Sequence[int]) -> TiledDataset:
        """Some of the tiles, in this order."""
        chosen = np.asarray(indices, dtype=np.int64)
        own = self.listed
        part = Listed(own.annotations.select(chosen), own.image[chosen], own.tile[chosen], len(chosen))
        return TiledDataset(self.whole, self.tiles, part)

    def summary(self) -> str:
        positives, size = int(self.has_targets.sum()), self.tiles.size
        return (
            f"{self.whole.summary()}\ntiles of {size}×{size}: {positives:,} with objects, and per epoch"
            f" {len(self) - positives:,} of {len(self.annotations) - positives:,} without"
        )

    def warnings(self) -> list[str]:
        return self.whole.warnings()

    def _read(self, index: int, height: int, width: int) -> np.ndarray:
        of = int(self.listed.image[index])
        image = self.whole.open(of, for_window=True)
        window = Grid(*image.shape[:2], self.tiles.size, self.tiles.overlap)[int(self.listed.tile[index])]
        return square(read_anywhere(image, window), self.tiles.size)
