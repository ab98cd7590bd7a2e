"""Which part of an image training sees, and at which size: the draws that boxes and masks share.

Sizes are height, width; a window is top, left, height, width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from detector.config.schema import AugmentConfig, ResizeConfig
from detector.data.transforms.resize import input_size
from detector.ops.tiles import Window

Size = tuple[int, int]


def draw_window(
    full: Size, config: ResizeConfig, augment: AugmentConfig, rng: np.random.Generator
) -> tuple[Window, Size]:
    """A window of an image of size ``full``, and the size that it is resized to.

    With ``augment.canvas`` the image is scaled to fit in it, times a random factor, and cut to it on each axis.
    Otherwise the image is zoomed by a random factor. In: a window of it fills the target size. Out: the target is
    smaller.
    """
    if augment.canvas:
        canvas, sides = np.array(augment.canvas), np.array(full)
        scale = (canvas / sides).min() * _draw_zoom(augment, rng)
        seen = np.clip(np.rint(canvas / scale), 1, sides).astype(int)
        top, left = (int(corner) for corner in rng.integers(sides - seen + 1))
        height, width = np.clip(np.rint(seen * scale), 1, canvas).astype(int).tolist()
        return (top, left, *seen.tolist()), (height, width)
    height, width = input_size(*full, config, int(rng.choice(config.short)))
    zoom = _draw_zoom(augment, rng)
    if zoom <= 1:
        return (0, 0, *full), (max(1, round(height * zoom)), max(1, round(width * zoom)))
    seen = max(1, round(full[0] / zoom)), max(1, round(full[1] / zoom))
    top, left = (int(rng.integers(whole - side + 1)) for whole, side in zip(full, seen, strict=True))
    return (top, left, *seen), (height, width)


def draw_corner(size: Size, canvas: Sequence[int], rng: np.random.Generator) -> tuple[int, int]:
    """Where an image of this size lies on the canvas: top, left."""
    top, left = (int(corner) for corner in rng.integers(np.array(canvas) - size + 1))
    return top, left


def draw_mosaic(size: Size, rng: np.random.Generator) -> tuple[tuple[int, int], Window]:
    """Where the four images of a mosaic of this size meet, and the window of them that it shows.

    The point lies in the middle of a canvas twice as high and wide. The window shows a quarter of the canvas to all of
    it, so objects keep their size or shrink down to half.
    """
    row, column = (int(rng.integers(side // 2, side + side // 2 + 1)) for side in size)
    zoom = 2 ** rng.uniform(0, 1)
    height, width = (round(side * zoom) for side in size)
    top, left = (int(rng.integers(2 * full - side + 1)) for full, side in zip(size, (height, width), strict=True))
    return (row, column), (top, left, height, width)


def put_four(images: Sequence[np.ndarray], meeting: tuple[int, int], canvas: np.ndarray) -> list[tuple[int, int]]:
    """Put four images into ``canvas`` around the point where they meet; returns the corner of each: top, left."""
    corners = []
    for number, image in enumerate(images):
        top = meeting[0] - (image.shape[0] if number < 2 else 0)
        left = meeting[1] - (image.shape[1] if number % 2 == 0 else 0)
        shown = image[max(0, -top) : canvas.shape[0] - top, max(0, -left) : canvas.shape[1] - left]
        canvas[max(0, top) : max(0, top) + shown.shape[0], max(0, left) : max(0, left) + shown.shape[1]] = shown
        corners.append((top, left))
    return corners


def draw_patch(size: Size, fraction: float, rng: np.random.Generator) -> tuple[slice, slice]:
    """Rows and columns of a window with this fraction of the area, around any point, as far as it is in the image."""
    sides = np.sqrt(fraction) * np.array(size) / 2
    center = rng.uniform(0, size)
    top, left = np.rint(np.maximum(center - sides, 0)).astype(int)
    bottom, right = np.rint(np.minimum(center + sides, size)).astype(int)
    return slice(top, bottom), slice(left, right)


def _draw_zoom(augment: AugmentConfig, rng: np.random.Generator) -> float:
    jitter = augment.scale_jitter
    return float(np.exp(rng.uniform(*np.log(jitter)))) if jitter else 1.0
