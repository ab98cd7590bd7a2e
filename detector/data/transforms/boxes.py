"""Resizing and augmentation of a picture, with its boxes or for its class.

Every draw comes from (seed, epoch, index), so a sample is the same with any number of workers, ranks or restarts. This
is the only module that knows albumentations.
"""

from __future__ import annotations

import os
import random
from typing import Any, NamedTuple

import cv2
import numpy as np

from detector.config.schema import AugmentConfig, CropConfig, ResizeConfig
from detector.data.transforms.resize import input_size
from detector.structures import IGNORE_REGION


class Transformed(NamedTuple):
    image: np.ndarray  # [H, W, C] uint8 or uint16
    boxes: np.ndarray  # [T, 4] float32 xyxy
    labels: np.ndarray  # [T] int64


def resize(image: np.ndarray, height: int, width: int, interpolation: str = "area") -> np.ndarray:
    """Bilinear when it grows; when it shrinks, by area, which does not alias, unless ``interpolation`` is bilinear."""
    if image.shape[:2] == (height, width):
        return image
    shrinks = interpolation == "area" and (height < image.shape[0] or width < image.shape[1])
    flag = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    # By area, OpenCV takes up to four channels. Of one it drops the axis.
    parts = [image[:, :, start : start + 4] for start in range(0, image.shape[2], 4)]
    resized = [cv2.resize(part, (width, height), interpolation=flag).reshape(height, width, -1) for part in parts]
    return np.concatenate(resized, axis=2) if len(resized) > 1 else resized[0]


class Transform:
    """Evaluation and inference: ``resize.fixed`` or the last size of ``resize.short``, nothing drawn."""

    def __init__(self, config: ResizeConfig) -> None:
        self.config = config

    def __call__(self, image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, epoch: int, index: int) -> Transformed:
        height, width = input_size(*image.shape[:2], self.config)
        factors = np.array([width / image.shape[1], height / image.shape[0]] * 2, dtype=np.float32)
        return Transformed(resize(image, height, width, self.config.interpolation), boxes * factors, labels)


class TrainTransform(Transform):
    """Size and scale jitter with crop, flips, and colours."""

    def __init__(self, config: ResizeConfig, augment: AugmentConfig, seed: int, channels: int = 3) -> None:
        super().__init__(config)
        self.augment = augment
        self.seed = seed
        self.colors = _albumentations().Compose([_colors(augment, channels)]) if augment.photometric else None

    def __call__(self, image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, epoch: int, index: int) -> Transformed:
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, epoch, index]))
        image, boxes, labels = self._rescale_and_crop(image, boxes, labels, rng)
        across, down = draw_flips(self.augment, rng)
        image, boxes = flip(image, across, down), flip_boxes(boxes, *image.shape[:2], across, down)
        if self.colors is not None:
            image = apply(self.colors, image, rng)
        # Rounding may put a box's edge outside by a fraction of a pixel, or its edges upon each other.
        height, width = image.shape[:2]
        boxes = np.clip(boxes, 0, np.array([width, height, width, height], dtype=np.float32))
        has_area = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        return Transformed(image, boxes[has_area], labels[has_area])

    def _rescale_and_crop(
        self, image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, rng: np.random.Generator
    ) -> Transformed:
        """Zoomed by a drawn factor: in, a window of the picture fills the target size; out, the target is smaller."""
        full_height, full_width = image.shape[:2]
        height, width = input_size(full_height, full_width, self.config, int(rng.choice(self.config.short)))
        zoom = 1.0
        if self.augment.scale_jitter:
            zoom = float(np.exp(rng.uniform(*np.log(self.augment.scale_jitter))))
        if zoom <= 1:
            window = (0, 0, full_height, full_width)
            height, width = max(1, round(height * zoom)), max(1, round(width * zoom))
        else:
            sides = max(1, round(full_height / zoom)), max(1, round(full_width / zoom))
            top, left = (
                int(rng.integers(full - side + 1)) for full, side in zip((full_height, full_width), sides, strict=True)
            )
            window = (top, left, *sides)
            boxes, labels = crop_boxes(boxes, labels, window, self.augment.min_visibility)
        top, left, window_height, window_width = window
        image = image[top : top + window_height, left : left + window_width]
        factors = np.array([width / window_width, height / window_height] * 2, dtype=np.float32)
        return Transformed(resize(image, height, width, self.config.interpolation), boxes * factors, labels)


