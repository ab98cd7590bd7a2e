"""What people see of classification: images under their classes, scores and reports."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from detector.config.schema import Config, ModelConfig
from detector.data.classification import ClassDataset, ClassSample
from detector.evaluation.coverage import rare_classes
from detector.reports import figure
from detector.reports.class_page import classification_report
from detector.reports.confusion import write_confusion
from detector.reports.drawing import draw_lines
from detector.structures import Batch, Category

# --- looking at the data ----------------------------------------------------------------------------------------------


def untransformed(data: ClassDataset) -> ClassDataset:
    """The same images as stored, not mixed."""
    stored = copy.copy(data)
    stored.transform, stored.augment = lambda image, epoch, index: image, None  # type: ignore
    return stored


def draw_sample(sample: ClassSample, categories: Sequence[Category]) -> Image.Image:
    return _draw_classes(sample.image, sample.probabilities, categories)


def _draw_classes(image: Tensor, probabilities: Tensor, categories: Sequence[Category]) -> Image.Image:
    """An image [C, H, W] under its classes, with their probabilities [K] where it is mixed."""
    labels = [int(label) for label in probabilities.argsort(descending=True) if probabilities[label] > 0]
    texts = [
        categories[label].name + (f" {probabilities[label]:.2f}" if probabilities[label] < 1 else "")
        for label in labels
    ]
    return draw_lines(image.permute(1, 2, 0).numpy(), labels, texts)


# --- before the first step --------------------------------------------------------------------------------------------


def preview(data: ClassDataset, config: Config) -> list[str]:
    """Warnings where a class has few images."""
    return rare_classes(data.categories, data.labelled.counts().tolist(), "images")


def draw_batch(batch: Batch, categories: Sequence[Category], config: ModelConfig) -> list[Image.Image]:
    """Each image under its classes."""
    return [
        _draw_classes(image, probabilities, categories)
        for image, probabilities in zip(batch.images, batch.targets.probabilities, strict=True)
    ]


# --- scores -----------------------------------------------------------------------------------------------------------


def describe(metrics: dict[str, Any], per_class: bool) -> str:
    """The metrics as a table for a terminal."""
    numbers = [f"{name} {figure(value)}" for name, value in metrics.items() if isinstance(value, float)]
    lines = ["  ".join(numbers)]
    if per_class:
        columns = [name for name in ("precision", "recall", "f1", "AP") if name in metrics["per_class"][0]]
        width = max(5, *(len(row["name"]) for row in metrics["per_class"]))
        lines.append(f"{'class':<{width}}   images  " + "  ".join(f"{name:>9}" for name in columns))
        for row in metrics["per_class"]:
            cells = "  ".join(f"{figure(row[name]):>9}" for name in columns)
            lines.append(f"{row['name']:<{width}}  {row['images']:7d}  {cells}")
    return "\n".join(lines)


write_report = write_confusion
report = classification_report
