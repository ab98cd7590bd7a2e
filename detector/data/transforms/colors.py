"""Colours and flips, for boxes and classes alike. The only module that knows albumentations."""

from __future__ import annotations

import os
import random
from typing import Any

import cv2
import numpy as np

from detector.config.schema import AugmentConfig


def load_albumentations() -> Any:
    """The library. It is slow to import, and what changes no colours and draws no windows does without it."""
    # Without this, importing it asks a registry on the internet for its newest version.
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations

    return albumentations


def color_transform(augment: AugmentConfig, channels: int) -> Any:
    library = load_albumentations()
    if channels == 3:
        limits = (0.7, 1.3)
        return library.ColorJitter(limits, limits, limits, hue=(-0.03, 0.03), p=augment.photometric)
    # Saturation and hue are of RGB.
    return library.RandomBrightnessContrast((-0.3, 0.3), (-0.3, 0.3), p=augment.photometric)


def apply(compose: Any, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What albumentations makes of a picture, drawn from ``rng``; of the same depth."""
    compose.set_random_state(rng, random.Random(int(rng.integers(2**63))))
    # Colours are changed in 8 bits or in floats only; a float32 in [0, 1] holds 16 bits exactly.
    is_wide = image.dtype == np.uint16
    changed = compose(image=image.astype(np.float32) / 65535 if is_wide else image)["image"]
    if is_wide:
        changed = np.rint(changed * 65535).clip(0, 65535).astype(np.uint16)
    return changed.reshape(*changed.shape[:2], -1)


def draw_flips(augment: AugmentConfig, rng: np.random.Generator) -> tuple[bool, bool]:
    """Whether to flip across (left and right) and down (top and bottom)."""
    across, down = rng.random(2)
    return bool(across < augment.horizontal_flip), bool(down < augment.vertical_flip)


def flip(image: np.ndarray, across: bool, down: bool) -> np.ndarray:
    if not (across or down):
        return image
    # Several times faster than copying a view of negative strides. Of one channel it drops the axis.
    return cv2.flip(image, -1 if across and down else int(across)).reshape(image.shape)
