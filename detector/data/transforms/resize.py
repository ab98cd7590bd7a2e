"""The one rule for the input size (``data.resize``), and resizing.

Dimension key: I images. Sizes are height, width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import cv2
import numpy as np

from detector.ops.tiles import Window
from detector.structures import SIZE_DIVISOR

if TYPE_CHECKING:
    from torch import Tensor

    from detector.config.schema import CropConfig, ResizeConfig

GRAY = 114  # of 255: what lies beyond an image on a canvas, near the mean that a model subtracts

Sides = TypeVar("Sides", int, np.ndarray, "Tensor")


def input_sizes(sizes: np.ndarray, resize: ResizeConfig, short: int | np.ndarray | None = None) -> np.ndarray:
    """Sizes [I, 2] of at least one pixel → the sizes that the images are resized to, [I, 2] int64, without padding.

    ``short`` is one of ``resize.short``, or one for each image [I]; None is the last, which evaluation uses.
    """
    if resize.fixed:
        return np.broadcast_to(np.array(resize.fixed, dtype=np.int64), sizes.shape).copy()
    short = resize.short[-1] if short is None else short
    # Short side to ``short``, or long side to ``long`` where it would exceed that.
    scale = np.minimum(short / sizes.min(axis=1), resize.long / sizes.max(axis=1))
    cut = np.floor if resize.rounding == "down" else np.rint
    return np.maximum(1, cut(sizes * scale[:, None])).astype(np.int64)


def input_size(height: int, width: int, resize: ResizeConfig, short: int | None = None) -> tuple[int, int]:
    """:func:`input_sizes` of one image."""
    new_height, new_width = input_sizes(np.array([[height, width]]), resize, short)[0].tolist()
    return new_height, new_width


def largest_size(resize: ResizeConfig) -> tuple[int, int]:
    """Height and width of the largest input image, padded."""
    # No side exceeds ``long``: if ``short`` does, the largest image is a square of ``long``.
    height, width = input_size(min(resize.short[-1], resize.long), resize.long, resize)
    return padded(height), padded(width)


def has_one_size(resize: ResizeConfig) -> bool:
    """Whether all images get the same size, before augmentation."""
    return resize.fixed is not None


def in_words(resize: ResizeConfig) -> str:
    """``800/1333`` (short and long side in evaluation), or ``480×640`` (fixed height and width)."""
    return "×".join(map(str, resize.fixed)) if resize.fixed else f"{resize.short[-1]}/{resize.long}"


def padded(sides: Sides, divisor: int = SIZE_DIVISOR) -> Sides:
    """Sides up to the next multiple of ``divisor``, as a batch of one is padded."""
    return -(-sides // divisor) * divisor


def by_shape(samples: Sequence[Any]) -> list[list[int]]:
    """Indices of the samples, grouped by their shape when each is padded on its own.

    Predictions are made in such batches. Padding does not stay 0: after a convolution's bias it has features, and group
    norms count it, so an image's detections would depend on the padding that others in its batch require.
    """
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, sample in enumerate(samples):
        groups[padded_shape(sample)].append(index)
    return list(groups.values())


def padded_shape(sample: Any) -> tuple[int, int]:
    """Height and width of a sample's image when it is padded on its own."""
    height, width = sample.image.shape[-2:]
    return padded(height), padded(width)


def resize_by_rule(image: np.ndarray, config: ResizeConfig) -> np.ndarray:
    """An image [H, W, C] as detection takes it in evaluation and inference."""
    return resize(image, *input_size(*image.shape[:2], config), config.interpolation)


def center_crop(image: np.ndarray, config: CropConfig) -> np.ndarray:
    """An image [H, W, C] as classification takes it in evaluation and inference, [size, size, C]."""
    height, width = image.shape[:2]
    side = max(1, round(min(height, width) * config.eval_share))
    top, left = (height - side) // 2, (width - side) // 2
    return resize(image[top : top + side, left : left + side], config.size, config.size)


def resize(image: np.ndarray, height: int, width: int, interpolation: str = "area") -> np.ndarray:
    """Bilinear when enlarging; when shrinking, by area, which does not alias, unless ``interpolation`` is bilinear."""
    if image.shape[:2] == (height, width):
        return image
    shrinks = interpolation == "area" and (height < image.shape[0] or width < image.shape[1])
    flag = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    # By area, OpenCV takes up to four channels. It drops the axis of a single one.
    parts = [image[:, :, start : start + 4] for start in range(0, image.shape[2], 4)]
    resized = [cv2.resize(part, (width, height), interpolation=flag).reshape(height, width, -1) for part in parts]
    return np.concatenate(resized, axis=2) if len(resized) > 1 else resized[0]


def gray(height: int, width: int, like: np.ndarray) -> np.ndarray:
    """An empty image of the depth and channels of another."""
    return np.full((height, width, like.shape[2]), GRAY * (257 if like.dtype == np.uint16 else 1), dtype=like.dtype)


def square(pixels: np.ndarray, size: int) -> np.ndarray:
    """A window as a tile: gray right and below where the image is smaller, so that all are seen at one scale."""
    height, width = pixels.shape[:2]
    if height == width == size:
        return pixels
    whole = gray(size, size, pixels)
    whole[:height, :width] = pixels
    return whole


def cut(image: np.ndarray, window: Window) -> np.ndarray:
    """The part of an image [H, W, C] in a window: top, left, height, width."""
    top, left, height, width = window
    return image[top : top + height, left : left + width]
