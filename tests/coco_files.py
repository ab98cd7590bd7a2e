"""COCO files of two or three small images, and the data sets that are made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from detector.config.schema import ResizeConfig
from detector.data.detection import (
    CocoDataset,
    Sample,
)
from detector.data.formats.reading import read_annotations
from detector.data.transforms.boxes import Transform
from detector.errors import DataError

Tree = dict[str, Any]


def make_tree() -> Tree:
    """Two images with boxes, one without; the annotations of the first (id 7) are not next to each other."""
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "height": 50, "width": 100},
            {"id": 3, "file_name": "Ordner/ö 猫.png", "height": 60, "width": 80},
            {"id": 900000000000, "file_name": "c.png", "height": 20, "width": 30},
        ],
        "annotations": [
            {"id": 11, "image_id": 7, "category_id": 90, "bbox": [1, 2, 10, 20], "area": 150, "iscrowd": 0},
            {"id": 12, "image_id": 3, "category_id": 2, "bbox": [3.5, 4.25, 5, 6]},
            {"id": 13, "image_id": 7, "category_id": 5, "bbox": [0, 0, 100, 50], "iscrowd": 1},
        ],
        "categories": [{"id": 90, "name": "猫"}, {"id": 2, "name": "b"}, {"id": 5, "name": "a"}],
    }


def write(folder: Path, tree: Any, **options: Any) -> Path:
    path = folder / "x.json"
    path.write_text(json.dumps(tree, **options), encoding="utf-8")
    return path


def error_of(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_annotations(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert len(message.splitlines()) == 1
    return message.removeprefix(str(path))


def write_images(folder: Path, tree: Tree) -> None:
    """Images of the annotated sizes, each filled with its own gray: 40, 80, 120."""
    for place, image in enumerate(tree["images"]):
        path = folder / image["file_name"]
        path.parent.mkdir(exist_ok=True)
        pixels = np.full((image["height"], image["width"]), 40 * place + 40, np.uint8)
        path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())


def same_size() -> Transform:
    """An image of 50×100 stays as it is."""
    return Transform(ResizeConfig(short=[50], long=1000))


def make_dataset(folder: Path, tree: Tree, invalid_boxes: str = "error") -> CocoDataset:
    write_images(folder, tree)
    return CocoDataset(read_annotations(write(folder, tree)), folder, same_size(), invalid_boxes)


def sample_of(dataset: CocoDataset, index: int) -> Sample:
    sample = dataset[0, index]
    assert isinstance(sample, Sample)
    return sample


def tree_with(boxes: list[list[float]]) -> Tree:
    annotations = [
        {"id": 100 + row, "image_id": 7, "category_id": 5, "bbox": box, "iscrowd": row % 2}
        for row, box in enumerate(boxes)
    ]
    return make_tree() | {"annotations": annotations}
