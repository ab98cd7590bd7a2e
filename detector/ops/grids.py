"""From scores on a coarse grid to the classes of pixels. For numpy arrays and torch tensors alike; imports no torch.

Cell i of an axis is centred on i, pixel j covers [j, j + 1] of its image: interpolation is bilinear, as
``F.interpolate`` without ``align_corners``, but between the cells that the image itself covers, so that padding has no
part in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

LARGEST_BLOCK = 1 << 22  # scores that are interpolated at a time


class Points(NamedTuple):
    """Where P points lie between the cells of an axis."""

    low: Any  # [P] int64, the cell before each
    high: Any  # [P] int64, the cell behind it
    weight: Any  # [P] float32 of the latter


class Kind(NamedTuple):
    """How arrays of a library become indices and weights."""

    index: Callable[[Any], Any]
    weight: Callable[[Any], Any]


NUMPY = Kind(np.int64, np.float32)


def points(at: Any, covered: Any, extent: Any, kind: Kind = NUMPY, is_mirrored: bool = False) -> Points:
    """Where pixels ``at`` [P] lie between cells (or mirrored); the image has ``covered`` pixels, ``extent`` cells.

    Extents may be tensors: they are not read, so a GPU is not waited for.
    """
    at = (at + 0.5) * (extent / covered) - 0.5
    last = -((1e-4 - extent) // 1) - 1  # the last cell that the image touches; extents are float32
    at = (extent - 1 - at if is_mirrored else at).clip(min=0).clip(max=last)
    low = kind.index(at // 1)
    return Points(low, (low + 1).clip(max=kind.index(last)), kind.weight(at - low))


def interpolated(scores: Any, rows: Points, columns: Points) -> Any:
    """Scores [K, h, w] at the crossings of rows and columns, [K, P, Q]."""
    weight = rows.weight[:, None]
    band = scores[:, rows.low] * (1 - weight) + scores[:, rows.high] * weight
    return band[:, :, columns.low] * (1 - columns.weight) + band[:, :, columns.high] * columns.weight


def label_bands(scores: Any, rows: Points, columns: Points) -> Iterator[Any]:
    """The class with the highest score at each crossing, by bands of rows [P', Q]: full-size scores are never whole."""
    height = max(1, LARGEST_BLOCK // (len(scores) * max(1, len(columns.low))))
    for start in range(0, len(rows.low), height):
        own = Points(*(part[start : start + height] for part in rows))
        yield interpolated(scores, own, columns).argmax(0)
