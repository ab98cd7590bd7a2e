"""Tiles of a large image: where they lie, and one set of boxes from those that were found in each. Imports no torch.

Dimension key: N boxes. Boxes are xyxy in pixels of the image, windows top, left, height, width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

TOUCH = 1 / 256  # of a tile's side: a box that ends this near a border may go on beyond it
BLOCK = 256  # boxes that are compared with each other at a time
PAIRS = 1 << 18  # pairs of boxes whose overlap is computed at a time

Window = tuple[int, int, int, int]


@dataclass(frozen=True)
class Grid:
    """The tiles of one image, in rows from the top left; the last ones are shifted to end where the image does.

    An image of 1,000 pixels has tiles of 400 with an overlap of 0.25 at 0, 300 and 600, one of 900 at 0, 300 and 500.
    A side that is shorter than a tile has one window of its own length.
    """

    height: int
    width: int
    size: int
    overlap: float  # fraction of the side that neighbours share at least

    @cached_property
    def tops(self) -> np.ndarray:
        return _starts(self.height, self.size, self.overlap)

    @cached_property
    def lefts(self) -> np.ndarray:
        return _starts(self.width, self.size, self.overlap)

    def __len__(self) -> int:
        return len(self.tops) * len(self.lefts)

    def __getitem__(self, index: int) -> Window:
        row, column = divmod(index, len(self.lefts))
        if not 0 <= row < len(self.tops):
            raise IndexError(index)
        top, left = int(self.tops[row]), int(self.lefts[column])
        return top, left, min(self.size, self.height), min(self.size, self.width)

    def is_cut(self, index: int, boxes: np.ndarray) -> np.ndarray:
        """Which boxes [N, 4] of a tile another tile shows more of, [N] bool.

        Such a box touches an inner border, and its other end lies inside the tile beyond. An object that is longer than
        the overlap is whole in no tile, so its boxes stay.
        """
        (x_ends, x_more), (y_ends, y_more) = self._ends(index, boxes)
        return (x_ends & x_more | y_ends & y_more).any(axis=0)

    def is_part(self, index: int, boxes: np.ndarray) -> np.ndarray:
        """Which boxes [N, 4] of a tile touch an inner border, so that the object may go on beyond it, [N] bool."""
        (x_ends, _), (y_ends, _) = self._ends(index, boxes)
        return (x_ends | y_ends).any(axis=0)

    def _ends(self, index: int, boxes: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """For x and y: whether boxes touch the tile's lower and upper border, and whether the tile beyond has the rest.

        Both are [2, N] bool.
        """
        row, column = divmod(index, len(self.lefts))
        axes = (boxes[:, 0], boxes[:, 2], self.lefts, column), (boxes[:, 1], boxes[:, 3], self.tops, row)
        return [_ends(*axis, self.size) for axis in axes]


def _starts(side: int, size: int, overlap: float) -> np.ndarray:
    last, step = max(0, side - size), max(1, round(size * (1 - overlap)))
    return np.minimum(np.arange(0, last + step, step), last)


def _ends(
    low: np.ndarray, high: np.ndarray, starts: np.ndarray, index: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """:meth:`Grid._ends` along one axis, for the tile ``index`` of ``starts``."""
    touch = max(1.0, size * TOUCH)
    ends, more = np.zeros((2, 2, len(low)), dtype=bool)
    if index > 0:
        ends[0], more[0] = low < starts[index] + touch, high <= starts[index - 1] + size - touch
    if index + 1 < len(starts):
        ends[1], more[1] = high > starts[index] + size - touch, low >= starts[index + 1] + touch
    return ends, more


def merge_boxes(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, threshold: float, by: str = "iou"
) -> np.ndarray:
    """Class-wise non-maximum suppression in O(N) memory: indices of the boxes that stay, best first; ties by order.

    A box goes where a better one of its class overlaps it by more than ``threshold``: ``iou``, or ``ios``, the
    intersection over the smaller of the two. Only boxes of neighbouring cells are compared.
    """
    order = np.argsort(-scores, kind="stable")
    labels = labels[order]
    sides = boxes[order].T.astype(np.float64)  # [4, N]: operations run along the many boxes
    overlap, cells = OVERLAPS[by], _Cells(sides, labels, threshold if by == "iou" else 0.0)
    is_open, kept, start = np.ones(len(boxes), dtype=bool), [], 0
    while len(block := np.flatnonzero(is_open[start:])[:BLOCK] + start):
        start = int(block[-1]) + 1
        own, label = sides[:, block], labels[block]
        suppresses = (overlap(own[:, :, None], own[:, None]) > threshold) & (label[:, None] == label)
        best = block[_greedy(np.triu(suppresses, 1))]
        kept.append(best)
        for first, second in cells.pairs(best):
            may_meet = is_open[second] & (second >= start)
            first, second = first[may_meet], second[may_meet]
            may_meet = (sides[0, first] < sides[2, second]) & (sides[0, second] < sides[2, first])
            first, second = first[may_meet], second[may_meet]
            is_open[second[overlap(sides[:, first], sides[:, second]) > threshold]] = False
    return order[np.concatenate([*kept, np.zeros(0, dtype=np.int64)])]


def _greedy(suppresses: np.ndarray) -> np.ndarray:
    """Which boxes stay, best first, [n] bool: each round settles at least the next one."""
    before, stays = None, np.ones(len(suppresses), dtype=bool)
    while before is None or (stays != before).any():
        before, stays = stays, ~(suppresses & stays[:, None]).any(axis=0)
    return stays


def _areas(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What boxes [4, ...] share, and the areas of each."""
    width = np.minimum(one[2], other[2]) - np.maximum(one[0], other[0])
    height = np.minimum(one[3], other[3]) - np.maximum(one[1], other[1])
    first, second = ((each[2] - each[0]) * (each[3] - each[1]) for each in (one, other))
    return width.clip(min=0) * height.clip(min=0), first, second


