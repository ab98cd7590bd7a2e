"""Reading pictures: one policy for training, evaluation and inference.

A picture is [H, W, C] uint8 or, of a file with 16 bits, uint16; RGB if C is 3, gray if it is 1. Other numbers of
channels are read as they are stored, and a file must have exactly as many.

EXIF orientation: annotations are drawn on some frame of the picture. Where width and height are annotated, that frame
is the one that has them, and the stored frame wins where both do. Where nothing is annotated (inference, folders of
classes), the picture is read upright, as a viewer shows it.
"""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np

from detector.errors import DataError

ARRAY_SUFFIX = ".npy"  # an array [H, W, C], for more channels than picture files have
IMAGE_SUFFIXES = {
    ".jpg",
    ".jpeg",
    ".png",
    ".bmp",
    ".webp",
    ".tif",
    ".tiff",
    ".gif",
    ".jp2",
    ".ppm",
    ".pgm",
    ARRAY_SUFFIX,
}


def read_image(path: Path, channels: int = 3) -> np.ndarray:
    """The picture upright. Raises :class:`~detector.errors.DataError` that names the file."""
    return _decode(path, _read_bytes(path), channels, upright=True)


def read_annotated_image(path: Path, height: int, width: int, channels: int = 3) -> np.ndarray:
    """The picture in the frame of ``height`` × ``width`` that its boxes were drawn on."""
    data = _read_bytes(path)
    stored = _decode(path, data, channels, upright=False)
    if stored.shape[:2] == (height, width):
        return stored
    upright = _decode(path, data, channels, upright=True)
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


def _decode(path: Path, data: np.ndarray, channels: int, upright: bool) -> np.ndarray:
    try:
        if path.suffix.lower() == ARRAY_SUFFIX:
            image = np.load(io.BytesIO(data.tobytes()), allow_pickle=False)
        else:
            image = cv2.imdecode(data, _flags(channels, upright))
    except cv2.error as error:
        raise DataError(f"{path}: cannot be decoded: {error.err}") from None
    except (ValueError, EOFError) as error:
        raise DataError(f"{path}: is no array that can be read: {error}") from None
    if image is None:
        raise DataError(f"{path}: is no picture that can be decoded, or is cut off")
    if image.dtype not in (np.uint8, np.uint16) or image.ndim not in (2, 3):
        raise DataError(f"{path}: holds {image.dtype} {list(image.shape)}; a picture is [H, W, C] uint8 or uint16")
    image = image.reshape(*image.shape[:2], -1)
    if image.shape[2] != channels:
        raise DataError(f"{path}: has {image.shape[2]} channels, model.in_channels asks for {channels}")
    if channels == 4 and path.suffix.lower() != ARRAY_SUFFIX:
        image = cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA)
    return image


def _flags(channels: int, upright: bool) -> int:
    known = {1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR_RGB}
    if channels not in known:
        return cv2.IMREAD_UNCHANGED  # and never turned
    return known[channels] | cv2.IMREAD_ANYDEPTH | (0 if upright else cv2.IMREAD_IGNORE_ORIENTATION)
