"""Classes of pixels as an image of indices with a palette."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from detector.reports.drawing import class_color
from detector.structures import Category


def mask_values(categories: Sequence[Category]) -> np.ndarray:
    """What stands for each class in a mask of 8 bits, [K] uint8: its id, or the label where some id does not fit."""
    ids = [category.id for category in categories]
    fits = all(isinstance(own, int) and 0 <= own < 256 for own in ids) and len(set(ids)) == len(ids)
    return np.array(ids if fits else range(len(ids)), dtype=np.uint8)


def palette_image(mask: np.ndarray, categories: Sequence[Category]) -> Image.Image:
    """A mask of labels [H, W] uint8 as an image in mode P, in the colours of drawings."""
    values, palette = mask_values(categories), np.zeros((256, 3), dtype=np.uint8)
    palette[values] = [class_color(label) for label in range(len(categories))]
    image = Image.fromarray(values[mask])
    image.putpalette(palette.tobytes())
    return image
