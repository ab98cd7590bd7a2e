"""Detection's predictions, and how they are written. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from detector.files.atomic import atomic_write, write_json_list
from detector.reports.drawing import score_texts
from detector.tasks import get_views

if TYPE_CHECKING:
    from PIL import Image

    from detector.data.inputs import ImageInput, Reading
    from detector.structures import Id

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


def to_results(prediction: Prediction, image_id: Id, name: Path) -> list[dict[str, Any]]:
    """COCO results of one image, with the names of the file and the classes."""
    return prediction.to_coco(image_id, name.as_posix())


def write_results(results: Iterable[dict[str, Any]], path: Path) -> None:
    with atomic_write(path) as file:
        write_json_list(file, results)


def describe_results(results: Iterable[dict[str, Any]]) -> str:
    return f"{sum(1 for _ in results)} objects"