def iou(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes [4, ...]; 0 of two without area."""
    shared, first, second = _areas(one, other)
    return shared / np.maximum(first + second - shared, 1e-12)


def ios(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Intersection over the smaller of two boxes [4, ...]: 1 for a box inside another."""
    shared, first, second = _areas(one, other)
    return shared / np.maximum(np.minimum(first, second), 1e-12)


class _Cells:
    """Boxes by the cell that their corner lies in. A box of level l has sides of at most 2^l pixels, as has its cell.

    So on the coarser level of two boxes, each ends at most in the next cell: they can only overlap where their corners
    are in neighbouring cells. By IoU, boxes of very different sizes cannot overlap enough either.
    """

    def __init__(self, sides: np.ndarray, labels: np.ndarray, threshold: float) -> None:
        self.labels = labels.astype(np.int64)
        self.corners = sides[:2] - sides[:2].min(axis=1, initial=math.inf)[:, None]  # [2, N]
        self.extent = self.corners.max(axis=1, initial=0)
        longest = (sides[2:] - sides[:2]).max(axis=0, initial=1)
        self.levels = np.ceil(np.log2(longest)).astype(int)
        furthest = math.ceil(-math.log2(threshold)) if threshold else math.inf  # levels whose boxes may overlap enough
        self.present = np.unique(self.levels).tolist()
        self.of_level, self.below = {}, {}  # sorted cells and their boxes: of each level, and of the finer ones
        for level in self.present:
            self.of_level[level] = self._table(self.levels == level, level)
            self.below[level] = self._table((self.levels < level) & (self.levels >= level - furthest), level)
        self.furthest = furthest

    def _cells(self, rows: np.ndarray, level: int) -> tuple[np.ndarray, int]:
        """The cells of boxes as numbers, and the distance between lines of cells; around all there is a free one."""
        columns, lines = (int(side) + 3 for side in self.extent // 2**level)
        column, line = (self.corners[:, rows] // 2**level).astype(np.int64) + 1
        return (self.labels[rows] * lines + line) * columns + column, columns

    def _table(self, is_member: np.ndarray, level: int) -> tuple[np.ndarray, np.ndarray]:
        rows = np.flatnonzero(is_member)
        cells = self._cells(rows, level)[0]
        order = cells.argsort(kind="stable")
        return cells[order], rows[order]

    def pairs(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Pairs (one of ``rows``, any box) that may overlap, some at a time."""
        levels = self.levels[rows]
        for level in self.present:
            is_near = (levels <= level) & (levels >= level - self.furthest)
            yield from self._pairs(rows[is_near], level, *self.of_level[level])
            yield from self._pairs(rows[levels == level], level, *self.below[level])

    def _pairs(
        self, rows: np.ndarray, level: int, cells: np.ndarray, others: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Each of ``rows`` with those of ``others`` in the nine cells around its corner."""
        if not len(rows) or not len(others):
            return
        own, columns = self._cells(rows, level)
        own = (own[:, None] + np.array([-columns, 0, columns])).ravel()
        first, end = np.searchsorted(cells, own - 1), np.searchsorted(cells, own + 1, side="right")
        found = np.flatnonzero(end > first)
        rows, first, counts = rows[found // 3], first[found], (end - first)[found]
        part = np.cumsum(counts) // PAIRS
        for some in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(part)) + 1):
            number = counts[some]
            within = np.arange(number.sum()) - np.repeat(number.cumsum() - number, number)
            yield np.repeat(rows[some], number), others[np.repeat(first[some], number) + within]


# How much two boxes overlap, for merging.
OVERLAPS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {"iou": iou, "ios": ios}
