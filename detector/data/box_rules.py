"""What is wrong with an annotated box: one rule, which training applies and the doctor reports."""

from __future__ import annotations

import numpy as np

TOLERANCE = 1  # pixels outside that are no fault: annotation tools round


def check_boxes(xywh: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes [N, 4] xywh against their images' ``sizes`` [N, 2], width and height, 0 where they are not known.

    Returns them as xyxy float32, cut to the image; whether no area is left [N]; and whether they reached more than
    ``TOLERANCE`` outside [N].
    """
    with np.errstate(invalid="ignore", over="ignore"):
        given = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
        limits = np.tile(np.where(sizes == 0, np.inf, sizes), 2)
        inside = np.minimum(given.clip(min=0), limits)
        boxes = inside.astype(np.float32)
        is_empty = (boxes[:, 2:] <= boxes[:, :2]).any(axis=1)
        return boxes, is_empty, (np.abs(given - inside) > TOLERANCE).any(axis=1)
