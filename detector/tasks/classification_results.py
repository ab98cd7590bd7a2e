"""Classification's predictions, and how they are written. Imports no torch."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from detector.data.transforms.resize import center_crop
from detector.errors import counted
from detector.reports.drawing import draw_lines, score_texts
from detector.system.atomic import atomic_write
from detector.tasks import Difference

if TYPE_CHECKING:
    from PIL import Image

    from detector.config.schema import DataConfig, PredictConfig
    from detector.data.inputs import ImageInput, Reading
    from detector.structures import Category

INPUTS, AFTER = (), ("classes",)
OUTPUTS = {"scores": ("batch", "classes")}
SIZE_RULE, DIVISOR = "crop", 1
FILE = "predictions.csv"
FIELDS: dict[str, dict[str, Any]] = {
    "path": {"type": "string"},
    "label": {"type": "string", "description": "the best class; the next ones are label_2, label_3, …"},
    "score": {"type": "number", "minimum": 0, "maximum": 1},
}
HAS_IDS = HAS_BOXES = False


class ClassPrediction(NamedTuple):
    """The best classes of one image, best first."""

    scores: np.ndarray  # [D] float32
    labels: np.ndarray  # [D] int64, 0..K-1
    names: list[str]  # [D]
    reading: Reading = (3, "auto", None)  # how its image was read, for draw

    def __repr__(self) -> str:
        return f"ClassPrediction({', '.join(score_texts(self.names, self.scores))})"

    def draw(self, image: ImageInput, score_threshold: float = 0.0) -> Image.Image:
        """A PIL image of ``image`` under its best class and the others that score at least ``score_threshold``."""
        from detector.data.inputs import as_shown, check_threshold

        check_threshold(score_threshold)
        return draw(as_shown(image, *self.reading), self, score_threshold)


def prepare(image: np.ndarray, data: DataConfig) -> np.ndarray:
    """An image [H, W, C] as the model takes it, [size, size, C]."""
    return center_crop(image, data.crop)


def as_predictions(
    outputs: Sequence[np.ndarray], categories: Sequence[Category], predict: PredictConfig
) -> list[ClassPrediction]:
    """The ``predict.classes`` best classes of each image, of scores [B, K]."""
    (scores,) = outputs
    best = np.argsort(-scores, axis=1, kind="stable")[:, : predict.classes]
    return [
        ClassPrediction(row[label], label, [categories[index].name for index in label])
        for row, label in zip(scores, best, strict=True)
    ]


def compare(
    own: list[ClassPrediction],
    other: list[ClassPrediction],
    score: float,
    pixels: float,
    predict: PredictConfig,
    candidates: Callable[[int], ClassPrediction],
) -> Difference:
    """Whether each class has the same score within ``score``; one that ``other`` does not list scores as its last."""
    worst = 0.0
    for one, two in zip(own, other, strict=True):
        scores = dict(zip(two.labels.tolist(), two.scores, strict=True))
        expected = np.array([scores.get(label, two.scores[-1]) for label in one.labels.tolist()])
        worst = max(worst, float(np.abs(one.scores - expected).max()))
    text = f"{counted(len(own), 'image')}, scores of each class within {worst:.1e}"
    return Difference(worst <= score, text, len(own))


def draw(image: np.ndarray, prediction: ClassPrediction, draw_score: float) -> Image.Image:
    """The image under its best class and the others that score at least ``draw_score``."""
    is_drawn = [rank == 0 or score >= draw_score for rank, score in enumerate(prediction.scores)]
    texts = score_texts(prediction.names, prediction.scores)
    shown = [(label, text) for label, text, is_kept in zip(prediction.labels, texts, is_drawn, strict=True) if is_kept]
    return draw_lines(image, [int(label) for label, _ in shown], [text for _, text in shown])


def save(prediction: ClassPrediction, name: str, output: Path) -> None:
    """Nothing: the results have it all."""


def to_results(prediction: ClassPrediction, image_id: int, name: Path) -> list[dict[str, Any]]:
    """The row of an image in ``predictions.csv``."""
    row: dict[str, Any] = {"path": name.as_posix()}
    for rank, (label, score) in enumerate(zip(prediction.names, prediction.scores, strict=True), start=1):
        suffix = "" if rank == 1 else f"_{rank}"
        row |= {f"label{suffix}": label, f"score{suffix}": round(float(score), 5)}
    return [row]


def write_results(results: Iterable[dict[str, Any]], path: Path) -> None:
    rows = iter(results)
    first = next(rows, None)
    with atomic_write(path) as file:
        writer = csv.DictWriter(file, list(first or ["path", "label", "score"]))
        writer.writeheader()
        writer.writerows(chain([first] if first else [], rows))


def describe_results(results: Iterable[dict[str, Any]]) -> str:
    counts = Counter(row["label"] for row in results).most_common()
    return ", ".join(f"{name} {count}" for name, count in counts[:10]) + (", …" if len(counts) > 10 else "")
