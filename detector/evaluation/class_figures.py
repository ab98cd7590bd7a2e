"""What a classifier gets right and wrong, as plain figures.

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
    confusion: np.ndarray | None  # [K, K] true by predicted class; None with several labels per image
    mistakes: list[dict[str, Any]]  # image, truth, prediction, score; the most confident first
    is_right: np.ndarray  # [I] bool; with several labels: exactly the true ones are predicted

    def figures(self) -> dict[str, Any]:
        """What report.json holds."""
        return {"metrics": self.metrics, "right": int(self.is_right.sum()), "images": len(self.is_right)}


def class_report(rows: np.ndarray, truth: Labelled, metrics: dict[str, Any]) -> ClassReport:
    """All figures of a tally's ``rows``; ``metrics`` without ``confusion`` are those of several labels per image."""
    columns = by_image(rows)
    is_right = np.ones(len(columns), dtype=bool)
    if "confusion" in metrics:
        label, score, rank = columns.T
        image = np.flatnonzero(rank)
        label, score = label[image].astype(np.int64), score[image]
        confidence, confusion = score, np.array(metrics["confusion"])
    else:
        image, label = np.nonzero((columns >= 0.5) != truth.is_true())  # each wrong class of an image is a mistake
        score = columns[image, label]
        confidence, confusion = np.abs(score - 0.5), None
    is_right[image] = False
    order = np.argsort(-confidence, kind="stable")
    names = [category.name for category in truth.categories]
    mistakes = [
        {
            "image": int(index),
            "file": str(truth.file(index).relative_to(truth.root)),
            "true": ", ".join(names[true] for true in truth.labels_of(index)),
            "predicted": names[predicted] if confusion is not None or value >= 0.5 else f"not {names[predicted]}",
            "score": value,
        }
        for index, predicted, value in zip(
            image[order].tolist(), label[order].tolist(), score[order].tolist(), strict=True
        )
    ]
    return ClassReport(metrics, confusion, mistakes, is_right)
