"""Detection's predictions, and how they are written. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from detector.data.transforms.resize import resize_by_rule
from detector.errors import counted
from detector.ops.tiles import Grid, merge_boxes
from detector.reports.drawing import draw_boxes, score_texts
from detector.structures import SIZE_DIVISOR
from detector.system.atomic import atomic_write, write_json_list
from detector.tasks import Difference
from detector.tasks.tiling import Part

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
FIELDS: dict[str, dict[str, Any]] = {
    "image_id": {"type": ["integer", "string"], "description": "the data set's, or the number of the image, from 1"},
    "file_name": {"type": "string"},
    "category_id": {"type": ["integer", "string"], "description": "the training set's own id"},
    "category_name": {"type": "string"},
    "bbox": {
        "type": "array",
        "items": {"type": "number"},
        "minItems": 4,
        "maxItems": 4,
        "description": "left, top, width, height in pixels of the upright image",
    },
    "score": {"type": "number", "minimum": 0, "maximum": 1},
}
HAS_IDS = HAS_BOXES = True
SHOWN = 5  # objects in a prediction's repr
EDGE = 0.01  # IoU this near the NMS threshold may be on either side of it
MOST_TIES = 0.01  # of all detections


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


def join(
    parts: Iterator[Part], grid: Grid, merge: str, categories: Sequence[Category], predict: PredictConfig
) -> Prediction:
    """One prediction of a whole image: boxes that another tile shows more of go, then class-wise NMS merges the rest.

    Boxes that end at an inner border come last in it, whatever their score: parts lose to whole objects.
    ``predict.max_detections`` holds for each tile, not for the image.
    """
    found = []
    for tile, (boxes, scores, labels) in parts:
        is_kept, is_part = labels >= 0, np.zeros(len(labels), dtype=bool)
        if tile is not None:
            top, left, *_ = grid[tile]
            boxes = boxes + np.array([left, top, left, top], dtype=np.float32)
            is_part = grid.is_part(tile, boxes)
            is_kept &= ~grid.is_cut(tile, boxes)
        boxes = boxes.clip(0, np.array([grid.width, grid.height] * 2, dtype=np.float32))
        is_kept &= (boxes[:, 2:] > boxes[:, :2]).all(axis=1)  # a smaller image is predicted with a margin
        found.append((boxes[is_kept], scores[is_kept], labels[is_kept], is_part[is_kept]))
    boxes, scores, labels, is_part = (np.concatenate(columns) for columns in zip(*found, strict=True))
    kept = merge_boxes(boxes, scores + ~is_part, labels, predict.nms_threshold, merge)
    kept = kept[np.argsort(-scores[kept], kind="stable")]
    return as_predictions([column[kept][None] for column in (boxes, scores, labels)], categories, predict)[0]


def compare(
    own: list[Prediction],
    other: list[Prediction],
    score: float,
    pixels: float,
    predict: PredictConfig,
    candidates: Callable[[int], Prediction],
) -> Difference:
    """Whether both found the same, one to one: the same class within ``score`` and ``pixels``, but for ties.

    A tie is a detection without counterpart that rounding explains: it has the lowest score that is kept; or one that
    overlaps it, of the same score and as alone, was kept instead; or NMS compared it at its threshold, to 0.01. What
    only ``other`` found must be one of ``candidates``: an image's index → what ``own`` finds there without NMS or any
    threshold. Ties above 1 % are a difference.
    """
    worst, unmatched, ties = np.zeros(2), 0, 0
    for index, (one, two) in enumerate(zip(own, other, strict=True)):
        *pairs, gaps = _match(one, two, score, pixels)
        worst = np.maximum(worst, gaps)
        alone_one, alone_two = (
            np.setdiff1d(np.arange(len(side.scores)), rows) for side, rows in zip((one, two), pairs, strict=True)
        )
        known = alone_two
        if len(alone_two):
            known = alone_two[_match(_select(two, alone_two), candidates(index), score, pixels)[0]]
        is_tie_one = _ties(_select(one, alone_one), two, known, score, predict)
        is_tie_two = _ties(_select(two, known), one, alone_one, score, predict)
        tied = int(is_tie_one.sum() + is_tie_two.sum())
        unmatched, ties = unmatched + len(alone_one) + len(alone_two) - tied, ties + tied
    count = sum(len(side.scores) for side in own)
    text = (
        f"{counted(count, 'detection')}, {unmatched} unmatched, {counted(ties, 'tie')},"
        f" boxes within {worst[0]:.1e} px, scores within {worst[1]:.1e}"
    )
    # One tie of two that overlap is two detections.
    return Difference(unmatched == 0 and ties <= max(2, 2 * MOST_TIES * count), text, count)


def _match(
    one: Prediction, two: Prediction, score: float, pixels: float
) -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
    """Indices of counterparts in both, nearest first, and the largest differences of boxes and scores."""
    gap = np.abs(one.boxes[:, None] - two.boxes).max(axis=-1)  # [D, D']
    score_gap = np.abs(one.scores[:, None] - two.scores)
    is_pair = (one.labels[:, None] == two.labels) & (score_gap <= score) & (gap <= pixels)
    rows, columns = np.nonzero(is_pair)
    order = gap[rows, columns].argsort(kind="stable")
    pairs: dict[int, int] = {}
    taken: set[int] = set()
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if row not in pairs and column not in taken:
            pairs[row] = column
            taken.add(column)
    rows, columns = (np.array(list(indices), dtype=int) for indices in (pairs, pairs.values()))
    worst = [float(gaps[rows, columns].max(initial=0)) for gaps in (gap, score_gap)]
    return rows, columns, (worst[0], worst[1])


def _ties(
    missing: Prediction, others: Prediction, alone: np.ndarray, score: float, predict: PredictConfig
) -> np.ndarray:
    """Which detections that ``others`` lack may be missing there by rounding; ``alone``: indices of others, [A]."""
    thresholds = predict.score_thresholds or {}
    lowest = np.array([max(thresholds.get(name, 0.0), predict.score_threshold) for name in missing.names])
    if len(others.scores) == predict.max_detections:
        lowest = np.maximum(lowest, others.scores.min())
    gap = others.scores - missing.scores[:, None]  # [D, D']
    iou = _iou(missing.boxes, others.boxes)
    is_alone = np.isin(np.arange(len(others.scores)), alone)
    is_instead = (np.abs(gap) <= score) & is_alone & (iou > predict.nms_threshold - EDGE)
    is_edge = (gap >= -score) & (np.abs(iou - predict.nms_threshold) <= EDGE)
    is_own_class = missing.labels[:, None] == others.labels
    return (missing.scores <= lowest + score) | (is_own_class & (is_instead | is_edge)).any(axis=1)


def _select(prediction: Prediction, rows: np.ndarray) -> Prediction:
    return Prediction(*(each[rows] for each in prediction[:4]), [prediction.names[row] for row in rows])


def _iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU of boxes [D, 4] and [D', 4], [D, D']; 0 of two without area."""
    low, high = np.maximum(boxes[:, None, :2], others[:, :2]), np.minimum(boxes[:, None, 2:], others[:, 2:])
    inside = (high - low).clip(min=0).prod(axis=-1)
    areas, other_areas = ((each[:, 2:] - each[:, :2]).prod(axis=-1) for each in (boxes, others))
    return inside / np.maximum(areas[:, None] + other_areas - inside, 1e-9)


