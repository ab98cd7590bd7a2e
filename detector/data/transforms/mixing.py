"""Training images made of several: mosaics, pasted objects and blended images.

Partners are drawn from (seed, epoch, index), and each is transformed as in its own turn of the epoch, so workers, ranks
and restarts do not change a sample. Objects are cut out by their boxes: annotations are read without their masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from detector.config.schema import AugmentConfig, ResizeConfig, TrainConfig
from detector.data.loading.sampler import mixed_epochs
from detector.data.transforms.boxes import TrainTransform, Transformed, crop_boxes
from detector.data.transforms.colors import same_depth
from detector.data.transforms.resize import gray, resize
from detector.structures import IGNORE_REGION

PASTED = 0.5  # fraction of the other image's objects


class MixingTransform(TrainTransform):
    """:class:`TrainTransform`, and images mixed with others of the data set until ``augment.close_out``."""

    def __init__(
        self, config: ResizeConfig, augment: AugmentConfig, train: TrainConfig, seed: int, channels: int = 3
    ) -> None:
        super().__init__(config, augment, seed, channels)
        self.train = train

    def mixed(self, read: Callable[[int], Transformed], epoch: int, index: int, images: int) -> Transformed:
        augment, own = self.augment, read(index)
        if epoch >= mixed_epochs(self.train, augment.close_out, images):
            return own
        # A stream of its own: the transform's is seeded with the first three numbers.
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, epoch, index, 1]))
        mosaic_draw, paste_draw, blend_draw = rng.random(3)

        def partner() -> Transformed:
            return read(int(rng.integers(images)))

        if mosaic_draw < augment.mosaic:
            size = augment.canvas or self.config.fixed or own.image.shape[:2]
            own = mosaic([own, partner(), partner(), partner()], (size[0], size[1]), augment.min_visibility, rng)
        if paste_draw < augment.copy_paste:
            own = paste(own, partner(), augment.min_visibility, rng)
        if augment.mixup and blend_draw < augment.mix_share:
            own = blend(own, partner(), float(rng.beta(augment.mixup, augment.mixup)), augment.min_visibility)
        return own


def mosaic(
    parts: Sequence[Transformed], size: tuple[int, int], min_visibility: float, rng: np.random.Generator
) -> Transformed:
    """A window of four images that meet at a random point, as an image of ``size`` (height, width).

    The point lies in the middle of a canvas twice as high and wide. The window shows a quarter of the canvas to all of
    it, so objects keep their size or shrink down to half.
    """
    images = same_depth([part.image for part in parts])
    height, width = size
    canvas = gray(2 * height, 2 * width, images[0])
    row, column = (int(rng.integers(side // 2, side + side // 2 + 1)) for side in size)
    moved = []
    for number, (image, part) in enumerate(zip(images, parts, strict=True)):
        top = row - (image.shape[0] if number < 2 else 0)
        left = column - (image.shape[1] if number % 2 == 0 else 0)
        shown = image[max(0, -top) : 2 * height - top, max(0, -left) : 2 * width - left]
        canvas[max(0, top) : max(0, top) + shown.shape[0], max(0, left) : max(0, left) + shown.shape[1]] = shown
        moved.append(part.boxes + np.array([left, top, left, top], dtype=np.float32))
    zoom = 2 ** rng.uniform(0, 1)
    sides = round(height * zoom), round(width * zoom)
    top, left = (int(rng.integers(2 * full - side + 1)) for full, side in zip(size, sides, strict=True))
    window = (top, left, *sides)
    boxes, labels = crop_boxes(
        np.concatenate(moved), np.concatenate([part.labels for part in parts]), window, min_visibility
    )
    shown = resize(canvas[top : top + sides[0], left : left + sides[1]], height, width)
    return Transformed(shown, boxes * np.float32([width / sides[1], height / sides[0]] * 2), labels)


def paste(own: Transformed, other: Transformed, min_visibility: float, rng: np.random.Generator) -> Transformed:
    """``own`` with about half of the objects of ``other``, each at a random place, none on another.

    An own box that they hide goes, and one that shows less than ``min_visibility`` becomes an ignore region.
    """
    image, source = (part.copy() for part in same_depth([own.image, other.image]))
    size = np.array(image.shape[:2])
    is_pasted = np.zeros(size, dtype=bool)
    boxes, labels = [], []
    for box, label in zip(other.boxes, other.labels, strict=True):
        rows, columns, corner = _pixels(box)
        cut = source[rows, columns]
        room = size - cut.shape[:2]
        if label == IGNORE_REGION or rng.random() >= PASTED or room.min() < 0:
            continue
        top, left = rng.integers(room + 1)
        place = slice(top, top + cut.shape[0]), slice(left, left + cut.shape[1])
        if is_pasted[place].any():
            continue
        image[place], is_pasted[place] = cut, True
        boxes.append(box + np.float32([left, top, left, top]) - corner)
        labels.append(label)
    hidden = np.array([is_pasted[_pixels(box)[:2]].mean() for box in own.boxes])
    own_labels = np.where(1 - hidden < min_visibility, IGNORE_REGION, own.labels)
    is_seen = hidden < 1
    return Transformed(
        image,
        np.concatenate([own.boxes[is_seen], np.reshape(boxes, (-1, 4))]).astype(np.float32),
        np.concatenate([own_labels[is_seen], labels]).astype(np.int64),
    )


def _pixels(box: np.ndarray) -> tuple[slice, slice, np.ndarray]:
    """The rows and columns that a box touches, and their first ones as an xyxy offset."""
    left, top = np.floor(box[:2]).astype(int)
    right, bottom = np.ceil(box[2:]).astype(int)
    return slice(top, bottom), slice(left, right), np.float32([left, top, left, top])


def blend(own: Transformed, other: Transformed, fraction: float, min_visibility: float) -> Transformed:
    """``fraction`` of ``own`` and the rest of ``other`` where both are, with the boxes of both; the size is that of
    ``own``.
    """
    image, second = same_depth([own.image, other.image])
    height, width = (min(pair) for pair in zip(image.shape[:2], second.shape[:2], strict=True))
    both = fraction * image[:height, :width] + (1 - fraction) * second[:height, :width]
    image = image.copy()
    image[:height, :width] = np.rint(both).astype(image.dtype)
    boxes, labels = crop_boxes(other.boxes, other.labels, (0, 0, *image.shape[:2]), min_visibility)
    return Transformed(image, np.concatenate([own.boxes, boxes]), np.concatenate([own.labels, labels]))
