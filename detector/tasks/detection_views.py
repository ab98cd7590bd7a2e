"""What people see of detection: boxes on images, matched anchors, scores and reports."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from detector.config.schema import Config, ModelConfig
from detector.data.detection import CocoDataset, Sample
from detector.data.transforms.boxes import Stored
from detector.errors import counted
from detector.evaluation.coco import METRICS
from detector.evaluation.coverage import (
    RECALL_WANTED,
    WHY_MISSED,
    InputBoxes,
    coverage_of,
    input_boxes,
    level_ious,
    rare_classes,
)
from detector.evaluation.coverage import assign as assign_boxes
from detector.ops.anchors import Anchors, level_sizes
from detector.ops.assignment import assign
from detector.ops.boxes import box_area
from detector.ops.coders import build_box_coder
from detector.reports import figure
from detector.reports.box_page import detection_report
from detector.reports.drawing import draw_boxes, draw_targets
from detector.structures import IGNORE_REGION, PADDING, Batch, Category

PREVIEWED_IMAGES = 2000  # at most; of larger sets, a sample
ASSIGNED_IMAGES = 200  # at most, where the assigner must be asked

# --- looking at the data ----------------------------------------------------------------------------------------------


def untransformed(data: CocoDataset) -> CocoDataset:
    """The same images and boxes as stored."""
    stored = copy.copy(data)
    stored.transform = Stored(data.transform.config)
    return stored


def draw_sample(sample: Sample, categories: Sequence[Category]) -> Image.Image:
    """An image with its boxes; ignore regions in gray."""
    labels = sample.labels.tolist()
    texts = [categories[label].name if label >= 0 else "ignored" for label in labels]
    return draw_boxes(sample.image.permute(1, 2, 0).numpy(), sample.boxes.numpy(), labels, texts)


# --- before the first step --------------------------------------------------------------------------------------------


def preview(data: CocoDataset, config: Config) -> list[str]:
    """How many objects there are and how many of them the anchors cover; warnings if those are few."""
    images = len(data)
    chosen = np.arange(images)
    if images > PREVIEWED_IMAGES:
        chosen = np.random.default_rng(config.seed).choice(images, PREVIEWED_IMAGES, replace=False)
    part = data.select(chosen)
    objects = input_boxes(part.annotations, part.checked, config.data.resize, config.seed).objects()
    of_sample = f" ({len(part):,} sampled images)" if len(part) < images else ""
    crowding = f"{len(objects.boxes) / len(part):.1f} objects per image{of_sample}"
    lines = _covered(objects, config) if config.model.matcher.has_thresholds else _assigned(objects, config)
    lines[0] += f"; {crowding}"
    counts = torch.bincount(data.annotations.labels[data.is_object], minlength=len(data.categories))
    return lines + rare_classes(data.categories, counts.tolist(), "objects")


def _covered(objects: InputBoxes, config: Config) -> list[str]:
    """How many objects the anchors overlap enough for the matcher's threshold."""
    best = level_ious(objects, config.model.anchors, config.model.fpn.levels).amax(dim=1)
    coverage, threshold = coverage_of(best, config.model.matcher), config.model.matcher.positive
    lines = [
        f"anchors: cover {coverage.recall:.1%} of the objects at IoU {threshold:g} (mean best IoU"
        f" {coverage.mean_iou:.2f})"
    ]
    if coverage.objects and coverage.recall < RECALL_WANTED:
        lines.append(
            f"warning: {1 - coverage.recall:.1%} of the objects get no anchor at IoU {threshold:g};"
            " detector anchors --suggest finds anchors that fit"
        )
    return lines


def _assigned(objects: InputBoxes, config: Config) -> list[str]:
    """To how many objects an assigner without thresholds gives positive anchors."""
    sample, name = objects.sample(ASSIGNED_IMAGES, config.seed), config.model.matcher.name
    positives = assign_boxes(sample, config.model).positives.double()
    if not len(positives):
        return [f"anchors: {name} has no object to give any to"]
    missed, start = float((positives == 0).double().mean()), " at the start" if name == "task_aligned" else ""
    lines = [f"anchors: {name} gives {positives.mean():.1f} to an object{start}, and none to {missed:.1%}"]
    if missed > 1 - RECALL_WANTED:
        lines.append(f"warning: {missed:.1%} of the objects get no anchor: {WHY_MISSED}")
    return lines


def draw_batch(batch: Batch, categories: Sequence[Category], config: ModelConfig) -> list[Image.Image]:
    """Each image with its targets and their matched anchors."""
    sizes, coder = level_sizes(*batch.images.shape[-2:], config.fpn.levels), build_box_coder(config.box_coder)
    anchors, counts = Anchors(config.anchors, config.fpn.levels)(sizes)
    matches = assign(anchors, counts, batch.targets, None, coder, config.matcher).target
    boxes, labels, regions = batch.targets
    drawings = []
    for row, (image, match) in enumerate(zip(batch.images, matches, strict=True)):
        is_shown, is_positive = labels[row] != PADDING, match >= 0
        own = labels[row, is_shown].tolist()
        ignored = torch.empty(0, 4) if regions is None else regions[row][box_area(regions[row]) > 0]
        drawings.append(
            draw_targets(
                image.permute(1, 2, 0).numpy(),
                torch.cat([boxes[row, is_shown], ignored]).numpy(),
                own + [IGNORE_REGION] * len(ignored),
                [categories[label].name for label in own] + ["ignored"] * len(ignored),
                anchors[is_positive].numpy(),
                labels[row, match[is_positive]].tolist(),
            )
        )
    return drawings


# --- scores -----------------------------------------------------------------------------------------------------------


def describe(metrics: dict[str, Any], per_class: bool) -> str:
    """The metrics as a table for a terminal."""
    names = [name for name in METRICS if not name.startswith("AR")]
    lines = [
        "  ".join(f"{name} {figure(metrics[name])}" for name in names),
        "  ".join(f"{name} {figure(metrics[name])}" for name in METRICS if name.startswith("AR"))
        + f"  (at most {metrics['max_detections']} detections per image)",
    ]
    if metrics["dropped"]:
        lines.append(
            f"dropped from the ground truth: {counted(metrics['dropped'], 'invalid box')} (data.invalid_boxes)"
        )
    if per_class:
        width = max(len(row["name"]) for row in metrics["per_class"])
        lines.append(f"{'class':<{width}}  objects     AP   AP50     AR")
        lines += [
            f"{row['name']:<{width}}  {row['objects']:7d}  "
            + "  ".join(f"{figure(row[name]):>5}" for name in ("AP", "AP50", "AR"))
            for row in metrics["per_class"]
        ]
    return "\n".join(lines)


def write_report(metrics: dict[str, Any], folder: Path) -> None:
    """Nothing: results.json has it all."""


report = detection_report
