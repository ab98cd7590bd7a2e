"""Resizing and augmentation of an image with its boxes.

Every random draw comes from (seed, epoch, index), so workers, ranks and restarts do not change a sample.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from detector.config.schema import AugmentConfig, ResizeConfig
from detector.data.transforms.colors import (
    apply,
    apply_listed,
    augmentations,
    draw_flips,
    draw_turns,
    flip,
    seeded,
    turn,
)
from detector.data.transforms.resize import cut, gray, input_size, resize
from detector.data.transforms.windows import draw_corner, draw_window
from detector.structures import IGNORE_REGION


class Transformed(NamedTuple):
    image: np.ndarray  # [H, W, C] uint8 or uint16
    boxes: np.ndarray  # [T, 4] float32 xyxy
    labels: np.ndarray  # [T] int64


class Transform:
    """Evaluation and inference: ``resize.fixed`` or the last size of ``resize.short``, nothing random."""

    def __init__(self, config: ResizeConfig) -> None:
        self.config = config

    def __call__(self, image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, epoch: int, index: int) -> Transformed:
        return self._resized(image, boxes, labels, *input_size(*image.shape[:2], self.config))

    def mixed(self, read: Callable[[int], Transformed], epoch: int, index: int, images: int) -> Transformed:
        """The sample ``index`` of ``images``, which ``read`` transforms: with others, where training mixes them."""
        return read(index)

    def _resized(
        self, image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, height: int, width: int
    ) -> Transformed:
        factors = np.array([width / image.shape[1], height / image.shape[0]] * 2, dtype=np.float32)
        return Transformed(resize(image, height, width, self.config.interpolation), boxes * factors, labels)


class Stored(Transform):
    """Images and boxes as they are stored."""

    def __call__(self, image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, epoch: int, index: int) -> Transformed:
        return Transformed(image, boxes, labels)


class TrainTransform(Transform):
    """Turns, size and scale jitter with crop, flips, colours, and ``data.augment.transforms``."""

    def __init__(self, config: ResizeConfig, augment: AugmentConfig, seed: int, channels: int = 3) -> None:
        super().__init__(config)
        self.augment = augment
        self.seed = seed
        self.colors, self.listed = augmentations(config, augment, channels)

    def __call__(self, image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, epoch: int, index: int) -> Transformed:
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, epoch, index]))
        if quarters := draw_turns(self.augment, rng):
            image, boxes = turn(image, quarters), turn_boxes(boxes, *image.shape[:2], quarters)
        image, boxes, labels = self._placed(image, boxes, labels, rng)
        across, down = draw_flips(self.augment, rng)
        image, boxes = flip(image, across, down), flip_boxes(boxes, *image.shape[:2], across, down)
        if self.colors is not None:
            image = apply(self.colors, image, rng)
        size = image.shape[:2]
        for transform in seeded(self.listed, rng):
            image, boxes, kept = apply_listed(transform, image, boxes)
            window = (0, 0, *image.shape[:2])
            boxes, labels = crop_boxes(boxes, labels[kept], window, self.augment.min_visibility)
        if self.config.fixed or self.augment.canvas:
            image, boxes, labels = self._resized(image, boxes, labels, *size)
        # Rounding may move a box's edge outside by a fraction of a pixel, or make its edges coincide.
        height, width = image.shape[:2]
        boxes = np.clip(boxes, 0, np.array([width, height, width, height], dtype=np.float32))
        has_area = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        return Transformed(image, boxes[has_area], labels[has_area])

    def _placed(
        self, image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, rng: np.random.Generator
    ) -> Transformed:
        """A window of the image, resized; with ``augment.canvas``, put on gray at random."""
        window, size = draw_window(image.shape[:2], self.config, self.augment, rng)
        if window != (0, 0, *image.shape[:2]) or self.augment.canvas:
            boxes, labels = crop_boxes(boxes, labels, window, self.augment.min_visibility)
        seen, boxes, labels = self._resized(cut(image, window), boxes, labels, *size)
        if not self.augment.canvas:
            return Transformed(seen, boxes, labels)
        top, left = draw_corner(size, self.augment.canvas, rng)
        whole = gray(*self.augment.canvas, seen)
        whole[top : top + size[0], left : left + size[1]] = seen
        return Transformed(whole, boxes + np.array([left, top, left, top], dtype=np.float32), labels)


def turn_boxes(boxes: np.ndarray, height: int, width: int, quarters: int) -> np.ndarray:
    """The boxes of an image of this size turned by ``turn``."""
    for _ in range(quarters):
        left, top, right, bottom = boxes.T
        boxes = np.stack([top, width - right, bottom, width - left], axis=1)
        height, width = width, height
    return boxes


def flip_boxes(boxes: np.ndarray, height: int, width: int, across: bool, down: bool) -> np.ndarray:
    """The boxes of an image flipped by ``flip``."""
    left, top, right, bottom = boxes.T
    if across:
        left, right = width - right, width - left
    if down:
        top, bottom = height - bottom, height - top
    return np.stack([left, top, right, bottom], axis=1)


def crop_boxes(
    boxes: np.ndarray, labels: np.ndarray, window: tuple[int, int, int, int], min_visibility: float
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes in the frame of ``window`` (top, left, height, width), clipped to it.

    Boxes outside it are removed. A box with less than ``min_visibility`` of its area inside becomes an ignore region:
    too little of the object to learn the class from, but not background.
    """
    top, left, height, width = window
    moved = boxes - np.array([left, top, left, top], dtype=np.float32)
    cut = np.clip(moved, 0, np.array([width, height, width, height], dtype=np.float32))
    area = (cut[:, 2:] - cut[:, :2]).prod(axis=1)
    visible = area / (moved[:, 2:] - moved[:, :2]).prod(axis=1)
    labels = np.where(visible < min_visibility, IGNORE_REGION, labels)
    return cut[area > 0], labels[area > 0]
