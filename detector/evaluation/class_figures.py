"""What a classifier takes for what, as plain figures.

Dimension key: I pictures, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from detector.data.formats.class_folders import Labelled
from detector.evaluation.classification import by_picture


@dataclass(frozen=True)
class ClassReport:
    """All figures of one set of scores against one truth."""

    metrics: dict[str, Any]  # of class_metrics
    confusion: np.ndarray | None  # [K, K] true by predicted class; None where pictures have several
    mistakes: list[dict[str, Any]]  # picture, truth, prediction, score; the most confident first
    is_right: np.ndarray  # [I] bool; of pictures with several classes: all of them, and no other

    def figures(self) -> dict[str, Any]:
        """What report.json holds."""
        return {"metrics": self.metrics, "right": int(self.is_right.sum()), "pictures": len(self.is_right)}


def class_report(rows: np.ndarray, truth: Labelled, metrics: dict[str, Any]) -> ClassReport:
    """All figures of ``rows`` [I, 1 + K]; whether pictures have several classes, ``metrics`` say."""
    scores, is_true = by_picture(rows), truth.is_true()
    if "confusion" in metrics:
        is_found = np.zeros(scores.shape, dtype=bool)
        is_found[np.arange(len(scores)), scores.argmax(axis=1)] = True
        is_wrong = is_found & ~is_true  # a mistake is a picture under another class
        confidence, confusion = scores, np.array(metrics["confusion"])
    else:
        is_wrong = (scores >= 0.5) != is_true  # a mistake is a class of a picture, wrongly there or not
        confidence, confusion = np.abs(scores - 0.5), None
    picture, label = np.nonzero(is_wrong)
    order = np.argsort(-confidence[picture, label], kind="stable")
    names = [category.name for category in truth.categories]
    mistakes = [
        {
            "picture": int(index),
            "file": str(truth.file(index).relative_to(truth.root)),
            "true": ", ".join(names[own] for own in truth.labels_of(index)),
            "predicted": names[found]
            if confusion is not None or scores[index, found] >= 0.5
            else f"not {names[found]}",
            "score": float(scores[index, found]),
        }
        for index, found in zip(picture[order].tolist(), label[order].tolist(), strict=True)
    ]
    return ClassReport(metrics, confusion, mistakes, ~is_wrong.any(axis=1))
