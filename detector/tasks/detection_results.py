"""Detection's predictions, and how they are written. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from detector.data.transforms.resize import resize_by_rule
from detector.errors import counted
from detector.files.atomic import atomic_write, write_json_list
from detector.reports.drawing import draw_boxes, score_texts
from detector.structures import SIZE_DIVISOR
from detector.tasks import Difference

if TYPE_CHECKING:
    from PIL import Image

    from detector.config.schema import DataConfig, PredictConfig
    from detector.data.inputs import ImageInput, Reading
    from detector.structures import Category, Id

INPUTS, AFTER = ("score_threshold", "nms_threshold", "max_detections"), ()
OUTPUTS = {
    "boxes": ("batch", "detections", "4"),
    "scores": ("batch", "detections"),
    "labels": ("batch", "detections"),
}
SIZE_RULE, DIVISOR = "resize", SIZE_DIVISOR
FILE = "predictions.json"
HAS_IDS = HAS_BOXES = True
SHOWN = 5  # objects in a prediction's repr


class Prediction(NamedTuple):
    """The detections of one image, best first; boxes in the original image's pixels."""

    boxes: np.ndarray  # [D, 4] float32 xyxy
    scores: np.ndarray  # [D] float32
    labels: np.ndarray  # [D] int64, 0..K-1
    category_ids: np.ndarray  # [D] the training set's own ids: int64, or object if some are text
    names: list[str]  # [D]
    reading: Reading = (3, "auto", None)  # how its image was read, for draw

    def __repr__(self) -> str:
        count, texts = len(self.names), score_texts(self.names[:SHOWN], self.scores[:SHOWN])
        shown = f": {', '.join(texts)}{', …' * (count > SHOWN)}" if count else ""
        return f"Prediction({counted(count, 'object')}{shown})"

    def draw(self, image: ImageInput, score_threshold: float = 0.0) -> Image.Image:
        """A PIL image of ``image`` with the boxes that score at least ``score_threshold``."""
        from detector.data.inputs import as_shown, check_threshold

        check_threshold(score_threshold)
        return draw(as_shown(image, *self.reading), self, score_threshold)

    def to_coco(self, image_id: Id, file_name: str | None = None) -> list[dict[str, Any]]:
        """COCO results: ``image_id``, ``category_id``, ``bbox`` (left, top, width, height), ``score`` of each object.

        The file's name, if given, and the classes' names are added to the ids.
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


def prepare(image: np.ndarray, data: DataConfig) -> np.ndarray:
    """An image [H, W, C] as the model takes it, without padding."""
    return resize_by_rule(image, data.resize)


def as_predictions(
    outputs: Sequence[np.ndarray], categories: Sequence[Category], predict: PredictConfig
) -> list[Prediction]:
    """The detections of each image, without padding, of boxes [B, D, 4], scores [B, D] and labels [B, D]."""
    thresholds = predict.score_thresholds or {}
    lowest = np.array([thresholds.get(category.name, 0.0) for category in categories])
    kind = object if any(isinstance(category.id, str) for category in categories) else np.int64
    predictions = []
    for boxes, scores, labels in zip(*outputs, strict=True):
        is_kept = (labels >= 0) & (scores >= lowest[labels])
        own = labels[is_kept]
        predictions.append(
            Prediction(
                boxes=boxes[is_kept],
                scores=scores[is_kept],
                labels=own,
                category_ids=np.array([categories[label].id for label in own], dtype=kind),
                names=[categories[label].name for label in own],
            )
        )
    return predictions


def compare(own: list[Prediction], other: list[Prediction], score: float, pixels: float) -> Difference:
    """Whether each detection has a counterpart of its class within ``score`` and ``pixels``, but for ties.

    A tie is one of the lowest scores, or overlaps a detection of the same class and about the same score that the other
    model has kept: which of the two NMS keeps is decided by rounding.
    """
    worst, unmatched = np.zeros(2), 0
    for one, two in zip(own, other, strict=True):
        last = min((found.scores.min() for found in (one, two) if len(found.scores)), default=0.0)
        for these, those in ((one, two), (two, one)):
            if not len(those.scores):
                unmatched += int((these.scores > last + score).sum())
                continue
            gap = np.abs(these.boxes[:, None] - those.boxes).max(axis=-1)  # [D, D']
            score_gap = np.abs(these.scores[:, None] - those.scores)
            is_class = these.labels[:, None] == those.labels
            is_alike = is_class & (score_gap <= score)
            is_matched = (is_alike & (gap <= pixels)).any(axis=1)
            is_tie = (these.scores <= last + score) | (is_alike & _overlap(these.boxes, those.boxes)).any(axis=1)
            unmatched += int((~is_matched & ~is_tie).sum())
            if is_matched.any():
                nearest = np.where(is_alike, gap, np.inf).argmin(axis=1)
                rows = np.flatnonzero(is_matched)
                gaps = [parts[rows, nearest[rows]].max() for parts in (gap, score_gap)]
                worst = np.maximum(worst, gaps)
    count = sum(len(found.scores) for found in own)
    text = f"{count} detections, {unmatched} unmatched, boxes within {worst[0]:.1e} px, scores within {worst[1]:.1e}"
    return Difference(unmatched == 0, text)


def _overlap(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which boxes [D, 4] and [D', 4] overlap by IoU 0.3, [D, D']."""
    low, high = np.maximum(boxes[:, None, :2], others[:, :2]), np.minimum(boxes[:, None, 2:], others[:, 2:])
    inside = (high - low).clip(min=0).prod(axis=-1)
    areas, other_areas = ((each[:, 2:] - each[:, :2]).prod(axis=-1) for each in (boxes, others))
    return inside > 0.3 * (areas[:, None] + other_areas - inside)


def draw(image: np.ndarray, prediction: Prediction, draw_score: float) -> Image.Image:
    """The image with the boxes that score at least ``draw_score``."""
    is_drawn = prediction.scores >= draw_score
    texts = score_texts(prediction.names, prediction.scores)
    texts = [text for text, is_kept in zip(texts, is_drawn, strict=True) if is_kept]
    return draw_boxes(image, prediction.boxes[is_drawn], prediction.labels[is_drawn].tolist(), texts)


def to_results(prediction: Prediction, image_id: Id, name: Path) -> list[dict[str, Any]]:
    """COCO results of one image, with the names of the file and the classes."""
    return prediction.to_coco(image_id, name.as_posix())


def write_results(results: Iterable[dict[str, Any]], path: Path) -> None:
    with atomic_write(path) as file:
        write_json_list(file, results)


def describe_results(results: Iterable[dict[str, Any]]) -> str:
    return counted(sum(1 for _ in results), "object")
