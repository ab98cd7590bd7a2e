"""What a segmenter gets right and wrong, image by image, as plain figures.

Dimension key: I images, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from detector.data.segmentation import Masked
from detector.evaluation.segmentation import image_ious


@dataclass(frozen=True)
class PixelReport:
    """All figures of one tally against one truth."""

    metrics: dict[str, Any]  # of pixel_metrics
    images: list[dict[str, Any]]  # image, file, mIoU, pixel_accuracy and the class it has most wrong pixels of
    image_ious: np.ndarray  # [I], by image; -1 where all is ignored

    def figures(self) -> dict[str, Any]:
        """What report.json holds."""
        return {"metrics": self.metrics, "images": len(self.images)}


def pixel_report(rows: np.ndarray, truth: Masked, metrics: dict[str, Any]) -> PixelReport:
    """All figures of a tally's ``rows``; images with the lowest mean IoU first, without those that are all ignored."""
    names = [category.name for category in truth.categories]
    rows = rows.reshape(-1, 1 + 3 * len(names))
    by_image = np.full(len(truth), -1.0)
    by_image[rows[:, 0].astype(np.int64)] = image_ious(rows)
    images = []
    for row in rows:
        index = int(row[0])
        right, predicted, true = np.split(row[1:], 3)
        if not true.sum():
            continue
        wrong = predicted + true - 2 * right  # missed, and found where it is not
        images.append(
            {
                "image": index,
                "file": str(truth.file(index).relative_to(truth.root)),
                "mIoU": float(by_image[index]),
                "pixel_accuracy": float(right.sum() / true.sum()),
                "most_wrong": names[int(wrong.argmax())] if wrong.any() else "",
            }
        )
    images.sort(key=lambda one: (one["mIoU"], one["image"]))
    return PixelReport(metrics, images, by_image)
