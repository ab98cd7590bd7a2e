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

from detector.config import AugmentConfig, CropConfig, ResizeConfig
from detector.structures import IGNORE_REGION


class Transformed(NamedTuple):
    image: np.ndarray  # [H, W, C] uint8 or uint16
    boxes: np.ndarray  # [T, 4] float32 xyxy
    labels: np.ndarray  # [T] int64


def target_size(height: int, width: int, short: int, long: int, rounding: str = "nearest") -> tuple[int, int]:
    """Height and width with the short side at ``short``, or the long one at ``long`` if it would pass that."""
    scale = min(short / min(height, width), long / max(height, width))
    cut = int if rounding == "down" else round
    return max(1, cut(height * scale)), max(1, cut(width * scale))


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
        height, width = self.size_of(image, self.config.short[-1])
        factors = np.array([width / image.shape[1], height / image.shape[0]] * 2, dtype=np.float32)
        return Transformed(resize(image, height, width, self.config.interpolation), boxes * factors, labels)

    def size_of(self, image: np.ndarray, short: int) -> tuple[int, int]:
        """Height and width that the picture gets."""
        if self.config.fixed:
            height, width = self.config.fixed
            return height, width
        return target_size(*image.shape[:2], short, self.config.long, self.config.rounding)


class TrainTransform(Transform):
    """Size and scale jitter with crop, then flips and colours, in this order."""

    def __init__(self, config: ResizeConfig, augment: AugmentConfig, seed: int, channels: int = 3) -> None:
        super().__init__(config)
        self.augment = augment
        self.seed = seed
        library = _albumentations()
        self.compose = library.Compose(
            _flips_and_colors(augment, channels),
            bbox_params=library.BboxParams("pascal_voc", label_fields=["rows"], clip=True, filter_invalid_bboxes=True),
        )

    def __call__(self, image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, epoch: int, index: int) -> Transformed:
        sequence = np.random.SeedSequence([self.seed, epoch, index])
        rng = np.random.default_rng(sequence)
        image, boxes, labels = self._rescale_and_crop(image, boxes, labels, rng)
        # One generator for all children, or horizontal and vertical flip would always coincide.
        self.compose.set_random_state(rng, random.Random(int(rng.integers(2**63))))
        # Labels would come back as floats: pass row numbers and index our own.
        flipped: dict[str, Any] = self.compose(
            image=_as_8_bits_or_float(image), bboxes=boxes, rows=np.arange(len(boxes))
        )
        rows = np.asarray(flipped["rows"], dtype=np.int64)
        boxes = np.asarray(flipped["bboxes"], np.float32).reshape(-1, 4)
        return Transformed(_with_depth_of(image, flipped["image"]), boxes, labels[rows])

    def _rescale_and_crop(
        self, image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, rng: np.random.Generator
    ) -> Transformed:
        """Zoomed by a drawn factor: in, a window of the picture fills the target size; out, the target is smaller."""
        full_height, full_width = image.shape[:2]
        height, width = self.size_of(image, int(rng.choice(self.config.short)))
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
        library = _albumentations()
        window = library.RandomResizedCrop(
            (config.size, config.size), tuple(config.scale), tuple(config.ratio), area_for_downscale="image"
        )
        self.compose = library.Compose([window, *_flips_and_colors(augment, channels)])

    def __call__(self, image: np.ndarray, epoch: int, index: int) -> np.ndarray:
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, epoch, index]))
        self.compose.set_random_state(rng, random.Random(int(rng.integers(2**63))))
        return _with_depth_of(image, self.compose(image=_as_8_bits_or_float(image))["image"])


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
    """The library. It is slow to import, and evaluation and inference do without it."""
    # Without this, importing it asks a registry on the internet for its newest version.
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations

    return albumentations


def _flips_and_colors(augment: AugmentConfig, channels: int) -> list[Any]:
    library = _albumentations()
    if channels == 3:
        limits = (0.7, 1.3)
        colors = library.ColorJitter(limits, limits, limits, hue=(-0.03, 0.03), p=augment.photometric)
    else:  # saturation and hue are of RGB
        colors = library.RandomBrightnessContrast((-0.3, 0.3), (-0.3, 0.3), p=augment.photometric)
    return [library.HorizontalFlip(p=augment.horizontal_flip), library.VerticalFlip(p=augment.vertical_flip), colors]


def _as_8_bits_or_float(image: np.ndarray) -> np.ndarray:
    """16 bits as float32 in [0, 1], which holds them exactly: colours are changed in 8 bits or in floats only."""
    return image if image.dtype == np.uint8 else image.astype(np.float32) / 65535


def _with_depth_of(original: np.ndarray, image: np.ndarray) -> np.ndarray:
    if image.dtype != original.dtype:
        image = np.rint(image * 65535).clip(0, 65535).astype(np.uint16)
    return image.reshape(*image.shape[:2], -1)


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
