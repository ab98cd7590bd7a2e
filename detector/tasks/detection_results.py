"""Detection's predictions, and how they are written. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from detector.data.transforms.resize import resize_by_rule
from detector.files.atomic import atomic_write
from detector.reports.drawing import score_texts
from detector.structures import SIZE_DIVISOR
from detector.tasks import get_views

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
HAS_IDS = True
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
        return f"Prediction({count} object{'s' * (count != 1)}{shown})"

    def draw(self, image: ImageInput, score_threshold: float = 0.0) -> Image.Image:
        """A PIL image of ``image`` with the boxes that score at least ``score_threshold``."""
        from detector.data.inputs import as_shown, check_threshold

        check_threshold(score_threshold)
        return get_views("detection").draw(as_shown(image, *self.reading), self, score_threshold)

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
    kind = object if any(isinstance(category.id, str) for category in categories) else np.int64
    predictions = []
    for boxes, scores, labels in zip(*outputs, strict=True):
        is_kept = labels >= 0
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


def to_results(prediction: Prediction, image_id: Id, name: Path) -> list[dict[str, Any]]:
    """COCO results of one image, with the names of the file and the classes."""
    return prediction.to_coco(image_id, name.as_posix())


def write_results(results: Iterable[dict[str, Any]], path: Path) -> None:
    """A JSON list, written result by result, so the predictions of many images need not fit into memory."""
    with atomic_write(path) as file:
        file.write("[")
        for index, result in enumerate(results):
            file.write((", " if index else "") + json.dumps(result, ensure_ascii=False))
        file.write("]")


def describe_results(results: Iterable[dict[str, Any]]) -> str:
    return f"{sum(1 for _ in results)} objects"
