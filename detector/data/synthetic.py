"""Generated data: shapes on clutter, in COCO format, in class folders or with masks; a function of (seed, index)."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

SIDE = 192  # of an image, in pixels
SMALLEST, LARGEST = 12, 150  # sides of a shape's box, in pixels
MOST_HIDDEN = 1 / 3  # of a shape's area, by shapes drawn over it

# Corners in the square [-1, 1]²; a circle has none.
POLYGONS: dict[str, np.ndarray | None] = {
    "circle": None,
    "square": np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], dtype=np.float64),
    "triangle": np.array([[0, -1], [1, 1], [-1, 1]], dtype=np.float64),
    "cross": np.array(
        [[-3, -9], [3, -9], [3, -3], [9, -3], [9, 3], [3, 3], [3, 9], [-3, 9], [-3, 3], [-9, 3], [-9, -3], [-3, -3]],
        dtype=np.float64,
    )
    / 9,
}
CLASSES = list(POLYGONS)


def write_shapes(folder: Path, train: int, val: int, seed: int = 0) -> None:
    """Write ``folder``/images and ``folder``/annotations/{train,val}.json, with ``train`` and ``val`` images."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "annotations").mkdir(exist_ok=True)
    first = 0
    for split, count in (("train", train), ("val", val)):
        images, annotations = [], []
        for index in range(first, first + count):
            image, boxes, labels = make_image(seed, index)
            name = f"{split}_{index:05}.jpg"
            cv2.imwrite(str(folder / "images" / name), image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
            images.append({"id": index + 1, "file_name": name, "height": SIDE, "width": SIDE})
            for (left, top, right, bottom), label in zip(boxes.tolist(), labels, strict=True):
                width, height = right - left, bottom - top
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": index + 1,
                        "category_id": label + 1,
                        "bbox": [left, top, width, height],
                        "area": width * height,
                        "iscrowd": 0,
                    }
                )
        categories = [{"id": label + 1, "name": name} for label, name in enumerate(CLASSES)]
        tree = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations" / f"{split}.json").write_text(json.dumps(tree), encoding="utf-8")
        first += count


