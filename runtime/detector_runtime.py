"""Predictions of exported models without torch; built from the modules of ``detector`` that need none.

predictor = detector_runtime.load("model.onnx")
print(predictor.predict(["a.jpg"], score_threshold=0.5)[0].boxes)  # [D, 4] xyxy in pixels
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detector.inference.exported import ExportedPredictor

__version__ = "VERSION"
__all__ = ["load"]


def load(path: str | Path, overrides: Sequence[str] = (), threads: int | None = None) -> ExportedPredictor:
    """A ready predictor of an exported file.

    ``overrides`` are ``key=value``, such as ``model.predict.max_detections=300``; ``threads`` defaults to all cores.
    Raises :class:`detector.errors.WeightsError` for a file that is missing or that ``detector export`` did not write.
    """
    from detector.inference.exported import ExportedPredictor

    return ExportedPredictor(path, overrides, threads)