def draw(image: np.ndarray, prediction: Prediction, draw_score: float) -> Image.Image:
    """The image with the boxes that score at least ``draw_score``."""
    is_drawn = prediction.scores >= draw_score
    texts = score_texts(prediction.names, prediction.scores)
    texts = [text for text, is_kept in zip(texts, is_drawn, strict=True) if is_kept]
    return draw_boxes(image, prediction.boxes[is_drawn], prediction.labels[is_drawn].tolist(), texts)


def shrunk(prediction: Prediction, size: Sequence[int], to: Sequence[int]) -> Prediction:
    """The boxes in an image of the height and width ``to``, which was shrunk from ``size``."""
    factors = np.array([to[1] / size[1], to[0] / size[0]] * 2, dtype=np.float32)
    return prediction._replace(boxes=prediction.boxes * factors)


def save(prediction: Prediction, name: str, output: Path) -> None:
    """Nothing: the results have it all."""


def to_results(prediction: Prediction, image_id: Id, name: Path) -> list[dict[str, Any]]:
    """COCO results of one image, with the names of the file and the classes."""
    return prediction.to_coco(image_id, name.as_posix())


def write_results(results: Iterable[dict[str, Any]], path: Path) -> None:
    with atomic_write(path) as file:
        write_json_list(file, results)


def describe_results(results: Iterable[dict[str, Any]]) -> str:
    return counted(sum(1 for _ in results), "object")
