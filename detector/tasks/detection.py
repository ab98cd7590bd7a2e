"""Detection: its data, what the loss is, how predictions become boxes, and how boxes are scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from detector import boxes as box_ops
from detector.config import Config, ModelConfig
from detector.data.coco import Annotations, Category, open_dataset
from detector.errors import ConfigError, one_of
from detector.losses import BOX_LOSSES, CLASS_LOSSES
from detector.matching import IGNORE, MATCHERS
from detector.metrics import METRICS, coco_metrics
from detector.postprocess import detect
from detector.structures import Batch, Detections, Predictions, Targets

MAIN_METRIC = "AP"  # what decides which checkpoint is the best


open_split = open_dataset  # the COCO-format data set of data.train or data.val


class Losses(NamedTuple):
    """Weighted sums over a batch, and what the engine divides them by once it is summed over all ranks and parts."""

    parts: dict[str, Tensor]
    normaliser: Tensor


def check(config: ModelConfig) -> None:
    """Refuse names that no dict of parts has."""
    for key, name, known in (
        ("matcher.name", config.matcher.name, MATCHERS),
        ("loss.cls", config.loss.cls, CLASS_LOSSES),
        ("loss.box", config.loss.box, BOX_LOSSES),
    ):
        if name not in known:
            raise ConfigError(f"model.{key}: unknown name {name!r}; use {one_of(known)}")


def loss(predictions: Predictions, targets: Targets, config: ModelConfig) -> Losses:
    """Class and box loss over all anchors; the normaliser is the number of positives (RetinaNet, section 4.1)."""
    matcher = MATCHERS[config.matcher.name]
    anchors = predictions.anchors
    match = torch.stack([matcher(anchors, *image, config.matcher) for image in zip(*targets, strict=True)])  # [B, N]
    is_positive = match >= 0  # [B, N]
    target = match.clamp(min=0)
    labels = torch.where(is_positive, targets.labels.gather(1, target), -1)  # [B, N]
    cls_loss = CLASS_LOSSES[config.loss.cls](predictions.cls_logits, labels, match != IGNORE, config.loss)

    # Anchors without a target regress to themselves at weight 0: fixed shapes, finite gradients, and every parameter
    # takes part in every step even where a rank has no object.
    boxes = targets.boxes.gather(1, target[..., None].expand(-1, -1, 4))
    boxes = torch.where(is_positive[..., None], boxes, anchors)
    box_loss = BOX_LOSSES[config.loss.box](predictions.box_deltas, anchors, boxes, config.loss)
    parts = {
        "cls": cls_loss * config.loss.cls_weight,
        "box": (box_loss * is_positive).sum() * config.loss.box_weight,
    }
    return Losses(parts, is_positive.sum())


def predict(predictions: Predictions, batch: Batch, config: ModelConfig) -> Detections:
    """Final boxes in the frames of the original images."""
    detections = detect(predictions, batch.sizes, config.predict)
    boxes = box_ops.rescale(detections.boxes, batch.sizes, batch.sizes_original)
    # Rescaling rounds: a box at the border may pass it by a fraction of a pixel.
    return detections._replace(boxes=box_ops.clip(boxes, batch.sizes_original))


def to_rows(detections: Detections, ids: Tensor, categories: Sequence[Category]) -> np.ndarray:
    """COCO results as an array [R, 7]: image id, left, top, width, height, score, category id."""
    category_ids = torch.tensor([category.id for category in categories])
    boxes, scores, labels = (part.cpu() for part in detections)
    image, place = torch.nonzero(labels >= 0, as_tuple=True)
    boxes = boxes[image, place].double()
    boxes[:, 2:] -= boxes[:, :2]
    columns = [ids.cpu()[image, None], boxes, scores[image, place, None], category_ids[labels[image, place]][:, None]]
    return torch.cat([column.double() for column in columns], dim=1).numpy()


def evaluate(rows: Sequence[np.ndarray], truth: Annotations, config: Config) -> dict[str, Any]:
    """The twelve COCO box metrics of batches of results, and AP by class."""
    results = np.concatenate([np.empty((0, 7)), *rows])
    return coco_metrics(results, truth, config.eval.backend, config.model.predict.max_detections)


def describe(metrics: dict[str, Any], per_class: bool) -> str:
    """The metrics as a table for a terminal."""
    names = [name for name in METRICS if not name.startswith("AR")]
    lines = [
        "  ".join(f"{name} {metrics[name]:.3f}" for name in names),
        "  ".join(f"{name} {metrics[name]:.3f}" for name in METRICS if name.startswith("AR"))
        + f"  (at most {metrics['max_detections']} detections an image)",
    ]
    if per_class:
        width = max(len(row["name"]) for row in metrics["per_class"])
        lines.append(f"{'class':<{width}}  objects     AP   AP50     AR")
        lines += [
            f"{row['name']:<{width}}  {row['objects']:7d}  {row['AP']:5.3f}  {row['AP50']:5.3f}  {row['AR']:5.3f}"
            for row in metrics["per_class"]
        ]
    return "\n".join(lines)
