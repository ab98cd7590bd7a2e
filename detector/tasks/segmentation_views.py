"""What people see of segmentation: classes in colours over images, scores and reports."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from detector.config.schema import Config, ModelConfig
from detector.data.segmentation import MaskDataset, MaskSample, count_pixels
from detector.data.spot_check import spread
from detector.data.transforms.masks import StoredMask
from detector.errors import DetectorError, counted
from detector.reports import figure
from detector.reports.confusion import write_confusion
from detector.reports.drawing import draw_mask
from detector.reports.mask_page import segmentation_report
from detector.structures import Batch, Category

PREVIEWED = 200  # masks at most

# --- looking at the data ----------------------------------------------------------------------------------------------


def untransformed(data: MaskDataset) -> MaskDataset:
    """The same images and masks as stored."""
    stored = copy.copy(data)
    stored.transform = StoredMask(data.transform.config)
    return stored


def draw_sample(sample: MaskSample, categories: Sequence[Category]) -> Image.Image:
    """An image under its classes; ignored pixels keep their colours, darkened."""
    return draw_mask(sample.image.permute(1, 2, 0).numpy(), sample.mask.numpy(), [own.name for own in categories])


# --- before the first step --------------------------------------------------------------------------------------------


def preview(data: MaskDataset, config: Config) -> list[str]:
    """The classes' fractions of the pixels, and warnings where one has none."""
    chosen = spread(len(data), PREVIEWED)
    try:
        pixels = count_pixels(data.masked, chosen)
    except DetectorError:
        return []  # training reports it
    total, names = pixels.sum(axis=0), [category.name for category in data.categories]
    of_sample = f" of {len(chosen)} masks" if len(chosen) < len(data) else ""
    order = np.argsort(-total, kind="stable")
    shown = ", ".join(f"{names[label]} {total[label] / max(1, total.sum()):.1%}" for label in order[:12].tolist())
    lines = [f"pixels{of_sample}: {shown}{', …' * (len(names) > 12)}"]
    if missing := [name for name, count in zip(names, total.tolist(), strict=True) if not count]:
        few = ", ".join(missing[:6]) + (", …" if len(missing) > 6 else "")
        lines.append(f"warning: {counted(len(missing), 'class')} without a pixel{of_sample}: {few}")
    return lines


def draw_batch(batch: Batch, categories: Sequence[Category], config: ModelConfig) -> list[Image.Image]:
    """Each image under the classes that the loss sees."""
    names = [category.name for category in categories]
    return [
        draw_mask(image.permute(1, 2, 0).numpy(), mask.numpy(), names)
        for image, mask in zip(batch.images, batch.targets.masks, strict=True)
    ]


# --- scores -----------------------------------------------------------------------------------------------------------


def describe(metrics: dict[str, Any], per_class: bool) -> str:
    """The metrics as a table for a terminal."""
    lines = ["  ".join(f"{name} {figure(value)}" for name, value in metrics.items() if isinstance(value, float))]
    if per_class:
        columns = [name for name in ("iou", "accuracy", "boundary_iou") if name in metrics["per_class"][0]]
        width = max(5, *(len(row["name"]) for row in metrics["per_class"]))
        lines.append(f"{'class':<{width}}  {'pixels':>13}  " + "  ".join(f"{name:>8}" for name in columns))
        for row in metrics["per_class"]:
            cells = "  ".join(f"{figure(row[name]):>{max(8, len(name))}}" for name in columns)
            lines.append(f"{row['name']:<{width}}  {row['pixels']:13,}  {cells}")
    return "\n".join(lines)


write_report = write_confusion
report = segmentation_report
