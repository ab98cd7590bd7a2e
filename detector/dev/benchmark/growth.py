"""Time and memory by the number of objects in an image (the loss) and of annotated images (loading them).

torchvision's loss runs up to ``MOST_OF_THEIRS`` objects: its matrices of anchors × objects take about 28 bytes per
entry, 5.6 GB at 1,000. On its side pycocotools loads the annotations, as ``CocoDetection`` does.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pycocotools.coco import COCO

from detector.data.detection import Annotations, CheckedBoxes, apply_box_policy
from detector.data.formats.reading import read_annotations
from detector.dev.benchmark import loss
from detector.dev.benchmark.generate import write_annotations
from detector.dev.benchmark.measure import Case, Settings

OBJECTS = (1, 10, 100, 1_000, 10_000)
MOST_OF_THEIRS = 100
IMAGES = (1_000, 10_000, 100_000)
BOXES = 10  # per image
SIZE = (480, 640)


class Loaded(NamedTuple):
    annotations: Annotations
    checked: CheckedBoxes


def cases(settings: Settings) -> list[Case]:
    return [
        *(loss_case(settings, objects) for objects in OBJECTS),
        *(loading_case(settings.scaled(images)) for images in IMAGES),
    ]


def loss_case(settings: Settings, objects: int) -> Case:
    case = loss.make_case(settings, objects, batch=1)
    return replace(
        case,
        name=f"loss, {case.name}",
        runs=2,
        **({} if objects <= MOST_OF_THEIRS else {"theirs": None, "equal": None}),
    )


def loading_case(images: int) -> Case:
    def path(folder: Path) -> Path:
        return folder / f"{images}.json"

    return Case(
        name=f"loading {images:,} images, {images * BOXES:,} boxes",
        files=lambda folder: write_annotations(path(folder), [SIZE] * images, BOXES),
        inputs=path,
        ours=partial(partial, load),
        theirs=partial(partial, load_as_torchvision),
        equal=equal,
        runs=2,
        slow=True,
    )


def load(path: Path) -> Loaded:
    annotations = read_annotations(path)
    return Loaded(annotations, apply_box_policy(annotations, "error"))


def load_as_torchvision(path: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(path)


def equal(_path: Path, own: Loaded, other: COCO) -> bool:
    rows = [row for image_id in own.annotations.image_ids.tolist() for row in other.imgToAnns[image_id]]
    boxes, ids = np.array([row["bbox"] for row in rows]), np.array([row["id"] for row in rows])
    annotations = own.annotations
    return np.array_equal(annotations.boxes_xywh.numpy(), boxes) and np.array_equal(
        annotations.annotation_ids.codes.numpy(), ids
    )
