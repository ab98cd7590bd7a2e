"""Crops of an image for classification, and mixing of two images.

Every random draw comes from (seed, epoch, index), so workers, ranks and restarts do not change a sample.
"""

from __future__ import annotations

import numpy as np

from detector.config.schema import AugmentConfig, CropConfig
from detector.data.transforms.colors import (
    apply,
    apply_listed,
    color_transform,
    draw_flips,
    draw_turns,
    flip,
    listed_transforms,
    load_albumentations,
    seeded,
    turn,
)
from detector.data.transforms.resize import center_crop, resize
from detector.data.transforms.windows import draw_patch

NO_BOXES = np.zeros((0, 4))


class ClassTransform:
    """Evaluation and inference: the square in the middle."""

    def __init__(self, config: CropConfig) -> None:
        self.config = config

    def __call__(self, image: np.ndarray, epoch: int, index: int) -> np.ndarray:
        """[H, W, C] → [size, size, C]."""
        return center_crop(image, self.config)


class TrainClassTransform(ClassTransform):
    """Turns, a random crop (Szegedy et al. 2015, section 6), flips, colours, and ``data.augment.transforms``."""

    def __init__(self, config: CropConfig, augment: AugmentConfig, seed: int, channels: int = 3) -> None:
        super().__init__(config)
        self.seed = seed
        self.augment = augment
        library = load_albumentations()
        window = library.RandomResizedCrop(
            (config.size, config.size), tuple(config.scale), tuple(config.ratio), area_for_downscale="image"
        )
        self.window_and_colors = library.Compose([window, color_transform(augment, channels)])
        self.listed = listed_transforms(augment, channels, config.size, config.size)

    def __call__(self, image: np.ndarray, epoch: int, index: int) -> np.ndarray:
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, epoch, index]))
        image = turn(image, draw_turns(self.augment, rng)) if self.augment.rotate90 else image
        across, down = draw_flips(self.augment, rng)
        image = flip(apply(self.window_and_colors, image, rng), across, down)
        for transform in seeded(self.listed, rng):
            image, _, _ = apply_listed(transform, image, NO_BOXES)
        return resize(image, self.config.size, self.config.size)


def mix(
    image: np.ndarray, other: np.ndarray, augment: AugmentConfig, rng: np.random.Generator
) -> tuple[np.ndarray, float]:
    """Two images [H, W, C] of one size, blended or with a window of the other, and the fraction that is ``image``."""
    is_blended = rng.random() < 0.5 if augment.mixup and augment.cutmix else augment.mixup > 0
    alpha = augment.mixup if is_blended else augment.cutmix
    fraction = float(rng.beta(alpha, alpha))
    if is_blended:
        return np.rint(fraction * image + (1 - fraction) * other).astype(image.dtype), fraction
    rows, columns = draw_patch(image.shape[:2], 1 - fraction, rng)
    mixed = image.copy()
    mixed[rows, columns] = other[rows, columns]
    patch = (rows.stop - rows.start) * (columns.stop - columns.start)
    return mixed, 1 - patch / (image.shape[0] * image.shape[1])
