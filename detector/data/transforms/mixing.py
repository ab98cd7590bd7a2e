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
from detector.data.transforms.resize import cut, gray, resize
from detector.data.transforms.windows import draw_mosaic, put_four
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
    """A window of four images that meet at a random point (:func:`draw_mosaic`), as an image of ``size``."""
    images = same_depth([part.image for part in parts])
    meeting, window = draw_mosaic(size, rng)
    canvas = gray(2 * size[0], 2 * size[1], images[0])
    corners = put_four(images, meeting, canvas)
    moved = [part.boxes + np.float32(corner[::-1] * 2) for part, corner in zip(parts, corners, strict=True)]
    boxes, labels = crop_boxes(
        np.concatenate(moved), np.concatenate([part.labels for part in parts]), window, min_visibility
    )
    scale = np.float32([size[1] / window[3], size[0] / window[2]] * 2)
    return Transformed(resize(cut(canvas, window), *size), boxes * scale, labels)


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
        patch = source[rows, columns]
        room = size - patch.shape[:2]
        if label == IGNORE_REGION or rng.random() >= PASTED or room.min() < 0:
            continue
        top, left = rng.integers(room + 1)
        place = slice(top, top + patch.shape[0]), slice(left, left + patch.shape[1])
        if is_pasted[place].any():
            continue
        image[place], is_pasted[place] = patch, True
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
