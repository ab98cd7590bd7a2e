"""RetinaNet-style detection on feature pyramids: train, evaluate and infer on COCO-format data.

The parts are plain modules (``detector.config``, ``detector.models``, ``detector.tasks.detection``, ...), imported by
name, so that ``import detector`` stays cheap. The one call that most programs need is :func:`load`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from detector.predictor import Predictor

__version__ = "0.1.0"


def load(checkpoint: str | Path, device: str | None = None) -> Predictor:
    """A ready :class:`~detector.predictor.Predictor` from a checkpoint such as ``runs/x/best.pt``.

    ``device`` defaults to the first GPU, else the CPU. Raises :class:`~detector.errors.WeightsError` for a file that is
    missing or is no checkpoint of this package. Nothing else of the process changes: no environment, signals, warnings,
    threads or random numbers. Random weights give denormals, which ``torch.set_flush_denormal(True)`` makes fast on a
    CPU, as the commands do.
    """
    from detector.predictor import Predictor

    return Predictor.from_checkpoint(checkpoint, device)
