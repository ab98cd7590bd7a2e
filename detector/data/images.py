"""Reading pictures: one policy for training, evaluation and inference.

EXIF orientation: annotations are drawn on some frame of the picture. Where width and height are annotated, that frame
is the one that has them, and the stored frame wins where both do. Where nothing is annotated (inference), the picture
is read upright, as a viewer shows it.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from detector.errors import DataError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".jp2", ".ppm", ".pgm"}


def read_image(path: Path) -> np.ndarray:
    """The picture upright, [H, W, 3] uint8 RGB. Raises :class:`~detector.errors.DataError` that names the file."""
    return _decode(path, _read_bytes(path), cv2.IMREAD_COLOR_RGB)


def read_annotated_image(path: Path, height: int, width: int) -> np.ndarray:
    """The picture in the frame of ``height`` × ``width`` that its boxes were drawn on, [H, W, 3] uint8 RGB."""
    data = _read_bytes(path)
    stored = _decode(path, data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    if stored.shape[:2] == (height, width):
        return stored
    upright = _decode(path, data, cv2.IMREAD_COLOR_RGB)
    if upright.shape[:2] == (height, width):
        return upright
    raise DataError(
        f"{path}: the picture is {stored.shape[1]}×{stored.shape[0]}, its annotation says {width}×{height};"
        " correct width and height in the annotation file, or restore the picture"
    )


def _read_bytes(path: Path) -> np.ndarray:
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) == 0:
        raise DataError(f"{path}: the file is empty")
    return data


def _decode(path: Path, data: np.ndarray, flags: int) -> np.ndarray:
    try:
        image = cv2.imdecode(data, flags)
    except cv2.error as error:
        raise DataError(f"{path}: cannot be decoded: {error.err}") from None
    if image is None:
        raise DataError(f"{path}: is no picture that can be decoded, or is cut off")
    return image
