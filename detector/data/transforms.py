"""Resizing and augmentation of a picture and its boxes.

Every draw comes from (seed, epoch, index), so a sample is the same with any number of workers, ranks or restarts. This
is the only module that knows albumentations.
"""

from __future__ import annotations

import os
import random
from typing import Any, NamedTuple

import cv2
import numpy as np

from detector.config import AugmentConfig, ResizeConfig
from detector.structures import IGNORE_REGION


class Transformed(NamedTuple):
    image: np.ndarray  # [H, W, 3] uint8
    boxes: np.ndarray  # [T, 4] float32 xyxy
    labels: np.ndarray  # [T] int64


def target_size(height: int, width: int, short: int, long: int) -> tuple[int, int]:
    """Height and width with the short side at ``short``, or the long one at ``long`` if it would pass that."""
    scale = min(short / min(height, width), long / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear when it grows; by area when it shrinks, which does not alias."""
    if image.shape[:2] == (height, width):
        return image
    shrinks = height < image.shape[0] or width < image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


class Transform:
    """Evaluation and inference: the last size of ``resize.short``, nothing drawn."""

    def __init__(self, config: ResizeConfig) -> None:
        self.config = config

    def __call__(self, image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, epoch: int, index: int) -> Transformed:
        height, width = target_size(*image.shape[:2], self.config.short[-1], self.config.long)
        factors = np.array([width / image.shape[1], height / image.shape[0]] * 2, dtype=np.float32)
        return Transformed(resize(image, height, width), boxes * factors, labels)


class TrainTransform(Transform):
    """Size and scale jitter with crop, then flips and colours, in this order."""

    def __init__(self, config: ResizeConfig, augment: AugmentConfig, seed: int) -> None:
        # Without this, importing albumentations asks a registry on the internet for its newest version. It is slow to
        # import, and evaluation and inference do without it.
        os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
        import albumentations as A

        super().__init__(config)
        self.augment = augment
        self.seed = seed
        self.compose = A.Compose(
            [
                A.HorizontalFlip(p=augment.horizontal_flip),
                A.VerticalFlip(p=augment.vertical_flip),
                A.ColorJitter(
                    brightness=(0.7, 1.3),
                    contrast=(0.7, 1.3),
                    saturation=(0.7, 1.3),
                    hue=(-0.03, 0.03),
                    p=augment.photometric,
                ),
            ],
            bbox_params=A.BboxParams("pascal_voc", label_fields=["rows"], clip=True, filter_invalid_bboxes=True),
        )

    def __call__(self, image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, epoch: int, index: int) -> Transformed:
        sequence = np.random.SeedSequence([self.seed, epoch, index])
        rng = np.random.default_rng(sequence)
        image, boxes, labels = self._rescale_and_crop(image, boxes, labels, rng)
        # One generator for all children, or horizontal and vertical flip would always coincide.
        self.compose.set_random_state(rng, random.Random(int(rng.integers(2**63))))
        # Labels would come back as floats: pass row numbers and index our own.
        flipped: dict[str, Any] = self.compose(image=image, bboxes=boxes, rows=np.arange(len(boxes)))
        rows = np.asarray(flipped["rows"], dtype=np.int64)
        return Transformed(flipped["image"], np.asarray(flipped["bboxes"], np.float32).reshape(-1, 4), labels[rows])

    def _rescale_and_crop(
        self, image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, rng: np.random.Generator
    ) -> Transformed:
        """Zoomed by a drawn factor: in, a window of the picture fills the target size; out, the target is smaller."""
        full_height, full_width = image.shape[:2]
        height, width = target_size(full_height, full_width, int(rng.choice(self.config.short)), self.config.long)
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
        return Transformed(resize(image, height, width), boxes * factors, labels)


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