def write_class_shapes(folder: Path, train: int, val: int, seed: int = 0) -> None:
    """Write ``folder``/{train,val}/CLASS/ with every shape of so many images cut out, with a margin of a tenth."""
    first = 0
    for split, count in (("train", train), ("val", val)):
        for name in CLASSES:
            (folder / split / name).mkdir(parents=True, exist_ok=True)
        for index in range(first, first + count):
            image, boxes, labels = make_image(seed, index)
            for number, (box, label) in enumerate(zip(boxes, labels, strict=True)):
                margin = np.tile((box[2:] - box[:2]) // 10 + 1, 2) * [-1, -1, 1, 1]
                left, top, right, bottom = (box + margin).clip(0, SIDE)
                file = folder / split / CLASSES[label] / f"{index:05}_{number:02}.png"
                cv2.imwrite(str(file), image[top:bottom, left:right, ::-1])
        first += count


def write_mask_shapes(folder: Path, train: int, val: int, seed: int = 0) -> None:
    """Write ``folder``/images/{train,val} and index masks of the same names in ``folder``/masks/{train,val}.

    Index 0 is the background, then come the classes.
    """
    first = 0
    for split, count in (("train", train), ("val", val)):
        for kind in ("images", "masks"):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
        for index in range(first, first + count):
            image, _, labels, shown = make_shapes(seed, index)
            mask = np.zeros((SIDE, SIDE), dtype=np.uint8)
            for own, label in zip(shown, labels, strict=True):
                mask[own] = label + 1
            cv2.imwrite(str(folder / "images" / split / f"{index:05}.png"), image[:, :, ::-1])
            cv2.imwrite(str(folder / "masks" / split / f"{index:05}.png"), mask)
        first += count


def make_image(seed: int, index: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """An image [SIDE, SIDE, 3] uint8 RGB, the boxes of its shapes [T, 4] xyxy in whole pixels, and their labels."""
    return make_shapes(seed, index)[:3]


def make_shapes(seed: int, index: int) -> tuple[np.ndarray, np.ndarray, list[int], np.ndarray]:
    """:func:`make_image`, and the part of each shape that is seen, [T, SIDE, SIDE] bool."""
    rng = np.random.default_rng([seed, index])
    image = _clutter(rng)
    shown = np.zeros((0, SIDE, SIDE), dtype=bool)  # the visible part of each shape so far
    areas, boxes, labels = [], [], []
    for _ in range(int(rng.integers(4, 15))):
        label = int(rng.integers(len(CLASSES)))
        mask = _shape(rng, POLYGONS[CLASSES[label]])
        still_shown = shown & ~mask
        if np.any(still_shown.sum(axis=(1, 2)) < (1 - MOST_HIDDEN) * np.array(areas)):
            continue
        shown = np.concatenate([still_shown, mask[None]])
        rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
        areas.append(mask.sum())
        boxes.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        labels.append(label)
        _paint(rng, image, mask)
    return image, np.array(boxes), labels, shown


def _clutter(rng: np.random.Generator) -> np.ndarray:
    """Clouds, strokes and grain in muted colours: edges everywhere, none of them around a shape."""
    coarse = (rng.integers(60, 190, size=(5, 5, 1)) + rng.integers(-25, 26, size=(5, 5, 3))).astype(np.uint8)
    image = cv2.resize(coarse, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    for _ in range(int(rng.integers(5, 16))):
        start, end = (tuple(int(number) for number in rng.integers(0, SIDE, 2)) for _ in range(2))
        color = tuple(int(number) for number in rng.integers(40, 210) + rng.integers(-25, 26, 3))
        cv2.line(image, start, end, color, int(rng.integers(1, 4)), cv2.LINE_AA)
    grain = rng.normal(0, 8, size=(SIDE, SIDE, 1))
    return np.clip(image + grain, 0, 255).astype(np.uint8)


def _shape(rng: np.random.Generator, polygon: np.ndarray | None) -> np.ndarray:
    """A filled shape somewhere in the image, [SIDE, SIDE] bool; its box has sides of SMALLEST to LARGEST pixels."""
    size = rng.triangular(SMALLEST, 24, LARGEST)
    stretch = np.exp(rng.uniform(-0.25, 0.25, size=2))
    angle = rng.uniform(-0.35, 0.35)  # radians: a square still looks like one
    turns = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    corners = np.stack([np.cos(turns), np.sin(turns)], axis=1) if polygon is None else polygon
    corners = corners * stretch @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    low, high = corners.min(axis=0), corners.max(axis=0)
    # The short side may not fall under SMALLEST, nor the long one pass LARGEST.
    scale = np.clip(size / (high - low).max(), SMALLEST / (high - low).min(), (LARGEST - 2) / (high - low).max())
    extent = (high - low) * scale
    corner = rng.uniform(0, SIDE - 1 - extent)
    mask = np.zeros((SIDE, SIDE), dtype=np.uint8)
    cv2.fillPoly(mask, [np.round((corners - low) * scale + corner).astype(np.int32)], 1)
    return mask.astype(bool)


def _paint(rng: np.random.Generator, image: np.ndarray, mask: np.ndarray) -> None:
    """Fill ``mask`` with a vivid colour, sometimes striped."""
    hue, value = int(rng.integers(180)), int(rng.integers(140, 256))
    color = cv2.cvtColor(np.array([[[hue, 230, value]]], dtype=np.uint8), cv2.COLOR_HSV2RGB)[0, 0]
    image[mask] = color
    if rng.random() < 0.25:
        stripes = np.zeros_like(mask)
        stripes[:: int(rng.integers(4, 9))] = True
        image[mask & stripes] = 255 - color
