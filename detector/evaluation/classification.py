"""Classification metrics, for one label per image and for several.

Dimension key: I images, B images of a batch, K classes. A figure with nothing to score (a class without images) is -1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from detector.evaluation.tally import Tally
from detector.structures import Category


def by_image(rows: np.ndarray) -> np.ndarray:
    """``rows`` [I, 1 + C] with the image's index in column 0, as [I, C] sorted by it."""
    columns = np.empty((len(rows), rows.shape[1] - 1))
    columns[rows[:, 0].astype(np.int64)] = rows[:, 1:]
    return columns


def single_label_tally(indices: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> Tally:
    """The tally of images with one label each: ``indices`` [B], ``scores`` [B, K], ``labels`` [B].

    Rows [B, 4]: image, predicted class (the first of those with the highest score), its score, and the rank of the true
    class, 0 where it is predicted. Sums [K, K]: the confusion matrix, true by predicted class.
    """
    num_classes = scores.shape[1]
    predicted = scores.argmax(axis=1)
    own_score = scores[np.arange(len(labels)), labels][:, None]
    is_before = (scores > own_score) | ((scores == own_score) & (np.arange(num_classes) < labels[:, None]))
    confusion = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(confusion, (labels, predicted), 1)
    return Tally(np.stack([indices, predicted, scores.max(axis=1), is_before.sum(axis=1)], axis=1), confusion)


def single_label_metrics(tally: Tally, categories: Sequence[Category]) -> dict[str, Any]:
    """``top1``, ``top5``, ``mean_class_accuracy``, ``macro_f1``, ``per_class`` and ``confusion``.

    ``confusion`` [K][K] counts images by true and predicted class.
    """
    rank, confusion = tally.rows[:, 3], tally.sums
    per_class = _per_class(np.diag(confusion), confusion.sum(axis=0), confusion.sum(axis=1), categories)
    return {
        "top1": float((rank < 1).mean()),
        "top5": float((rank < 5).mean()),
        "mean_class_accuracy": _mean(row["recall"] for row in per_class),
        "macro_f1": _mean(row["f1"] for row in per_class),
        "per_class": per_class,
        "confusion": confusion.tolist(),
    }


def multi_label_metrics(scores: np.ndarray, is_true: np.ndarray, categories: Sequence[Category]) -> dict[str, Any]:
    """``mAP``, ``macro_f1`` and ``per_class`` of ``scores`` and ``is_true`` [I, K]; all but AP at a score of 0.5."""
    is_predicted = scores >= 0.5
    per_class = _per_class(
        (is_predicted & is_true).sum(axis=0), is_predicted.sum(axis=0), is_true.sum(axis=0), categories
    )
    for label, row in enumerate(per_class):
        row["AP"] = average_precision(scores[:, label], is_true[:, label])
    return {
        "mAP": _mean(row["AP"] for row in per_class),
        "macro_f1": _mean(row["f1"] for row in per_class),
        "per_class": per_class,
    }


def average_precision(scores: np.ndarray, is_true: np.ndarray) -> float:
    """Σ (R_n - R_{n-1}) P_n over the distinct scores, highest first; -1 where nothing is true."""
    if not is_true.any():
        return -1.0
    order = np.argsort(-scores, kind="stable")
    right = np.cumsum(is_true[order])
    is_last = np.append(np.diff(scores[order]) != 0, True)  # equal scores are one step
    right, predicted = right[is_last], np.flatnonzero(is_last) + 1
    return float(np.sum(np.diff(right, prepend=0) / is_true.sum() * right / predicted))


def _per_class(
    right: np.ndarray, predicted: np.ndarray, true: np.ndarray, categories: Sequence[Category]
) -> list[dict[str, Any]]:
    """Figures of each class; the precision of one that was never predicted is 0."""
    recall = np.where(true > 0, right / np.maximum(true, 1), -1.0)
    precision = np.where(true > 0, right / np.maximum(predicted, 1), -1.0)
    f1 = np.where(true > 0, 2 * right / np.maximum(predicted + true, 1), -1.0)
    columns = (true.tolist(), precision.tolist(), recall.tolist(), f1.tolist())
    return [
        {"id": category.id, "name": category.name, "images": count, "precision": p, "recall": r, "f1": f}
        for category, count, p, r, f in zip(categories, *columns, strict=True)
    ]


def _mean(values: Any) -> float:
    known = [value for value in values if value >= 0]
    return sum(known) / len(known) if known else -1.0
