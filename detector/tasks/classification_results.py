"""Classification's predictions, and how they are written. Imports no torch."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from detector.files.atomic import atomic_write
from detector.reports.drawing import score_texts
from detector.tasks import get_views

if TYPE_CHECKING:
    from PIL import Image

    from detector.data.inputs import ImageInput, Reading

FILE = "predictions.csv"
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
        return get_views("classification").draw(as_shown(image, *self.reading), self, score_threshold)


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
