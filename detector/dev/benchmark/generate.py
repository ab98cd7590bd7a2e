"""Generated boxes, images and annotation files, each a function of a seed."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

CLASSES = 80
IMAGES, TRAIN = "images", "annotations/train.json"  # in a data set's folder


def random_boxes(rng: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
    """Boxes [count, 4] float32 xyxy of 16 px to half of the image, log-uniform in size."""
    sides = np.exp(rng.uniform(np.log(16), np.log([height / 2, width / 2]), (count, 2)))
    corners = rng.uniform(0, [height, width] - sides)
    return np.concatenate([corners[:, ::-1], (corners + sides)[:, ::-1]], axis=1).astype(np.float32)


def write_photos(folder: Path, count: int, long: int = 640, boxes: int = 7, seed: int = 0) -> None:
    """Write a COCO-format data set of clouds and grain, about as hard to decode as photos, unless it exists.

    Sides are 4:3, the longer one ``long``; every other image is upright.
    """
    if (folder / TRAIN).exists():
        return
    (folder / IMAGES).mkdir(parents=True)
    rng = np.random.default_rng(seed)
    sizes = []
    for index in range(count):
        height, width = (long * 3 // 4, long) if index % 2 == 0 else (long, long * 3 // 4)
        clouds = cv2.resize(rng.integers(0, 256, (12, 16, 3)).astype(np.float32), (width, height))
        pixels = np.clip(clouds + rng.normal(0, 6, (height, width, 1)), 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / IMAGES / f"{index:06}.jpg"), pixels, [cv2.IMWRITE_JPEG_QUALITY, 92])
        sizes.append((height, width))
    write_annotations(folder / TRAIN, sizes, boxes, seed)


def write_annotations(path: Path, sizes: list[tuple[int, int]], boxes: int, seed: int = 0) -> None:
    """Write a COCO JSON file of images of ``sizes`` with ``boxes`` boxes each."""
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for index, (height, width) in enumerate(sizes):
        images.append({"id": index + 1, "file_name": f"{index:06}.jpg", "height": height, "width": width})
        left, top, right, bottom = random_boxes(rng, boxes, height, width).round(2).astype(float).T
        sides = np.stack([left, top, right - left, bottom - top], axis=1).round(2)
        labels = rng.integers(1, CLASSES + 1, boxes)
        annotations += [
            {
                "id": index * boxes + number + 1,
                "image_id": index + 1,
                "category_id": label,
                "bbox": box,
                "area": round(box[2] * box[3], 2),
                "iscrowd": 0,
            }
            for number, (box, label) in enumerate(zip(sides.tolist(), labels.tolist(), strict=True))
        ]
    categories = [{"id": label, "name": f"class {label}"} for label in range(1, CLASSES + 1)]
    tree = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(tree), encoding="utf-8")