class ClassTransform:
    """Evaluation and inference of classes: the square in the middle."""

    def __init__(self, config: CropConfig) -> None:
        self.config = config

    def __call__(self, image: np.ndarray, epoch: int, index: int) -> np.ndarray:
        """[H, W, C] → [size, size, C]."""
        height, width = image.shape[:2]
        side = max(1, round(min(height, width) * self.config.eval_share))
        top, left = (height - side) // 2, (width - side) // 2
        return resize(image[top : top + side, left : left + side], self.config.size, self.config.size)


class TrainClassTransform(ClassTransform):
    """A window of random size and shape, then flips and colours (Szegedy et al. 2015, section 6)."""

    def __init__(self, config: CropConfig, augment: AugmentConfig, seed: int, channels: int = 3) -> None:
        super().__init__(config)
        self.seed = seed
        self.augment = augment
        library = _albumentations()
        window = library.RandomResizedCrop(
            (config.size, config.size), tuple(config.scale), tuple(config.ratio), area_for_downscale="image"
        )
        self.window_and_colors = library.Compose([window, _colors(augment, channels)])

    def __call__(self, image: np.ndarray, epoch: int, index: int) -> np.ndarray:
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, epoch, index]))
        across, down = draw_flips(self.augment, rng)
        return flip(apply(self.window_and_colors, image, rng), across, down)


def mix(
    image: np.ndarray, other: np.ndarray, augment: AugmentConfig, rng: np.random.Generator
) -> tuple[np.ndarray, float]:
    """Two pictures [H, W, C] of one size in one, and the first one's share of it."""
    is_blended = rng.random() < 0.5 if augment.mixup and augment.cutmix else augment.mixup > 0
    alpha = augment.mixup if is_blended else augment.cutmix
    share = float(rng.beta(alpha, alpha))
    if is_blended:
        return np.rint(share * image + (1 - share) * other).astype(image.dtype), share
    height, width = image.shape[:2]
    sides = np.sqrt(1 - share) * np.array([height, width]) / 2
    center = rng.uniform(0, [height, width])
    top, left = np.rint(np.maximum(center - sides, 0)).astype(int)
    bottom, right = np.rint(np.minimum(center + sides, [height, width])).astype(int)
    mixed = image.copy()
    mixed[top:bottom, left:right] = other[top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)


def _albumentations() -> Any:
    """The library. It is slow to import, and what changes no colours and draws no windows does without it."""
    # Without this, importing it asks a registry on the internet for its newest version.
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations

    return albumentations


def _colors(augment: AugmentConfig, channels: int) -> Any:
    library = _albumentations()
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


def flip_boxes(boxes: np.ndarray, height: int, width: int, across: bool, down: bool) -> np.ndarray:
    """The boxes of a picture that ``flip`` has flipped."""
    left, top, right, bottom = boxes.T
    if across:
        left, right = width - right, width - left
    if down:
        top, bottom = height - bottom, height - top
    return np.stack([left, top, right, bottom], axis=1)


def crop_boxes(
    boxes: np.ndarray, labels: np.ndarray, window: tuple[int, int, int, int], min_visibility: float
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes in the frame of ``window`` (top, left, height, width), cut to it.

    One that shows nothing is gone; one that shows less than ``min_visibility`` of its area becomes an ignore region: it
    is too little to learn the class from, and wrong to call background.
    """
    top, left, height, width = window
    moved = boxes - np.array([left, top, left, top], dtype=np.float32)
    cut = np.clip(moved, 0, np.array([width, height, width, height], dtype=np.float32))
    area = (cut[:, 2:] - cut[:, :2]).prod(axis=1)
    visible = area / (moved[:, 2:] - moved[:, :2]).prod(axis=1)
    labels = np.where(visible < min_visibility, IGNORE_REGION, labels)
    return cut[area > 0], labels[area > 0]
