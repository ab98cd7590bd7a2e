"""What a classifier takes for what, as plain figures.

Dimension key: I images, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from detector.data.formats.class_folders import Labelled
from detector.evaluation.classification import by_image


@dataclass(frozen=True)
class ClassReport:
    """All figures of one set of scores against one truth."""

    metrics: dict[str, Any]  # of class_metrics
    confusion: np.ndarray | None  # [K, K] true by predicted class; None where images have several
    mistakes: list[dict[str, Any]]  # image, truth, prediction, score; the most confident first
    is_right: np.ndarray  # [I] bool; of images with several classes: all of them, and no other

    def figures(self) -> dict[str, Any]:
        """What report.json holds."""
        return {"metrics": self.metrics, "right": int(self.is_right.sum()), "images": len(self.is_right)}


def class_report(rows: np.ndarray, truth: Labelled, metrics: dict[str, Any]) -> ClassReport:
    """All figures of the rows of a tally; whether images have several classes, ``metrics`` say."""
    columns = by_image(rows)
    is_right = np.ones(len(columns), dtype=bool)
    if "confusion" in metrics:
        label, score, rank = columns.T
        image = np.flatnonzero(rank)  # a mistake is an image under another class
        label, score = label[image].astype(np.int64), score[image]
        confidence, confusion = score, np.array(metrics["confusion"])
    else:
        image, label = np.nonzero((columns >= 0.5) != truth.is_true())  # a class of an image, wrongly there or not
        score = columns[image, label]
        confidence, confusion = np.abs(score - 0.5), None
    is_right[image] = False
    order = np.argsort(-confidence, kind="stable")
    names = [category.name for category in truth.categories]
    mistakes = [
        {
            "image": int(index),
            "file": str(truth.file(index).relative_to(truth.root)),
            "true": ", ".join(names[own] for own in truth.labels_of(index)),
            "predicted": names[found] if confusion is not None or value >= 0.5 else f"not {names[found]}",
            "score": value,
        }
        for index, found, value in zip(image[order].tolist(), label[order].tolist(), score[order].tolist(), strict=True)
    ]
    return ClassReport(metrics, confusion, mistakes, is_right)
