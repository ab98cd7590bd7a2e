"""Detection: its data, what the loss is, how predictions become boxes, and how boxes are scored."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from detector.config.schema import Config, ModelConfig
from detector.data.detection import Annotations, Category, CocoDataset, Sample, open_dataset
from detector.data.formats.coco_rows import Id
from detector.data.inputs import ImageInput, Reading, as_shown, check_threshold
from detector.data.transforms.boxes import TrainTransform, Transform, Transformed
from detector.evaluation.coco import METRICS, coco_metrics
from detector.evaluation.coverage import RECALL_WANTED, input_boxes, level_ious, rare_classes, reach_of
from detector.files.atomic import atomic_write
from detector.ops import boxes as box_ops
from detector.ops.anchors import Anchors, level_sizes
from detector.ops.assignment import ASSIGNERS, assign
from detector.ops.coders import BOX_CODERS, build_box_coder
from detector.ops.losses import BOX_LOSSES, CLASS_LOSSES
from detector.ops.postprocess import detect
from detector.reports import Report, Scored, figure
from detector.reports.box_page import detection_report
from detector.reports.drawing import draw_boxes, draw_targets, score_texts
from detector.structures import IGNORE, IGNORE_REGION, PADDING, Batch, Detections, Losses, Predictions, Targets

PARTS = {
    "head.name": ("retina",),
    "matcher.name": ASSIGNERS,
    "box_coder.name": BOX_CODERS,
    "loss.cls": CLASS_LOSSES,
    "loss.box": BOX_LOSSES,
}
RESULTS = "predictions.json"
PREVIEWED_IMAGES = 2000  # of a larger set, a sample
SHOWN = 5  # objects that a prediction names in its repr


class Prediction(NamedTuple):
    """What was found in one image, best first; boxes in its own pixels."""

    boxes: np.ndarray  # [D, 4] float32 xyxy
    scores: np.ndarray  # [D] float32
    labels: np.ndarray  # [D] int64, 0..K-1
    category_ids: np.ndarray  # [D] the training set's own ids: int64, or objects where some are text
    names: list[str]  # [D]
    reading: Reading = (3, "auto", None)  # of its image, for draw

    def __repr__(self) -> str:
        count, texts = len(self.names), score_texts(self.names[:SHOWN], self.scores[:SHOWN])
        shown = f": {', '.join(texts)}{', …' * (count > SHOWN)}" if count else ""
        return f"Prediction({count} object{'s' * (count != 1)}{shown})"

    def draw(self, image: ImageInput, score_threshold: float = 0.0) -> Image.Image:
        """A PIL image of ``image`` with the boxes that score at least ``score_threshold``."""
        check_threshold(score_threshold)
        return draw(as_shown(image, *self.reading), self, score_threshold)

    def to_coco(self, image_id: Id, file_name: str | None = None) -> list[dict[str, Any]]:
        """COCO results: ``image_id``, ``category_id``, ``bbox`` (left, top, width, height), ``score`` of each object.

        The names of the file, if it is given, and of the classes stand beside the ids.
        """
        image = {"image_id": image_id} | ({} if file_name is None else {"file_name": file_name})
        return [
            image
            | {
                "category_id": category_id,
                "category_name": category,
                "bbox": [round(float(number), 2) for number in (*box[:2], *(box[2:] - box[:2]))],
                "score": round(float(score), 5),
            }
            for box, score, category_id, category in zip(
                self.boxes, self.scores, self.category_ids.tolist(), self.names, strict=True
            )
        ]


def main_metric(config: Config) -> str:
    """What decides which checkpoint is the best."""
    return "AP"


def open_split(config: Config, name: str, categories: list[Category] | None = None) -> CocoDataset:
    """The COCO-format data set of ``data.train`` (augmented) or ``data.val``, with ``categories`` where given."""
    data, channels = config.data, config.model.in_channels
    if name == "train":
        transform: Transform = TrainTransform(data.resize, data.augment, config.seed, channels)
    else:
        transform = Transform(data.resize)
    return open_dataset(data, name, transform, categories, channels, config.seed)


def make_sample(image: np.ndarray, image_id: int, config: Config) -> Sample:
    """A picture [H, W, C] as the model wants it, without targets."""
    no_boxes, no_labels = np.zeros((0, 4), dtype=np.float32), np.zeros(0, dtype=np.int64)
    resized = Transform(config.data.resize)(image, no_boxes, no_labels, epoch=0, index=0)
    pixels = torch.from_numpy(resized.image).permute(2, 0, 1)
    return Sample(pixels, torch.from_numpy(resized.boxes), torch.from_numpy(resized.labels), image.shape[:2], image_id)


def loss(predictions: Predictions, targets: Targets, config: ModelConfig) -> Losses:
    """Class and box loss over all anchors; the normaliser is the number of positives (RetinaNet, section 4.1)."""
    anchors, coder = predictions.anchors, build_box_coder(config.box_coder)
    target, quality = assign(anchors, predictions.level_counts, targets, predictions, coder, config.matcher)  # [B, N]
    is_positive, is_counted = target >= 0, target != IGNORE  # [B, N]
    target = target.clamp(min=0)
    labels = torch.where(is_positive, targets.labels.gather(1, target), -1)  # [B, N]
    cls_loss = CLASS_LOSSES[config.loss.cls](predictions.cls_logits, labels, quality, is_counted, config.loss)

    # Anchors without a target regress to themselves at weight 0: fixed shapes, finite gradients, and every parameter
    # takes part in every step even where a rank has no object.
    boxes = targets.boxes.gather(1, target[..., None].expand(-1, -1, 4))
    boxes = torch.where(is_positive[..., None], boxes, anchors)
    box_loss = BOX_LOSSES[config.loss.box](predictions.box_channels, anchors, boxes, coder, config.loss)
    parts = {
        "cls": cls_loss * config.loss.cls_weight,
        "box": (box_loss * is_positive).sum() * config.loss.box_weight,
    }
    return Losses(parts, is_positive.sum())


def predict(predictions: Predictions, batch: Batch, config: ModelConfig) -> Detections:
    """Final boxes in the frames of the original images."""
    detections = detect(predictions, batch.sizes, build_box_coder(config.box_coder), config.predict)
    boxes = box_ops.rescale(detections.boxes, batch.sizes, batch.sizes_original)
    # Rescaling rounds: a box at the border may pass it by a fraction of a pixel.
    return detections._replace(boxes=box_ops.clip(boxes, batch.sizes_original))


def to_rows(detections: Detections, ids: Tensor) -> np.ndarray:
    """Results as an array [R, 7]: place of the image, left, top, width, height, score, label."""
    boxes, scores, labels = (part.cpu() for part in detections)
    image, place = torch.nonzero(labels >= 0, as_tuple=True)
    boxes = boxes[image, place].double()
    boxes[:, 2:] -= boxes[:, :2]
    columns = [ids.cpu()[image, None], boxes, scores[image, place, None], labels[image, place, None]]
    return torch.cat([column.double() for column in columns], dim=1).numpy()


def evaluate(rows: Sequence[np.ndarray], truth: Annotations, config: Config) -> dict[str, Any]:
    """The twelve COCO box metrics of batches of results, and AP by class."""
    results = np.concatenate([np.empty((0, 7)), *rows])
    return coco_metrics(results, truth, config.eval.backend, config.model.predict.max_detections)


def describe(metrics: dict[str, Any], per_class: bool) -> str:
    """The metrics as a table for a terminal."""
    names = [name for name in METRICS if not name.startswith("AR")]
    lines = [
        "  ".join(f"{name} {figure(metrics[name])}" for name in names),
        "  ".join(f"{name} {figure(metrics[name])}" for name in METRICS if name.startswith("AR"))
        + f"  (at most {metrics['max_detections']} detections an image)",
    ]
    if metrics["dropped"]:
        lines.append(f"not in the truth: {metrics['dropped']:,} invalid boxes (data.invalid_boxes)")
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


def report(
    scored: Scored, truth: Annotations, config: Config, images: Path | None, against: Scored | None = None
) -> Report:
    """What is right and wrong, for people to read; ``images`` None: without pictures."""
    return detection_report(scored, truth, config, images, against)


# --- looking at the data ----------------------------------------------------------------------------------------------


def untransformed(data: CocoDataset) -> CocoDataset:
    """The same pictures and boxes as they are stored."""
    stored = copy.copy(data)
    stored.transform = lambda image, boxes, labels, epoch, index: Transformed(image, boxes, labels)  # type: ignore
    return stored


def draw_sample(sample: Sample, categories: Sequence[Category]) -> Image.Image:
    """A picture with its boxes; regions that the loss ignores in gray."""
    labels = sample.labels.tolist()
    texts = [categories[label].name if label >= 0 else "ignored" for label in labels]
    return draw_boxes(sample.image.permute(1, 2, 0).numpy(), sample.boxes.numpy(), labels, texts)


# --- before the first step --------------------------------------------------------------------------------------------


def preview(data: CocoDataset, config: Config) -> list[str]:
    """How many objects there are, and how many of them the anchors reach; warnings where they are few."""
    images = len(data)
    chosen = np.arange(images)
    if images > PREVIEWED_IMAGES:
        chosen = np.random.default_rng(config.seed).choice(images, PREVIEWED_IMAGES, replace=False)
    part = data.select(chosen)
    objects = input_boxes(part.annotations, part.checked, config.data.resize, config.seed).objects()
    best = level_ious(objects, config.model.anchors, config.model.fpn.levels).amax(dim=1)
    reach, threshold = reach_of(best, config.model.matcher), config.model.matcher.positive
    of_sample = f" ({len(part):,} sampled images)" if len(part) < images else ""
    lines = [
        f"anchors: reach {reach.recall:.1%} of the objects at IoU {threshold:g} (mean best IoU {reach.mean_iou:.2f});"
        f" {reach.objects / len(part):.1f} objects an image{of_sample}"
    ]
    if reach.objects and reach.recall < RECALL_WANTED:
        lines.append(
            f"warning: {1 - reach.recall:.1%} of the objects get no anchor at IoU {threshold:g};"
            " detector anchors --suggest finds anchors that fit"
        )
    counts = torch.bincount(data.annotations.labels[data.is_object], minlength=len(data.categories))
    return lines + rare_classes(data.categories, counts.tolist(), "objects")


def draw_batch(batch: Batch, categories: Sequence[Category], config: ModelConfig) -> list[Image.Image]:
    """Each picture with its targets and the anchors that are matched to them."""
    sizes, coder = level_sizes(*batch.images.shape[-2:], config.fpn.levels), build_box_coder(config.box_coder)
    anchors, counts = Anchors(config.anchors, config.fpn.levels)(sizes)
    matches = assign(anchors, counts, batch.targets, None, coder, config.matcher).target
    boxes, labels, regions = batch.targets
    drawings = []
    for row, (image, match) in enumerate(zip(batch.images, matches, strict=True)):
        is_shown, is_positive = labels[row] != PADDING, match >= 0
        own = labels[row, is_shown].tolist()
        ignored = torch.empty(0, 4) if regions is None else regions[row][box_ops.box_area(regions[row]) > 0]
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


# --- single pictures --------------------------------------------------------------------------------------------------


def with_threshold(config: ModelConfig, score: float) -> ModelConfig:
    """The config with another lowest score."""
    return config.model_copy(update={"predict": config.predict.model_copy(update={"score_threshold": score})})


def to_predictions(detections: Detections, categories: Sequence[Category], config: ModelConfig) -> list[Prediction]:
    """What was found in each picture, without the padding."""
    kind = object if any(isinstance(category.id, str) for category in categories) else np.int64
    found = []
    for boxes, scores, labels in zip(*(part.cpu().numpy() for part in detections), strict=True):
        is_kept = labels >= 0
        own = labels[is_kept]
        found.append(
            Prediction(
                boxes=boxes[is_kept],
                scores=scores[is_kept],
                labels=own,
                category_ids=np.array([categories[label].id for label in own], dtype=kind),
                names=[categories[label].name for label in own],
            )
        )
    return found


def to_results(found: Prediction, image_id: Id, name: Path) -> list[dict[str, Any]]:
    """COCO results of one picture, with the file's and the classes' names beside the ids."""
    return found.to_coco(image_id, name.as_posix())


def write_results(results: Iterable[dict[str, Any]], path: Path) -> None:
    """A JSON list, written row by row: the predictions of many pictures need not fit into memory."""
    with atomic_write(path) as file:
        file.write("[")
        for number, row in enumerate(results):
            file.write((", " if number else "") + json.dumps(row, ensure_ascii=False))
        file.write("]")


def describe_results(results: Iterable[dict[str, Any]]) -> str:
    return f"{sum(1 for _ in results)} objects"


def draw(image: np.ndarray, found: Prediction, draw_score: float) -> Image.Image:
    """The picture with the boxes that score at least ``draw_score``."""
    is_drawn = found.scores >= draw_score
    texts = score_texts(found.names, found.scores)
    texts = [text for text, is_kept in zip(texts, is_drawn, strict=True) if is_kept]
    return draw_boxes(image, found.boxes[is_drawn], found.labels[is_drawn].tolist(), texts)
