"""Segmentation metrics, all from one confusion matrix of pixels that batches and ranks add up.

Dimension key: K classes. A figure with nothing to score (a class that is neither true nor predicted anywhere) is -1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from detector.evaluation.tally import Kept, Tally
from detector.structures import IGNORED_PIXEL, Category

SIZES = {"s": 0, "m": 32**2, "l": 96**2}  # the least pixels of a region of each size, as COCO divides objects
BORDER = 0.02  # of the image's diagonal: how near to a border Boundary IoU looks (Cheng et al. 2021, section 5)


def pixel_tally(index: int, truth: np.ndarray, predicted: np.ndarray, classes: int, has_borders: bool) -> Tally:
    """The tally of one image: ``truth`` and ``predicted`` [H, W] uint8, the former with ignored pixels.

    Rows [1, 1 + 3K]: image, and by class the pixels that are right, predicted and true. Sums [K, K + 9]: the confusion
    matrix, true by predicted class, and :func:`by_size`; with ``has_borders`` two columns more, by class the right
    pixels near borders, and those that are near a border of either. The prediction is kept if the image's mean IoU is
    among the lowest.
    """
    is_counted = truth != IGNORED_PIXEL
    pairs = truth[is_counted].astype(np.int64) * classes + predicted[is_counted]
    confusion = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    by_class = np.concatenate([np.diag(confusion), confusion.sum(axis=0), confusion.sum(axis=1)])
    rows = np.concatenate([[index], by_class])[None].astype(np.float64)
    seen = np.where(is_counted, predicted, IGNORED_PIXEL)
    sums = [confusion, by_size(truth, seen, classes)] + [near_borders(truth, seen, classes)] * has_borders
    (score,) = image_ious(rows)
    return Tally(rows, np.hstack(sums), (Kept(score, index, predicted),) if score >= 0 else ())


def image_ious(rows: np.ndarray) -> np.ndarray:
    """The mean IoU of each row's image over the classes that are in it or predicted there, [I]; -1 of none."""
    right, predicted, true = np.split(rows[:, 1:], 3, axis=1)
    ious = _quotients(right, predicted + true - right)
    return np.array([mean_known(own) for own in ious])


def by_size(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Right, true and wrongly predicted pixels by the size of their region, [K, 9]: of each for s, m and l.

    A true pixel belongs to the region of truth around it, a wrong prediction to the predicted region around it. So each
    of the three adds up over the sizes to the class's own.
    """
    sizes, counts = len(SIZES), []
    is_wrong = truth != predicted
    for mask, chosen in ((truth, ~is_wrong), (truth, slice(None)), (predicted, is_wrong)):
        keys = mask.astype(np.int64) * sizes + region_sizes(mask)
        counts.append(np.bincount(keys[chosen].ravel(), minlength=classes * sizes)[: classes * sizes])
    return np.hstack([own.reshape(classes, sizes) for own in counts])


def region_sizes(mask: np.ndarray) -> np.ndarray:
    """The size of the region that each pixel is in, an index of ``SIZES``, [H, W].

    A region is what is connected by common sides of pixels of one class. All classes take one pass, on a grid that has
    a point for each pixel, and one between two neighbours if they are of one class.
    """
    height, width = mask.shape
    grid = np.zeros((2 * height - 1, 2 * width - 1), dtype=np.uint8)
    grid[::2, ::2] = 1
    grid[::2, 1::2] = mask[:, 1:] == mask[:, :-1]
    grid[1::2, ::2] = mask[1:] == mask[:-1]
    region = cv2.connectedComponents(grid, connectivity=4)[1][::2, ::2]
    areas = np.bincount(region.ravel())
    return (np.digitize(areas, [*SIZES.values()]) - 1)[region]


def near_borders(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Intersection and union of the inner borders of each class, [K, 2] pixels.

    A border is what lies in a class and at most ``BORDER`` diagonals from what does not; beyond the image nothing does.
    """
    distance = max(1, round(BORDER * float(np.hypot(*truth.shape))))
    kernel, counts = np.ones((3, 3), dtype=np.uint8), np.zeros((classes, 2), dtype=np.int64)
    for label in np.union1d(np.unique(truth), np.unique(predicted)):
        if label != IGNORED_PIXEL:
            borders = []
            for mask in (truth, predicted):
                own = np.pad((mask == label).astype(np.uint8), 1)
                borders.append(((own - cv2.erode(own, kernel, iterations=distance)) > 0)[1:-1, 1:-1])
            counts[label] = (borders[0] & borders[1]).sum(), (borders[0] | borders[1]).sum()
    return counts


def pixel_metrics(sums: np.ndarray | None, categories: Sequence[Category]) -> dict[str, Any]:
    """``mIoU``, ``pixel_accuracy``, ``mean_accuracy``, ``mIoU_s`` (m, l) of regions by size, with borders
    ``boundary_mIoU``, ``per_class`` and ``confusion``.

    Ignored pixels count nowhere. A class that is neither true nor predicted is left out of the means; one that is only
    predicted has IoU 0.
    """
    classes = len(categories)
    sums = np.zeros((classes, classes + 9), dtype=np.int64) if sums is None else sums
    confusion = sums[:, :classes]
    right, predicted, true = np.diag(confusion), confusion.sum(axis=0), confusion.sum(axis=1)
    columns = {"iou": _quotients(right, predicted + true - right), "accuracy": _quotients(right, true)}
    metrics = {
        "mIoU": mean_known(columns["iou"]),
        "pixel_accuracy": float(_quotients(right.sum(), confusion.sum())),
        "mean_accuracy": mean_known(columns["accuracy"]),
    }
    of_size, borders = np.split(sums[:, classes:], [9], axis=1)
    for name, own in zip(SIZES, of_size.reshape(classes, 3, -1).transpose(2, 1, 0), strict=True):
        columns[f"iou_{name}"] = _quotients(own[0], own[1] + own[2])
        metrics[f"mIoU_{name}"] = mean_known(columns[f"iou_{name}"])
    if borders.size:
        columns["boundary_iou"] = _quotients(*borders.T)
        metrics["boundary_mIoU"] = mean_known(columns["boundary_iou"])
    per_class = [
        {"id": category.id, "name": category.name, "pixels": int(true[label])}
        | {name: float(column[label]) for name, column in columns.items()}
        for label, category in enumerate(categories)
    ]
    return metrics | {"per_class": per_class, "confusion": confusion.tolist()}


def _quotients(part: Any, whole: Any) -> np.ndarray:
    """``part / whole``, -1 where the whole is 0."""
    return np.where(np.asarray(whole) > 0, part / np.maximum(whole, 1), -1.0)


def mean_known(values: np.ndarray) -> float:
    """The mean of the values that are not -1; -1 of none."""
    known = values[values >= 0]
    return float(known.mean()) if len(known) else -1.0
