"""Resizing and augmentation of an image with the classes of its pixels.

Every random draw comes from (seed, epoch, index), so workers, ranks and restarts do not change a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from detector.config.schema import AugmentConfig, ResizeConfig
from detector.data.transforms.colors import (
    apply,
    apply_listed_to_mask,
    augmentations,
    draw_flips,
    draw_turns,
    flip,
    same_depth,
    seeded,
    turn,
)
from detector.data.transforms.resize import cut, gray, input_size, resize
from detector.data.transforms.windows import Window, draw_corner, draw_mosaic, draw_patch, draw_window, put_four
from detector.structures import IGNORED_PIXEL

TRIES = 10  # windows that are drawn for max_class_share


class Transformed(NamedTuple):
    image: np.ndarray  # [H, W, C] uint8 or uint16
    mask: np.ndarray  # [H, W] uint8
    original: np.ndarray | None = None  # [H', W'] uint8, as stored; None in training


class MaskTransform:
    """Evaluation and inference: ``resize.fixed`` or the last size of ``resize.short``, nothing random."""

    def __init__(self, config: ResizeConfig) -> None:
        self.config = config

    def __call__(self, image: np.ndarray, mask: np.ndarray, epoch: int, index: int) -> Transformed:
        size = input_size(*image.shape[:2], self.config)
        return Transformed(resize(image, *size, self.config.interpolation), resize_mask(mask, *size), mask)

    def mixed(self, read: Callable[[int], Transformed], epoch: int, index: int, images: int) -> Transformed:
        """The sample ``index`` of ``images``, which ``read`` transforms: with another, where training mixes them."""
        return read(index)


class StoredMask(MaskTransform):
    """Images and masks as they are stored."""

    def __call__(self, image: np.ndarray, mask: np.ndarray, epoch: int, index: int) -> Transformed:
        return Transformed(image, mask, mask)


class TrainMaskTransform(MaskTransform):
    """Turns, size and scale jitter with crop, flips, colours, and ``data.augment.transforms``."""

    def __init__(self, config: ResizeConfig, augment: AugmentConfig, seed: int, channels: int = 3) -> None:
        super().__init__(config)
        self.augment = augment
        self.seed = seed
        self.colors, self.listed = augmentations(config, augment, channels)

    def __call__(self, image: np.ndarray, mask: np.ndarray, epoch: int, index: int) -> Transformed:
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, epoch, index]))
        if quarters := draw_turns(self.augment, rng):
            image, mask = turn(image, quarters), turn(mask, quarters)
        image, mask = self._placed(image, mask, rng)
        across, down = draw_flips(self.augment, rng)
        image, mask = flip(image, across, down), flip(mask, across, down)
        if self.colors is not None:
            image = apply(self.colors, image, rng)
        size = image.shape[:2]
        for transform in seeded(self.listed, rng):
            image, mask = apply_listed_to_mask(transform, image, mask)
        if self.config.fixed or self.augment.canvas:
            image, mask = resize(image, *size, self.config.interpolation), resize_mask(mask, *size)
        return Transformed(image, mask)

    def mixed(self, read: Callable[[int], Transformed], epoch: int, index: int, images: int) -> Transformed:
        # A stream of its own: the transform's is seeded with the first three numbers.
        rng, augment = np.random.default_rng(np.random.SeedSequence([self.seed, epoch, index, 1])), self.augment
        own, (mosaic_draw, paste_draw, cut_draw) = read(index), rng.random(3)

        def partner() -> Transformed:
            return read(int(rng.integers(images)))

        if mosaic_draw < augment.mosaic:
            size = augment.canvas or self.config.fixed or own.mask.shape
            own = mosaic([own, partner(), partner(), partner()], (size[0], size[1]), rng)
        if paste_draw < augment.copy_paste:
            own = paste(own, partner(), rng)
        if augment.cutmix and cut_draw < augment.mix_share:
            own = cutmix(own, partner(), augment.cutmix, rng)
        return own

    def _placed(self, image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """A window of the image, resized; with ``augment.canvas``, put on gray at random, whose pixels are ignored."""
        window, size = self._draw_window(mask, rng)
        seen = resize(cut(image, window), *size, self.config.interpolation)
        classes = resize_mask(cut(mask, window), *size)
        if not self.augment.canvas:
            return seen, classes
        top, left = draw_corner(size, self.augment.canvas, rng)
        place = slice(top, top + size[0]), slice(left, left + size[1])
        whole, mask = gray(*self.augment.canvas, seen), np.full(self.augment.canvas, IGNORED_PIXEL, dtype=np.uint8)
        whole[place], mask[place] = seen, classes
        return whole, mask

    def _draw_window(self, mask: np.ndarray, rng: np.random.Generator) -> tuple[Window, tuple[int, int]]:
        """The first window in which no class has more than ``max_class_share`` of the pixels, or the last of some."""
        for _ in range(TRIES):
            window, size = draw_window(mask.shape, self.config, self.augment, rng)  # type: ignore[arg-type]
            if self.augment.max_class_share == 1 or largest_fraction(cut(mask, window)) <= self.augment.max_class_share:
                break
        return window, size


def mosaic(parts: Sequence[Transformed], size: tuple[int, int], rng: np.random.Generator) -> Transformed:
    """A window of four images that meet at a random point (:func:`draw_mosaic`), as an image of ``size``."""
    images = same_depth([part.image for part in parts])
    meeting, window = draw_mosaic(size, rng)
    canvas = gray(2 * size[0], 2 * size[1], images[0])
    classes = np.full(canvas.shape[:2], IGNORED_PIXEL, dtype=np.uint8)
    put_four(images, meeting, canvas)
    put_four([part.mask for part in parts], meeting, classes)
    return Transformed(resize(cut(canvas, window), *size), resize_mask(cut(classes, window), *size))


def paste(own: Transformed, other: Transformed, rng: np.random.Generator) -> Transformed:
    """``own`` with all pixels of half of the classes of ``other``, rounded up, in their places.

    ClassMix (Olsson et al. 2021, section 3.2): a mask tells the objects of a class from each other only where they do
    not touch, so classes are pasted, not objects.
    """
    image, source = (part.copy() for part in same_depth([own.image, other.image]))
    height, width = (min(pair) for pair in zip(own.mask.shape, other.mask.shape, strict=True))
    seen, mask = other.mask[:height, :width], own.mask.copy()
    classes = np.setdiff1d(seen, [IGNORED_PIXEL])
    is_pasted = np.isin(seen, rng.choice(classes, (len(classes) + 1) // 2, replace=False))
    image[:height, :width][is_pasted] = source[:height, :width][is_pasted]
    mask[:height, :width][is_pasted] = seen[is_pasted]
    return Transformed(image, mask)


def cutmix(own: Transformed, other: Transformed, alpha: float, rng: np.random.Generator) -> Transformed:
    """``own`` with a window of ``other`` (Yun et al. 2019), whose area is drawn from Beta(α, α)."""
    image, source = (part.copy() for part in same_depth([own.image, other.image]))
    height, width = (min(pair) for pair in zip(own.mask.shape, other.mask.shape, strict=True))
    patch, mask = draw_patch((height, width), float(rng.beta(alpha, alpha)), rng), own.mask.copy()
    image[patch], mask[patch] = source[patch], other.mask[patch]
    return Transformed(image, mask)


def largest_fraction(mask: np.ndarray) -> float:
    """The fraction of the most frequent class among the pixels that are not ignored; 1 where there are none."""
    counts = np.bincount(mask.ravel(), minlength=IGNORED_PIXEL + 1)[:IGNORED_PIXEL]
    return float(counts.max() / counts.sum()) if counts.any() else 1.0


def resize_mask(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """A mask [H, W] by the class of the pixel that each new pixel's centre falls into."""
    if mask.shape == (height, width):
        return mask
    return cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
