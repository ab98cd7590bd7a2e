"""A confusion matrix as files beside the metrics."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

from detector.reports.drawing import draw_confusion
from detector.system.atomic import atomic_write


def write_confusion(metrics: dict[str, Any], folder: Path) -> None:
    """``confusion.csv`` (one row per true class, one column per predicted class) and ``confusion.png``."""
    if "confusion" not in metrics:
        return
    names = [row["name"] for row in metrics["per_class"]]
    with atomic_write(folder / "confusion.csv") as file:
        writer = csv.writer(file)
        writer.writerow(["true \\ predicted", *names])
        writer.writerows([name, *row] for name, row in zip(names, metrics["confusion"], strict=True))
    with atomic_write(folder / "confusion.png", "wb") as file:
        draw_confusion(np.array(metrics["confusion"]), names).save(file, format="png")
