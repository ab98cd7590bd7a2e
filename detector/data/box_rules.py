"""The one rule for invalid boxes, which training applies and the doctor reports."""

from __future__ import annotations

import numpy as np

TOLERANCE = 1  # pixels outside the image that are accepted: annotation tools round


def check_boxes(xywh: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Check boxes [N, 4] xywh against the ``sizes`` [N, 2] of their images: width and height, 0 where unknown.

    Returns the boxes as xyxy float32, clipped to the image; whether no area is left [N]; and whether they extended more
    than ``TOLERANCE`` outside [N].
    """
    with np.errstate(invalid="ignore", over="ignore"):
        given = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
        limits = np.tile(np.where(sizes == 0, np.inf, sizes), 2)
        inside = np.minimum(given.clip(min=0), limits)
        boxes = inside.astype(np.float32)
        is_empty = (boxes[:, 2:] <= boxes[:, :2]).any(axis=1)
        return boxes, is_empty, (np.abs(given - inside) > TOLERANCE).any(axis=1)
