"""The data set of COCO-format annotations and a folder of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from detector.config import DataConfig, SplitConfig
from detector.data.box_rules import check_boxes
from detector.data.coco_json import Annotations, Category, read_annotations
from detector.data.formats import naming_format
from detector.data.images import read_annotated_image
from detector.data.json_stream import show_text
from detector.data.names import FIX, Names, check_names
from detector.data.transforms import Transform
from detector.errors import DataError, DetectorError
from detector.structures import IGNORE_REGION

BLOCK = 1 << 16  # boxes checked at once
OUTSIDE = "put the image into the folder, or set data.allow_outside=true if you trust the annotations"


class Sample(NamedTuple):
    """One picture with its boxes, as a loader's workers hand it to ``collate``."""

    image: Tensor  # [C, H, W] uint8 or uint16
    boxes: Tensor  # [T, 4] float32, xyxy in pixels of ``image``
    labels: Tensor  # [T] int64
    size_original: tuple[int, int]  # height, width of the file
    id: int


@dataclass(frozen=True)
class CheckedBoxes:
    """What ``data.invalid_boxes`` did to a data set."""

    boxes: Tensor  # [M, 4] float32 xyxy in the original frame
    is_kept: Tensor  # [M] bool
    clipped: int
    dropped: int
    first_invalid: str | None  # where the first one stands


def apply_box_policy(annotations: Annotations, policy: str) -> CheckedBoxes:
    """Boxes as xyxy, with those that have no area or reach outside their image refused, clipped or dropped.

    ``error`` raises for the first of them; ``clip`` cuts boxes to the image and drops what has no area then; ``drop``
    drops every one of them. Up to a pixel outside is no fault (annotation tools round); that is cut without a word.
    """
    image = annotations.image_index()
    sides = torch.stack([annotations.widths, annotations.heights], dim=1)  # [I, 2]
    boxes = torch.empty(len(image), 4)
    is_empty, is_outside = torch.empty(2, len(image), dtype=torch.bool)
    # In blocks, or the intermediate values would be the most that a run of the whole program holds.
    for rows in map(slice, range(0, len(image), BLOCK), range(BLOCK, len(image) + BLOCK, BLOCK)):
        checked = check_boxes(annotations.boxes_xywh[rows].numpy(), sides[image[rows]].numpy())
        boxes[rows], is_empty[rows], is_outside[rows] = map(torch.from_numpy, checked)
    is_invalid = is_empty | is_outside
    first_invalid = None
    if is_invalid.any():
        row = int(is_invalid.nonzero()[0])
        index = int(image[row])
        fault = "has no area" if is_empty[row] else "reaches outside its image"
        size = f"{int(annotations.widths[index])}×{int(annotations.heights[index])}"
        first_invalid = (
            f"image {int(annotations.image_ids[index])} ({show_text(annotations.file_name(index))}, {size}), annotation"
            f" {int(annotations.annotation_ids[row])}: box {annotations.boxes_xywh[row].tolist()} (xywh) {fault}"
        )
        if policy == "error":
            raise DataError(
                f"{annotations.path}: {first_invalid}; {int(is_invalid.sum())} boxes in the file are like this:"
                " correct them, or set data.invalid_boxes to clip or drop"
            )
    is_dropped = is_empty if policy == "clip" else is_invalid
    return CheckedBoxes(
        boxes=boxes,
        is_kept=~is_dropped,
        clipped=int((is_invalid & ~is_dropped).sum()),
        dropped=int(is_dropped.sum()),
        first_invalid=first_invalid,
    )


class CocoDataset(Dataset[Sample | DetectorError]):
    """Pictures of a COCO-format data set, transformed.

    Indexed by (epoch, index): what happens to a sample depends on these and the seed alone. A broken picture comes back
    as the error itself, for the process that reads the loader to raise (an exception would reach it wrapped in the
    worker's traceback).
    """

    def __init__(
        self, annotations: Annotations, images: Path, transform: Transform, invalid_boxes: str, channels: int = 3
    ) -> None:
        self.annotations = annotations
        self.images = images
        self.transform = transform
        self.channels = channels
        self.invalid_boxes = invalid_boxes
        self.checked = apply_box_policy(annotations, invalid_boxes)

    def __len__(self) -> int:
        return len(self.annotations)

    @property
    def categories(self) -> list[Category]:
        return self.annotations.categories

    @property
    def truth(self) -> Annotations:
        """What predictions are scored against."""
        return self.annotations

    @property
    def source(self) -> Path:
        return self.annotations.path

    @property
    def is_wide(self) -> np.ndarray:
        """Whether each picture is at least as wide as high, [I] bool."""
        return (self.annotations.widths >= self.annotations.heights).numpy()

    def file(self, index: int) -> Path:
        return self.images / self.annotations.file_name(index)

    @property
    def is_object(self) -> Tensor:
        """Which annotations are something to find, [M] bool: no crowds, nothing that was dropped."""
        return self.checked.is_kept & ~self.annotations.is_crowd

    @property
    def has_targets(self) -> np.ndarray:
        """Which pictures have something to find, [I] bool."""
        images = self.annotations.image_index()[self.is_object]
        return (torch.bincount(images, minlength=len(self)) > 0).numpy()

    def select(self, indices: Sequence[int]) -> CocoDataset:
        """Some of the pictures, in this order."""
        return CocoDataset(
            self.annotations.select(indices), self.images, self.transform, self.invalid_boxes, self.channels
        )

    def summary(self) -> str:
        """A line of counts for the start of a run."""
        annotations, checked = self.annotations, self.checked
        boxes = int(self.is_object.sum())
        crowds = int((checked.is_kept & annotations.is_crowd).sum())
        empty = int((annotations.first.diff() == 0).sum())
        text = (
            f"{len(self):,} images ({empty:,} without boxes), {boxes:,} boxes of {len(annotations.categories)} classes"
        )
        if crowds:
            text += f", {crowds:,} crowd regions"
        if checked.first_invalid:
            text += f"; {checked.clipped:,} invalid boxes clipped, {checked.dropped:,} dropped"
            text += f" (first: {checked.first_invalid})"
        return text

    def index_of(self, image_id: int) -> int:
        """Where a picture stands, by the id that batches have."""
        return int((self.annotations.image_ids == image_id).nonzero()[0])

    def __getitem__(self, key: tuple[int, int]) -> Sample | DetectorError:
        epoch, index = key
        try:
            return self._sample(epoch, index)
        except DetectorError as error:
            return error

    def _sample(self, epoch: int, index: int) -> Sample:
        annotations = self.annotations
        height, width = int(annotations.heights[index]), int(annotations.widths[index])
        image = read_annotated_image(self.file(index), height, width, self.channels)
        rows = annotations.rows(index)
        is_kept = self.checked.is_kept[rows]
        boxes = self.checked.boxes[rows][is_kept].numpy()
        labels = torch.where(annotations.is_crowd[rows], IGNORE_REGION, annotations.labels[rows])[is_kept].numpy()
        image, boxes, labels = self.transform(image, boxes, labels, epoch, index)
        return Sample(
            image=torch.from_numpy(image).permute(2, 0, 1),
            boxes=torch.from_numpy(boxes),
            labels=torch.from_numpy(labels),
            size_original=(height, width),
            id=int(annotations.image_ids[index]),
        )


def open_dataset(
    split: SplitConfig,
    name: str,
    config: DataConfig,
    transform: Transform,
    categories: list[Category] | None = None,
    channels: int = 3,
) -> CocoDataset:
    """The data set of ``data.train`` or ``data.val`` (``name``), checked as far as it can be without decoding."""
    for key in ("annotations", "images"):
        if getattr(split, key) is None:
            raise DataError(f"data.{name}.{key} is not set; give it in the config or as data.{name}.{key}=PATH")
    images = Path(split.images or "")
    if not images.is_dir():
        raise DataError(f"data.{name}.images: {images} is no folder")
    with naming_format(Path(split.annotations or "")):
        annotations = read_annotations(split.annotations or "", categories)
    check_files(annotations, images, name, config.allow_outside)
    data = CocoDataset(annotations, images, transform, config.invalid_boxes, channels)
    if name == "train" and not data.is_object.any():
        raise DataError(
            f"{annotations.path}: has no object to train on ({data.summary()}); annotate some, or check that"
            " data.train.annotations is the file that was meant"
        )
    return data


def check_files(annotations: Annotations, images: Path, split: str, allow_outside: bool) -> None:
    """Raises for an image that does not exist or whose name, unless ``allow_outside``, leads out of ``images``."""
    names = map(annotations.file_name, range(len(annotations)))
    for index, is_outside, reason in check_names(names, images, allow_outside):
        name = annotations.file_name(index)
        fault = f"{reason} of data.{split}.images" if is_outside else reason
        remedy = OUTSIDE if is_outside else f"check data.{split}.images, or remove the image from the annotations"
        if hint := Names(images).hint(name):
            remedy = f"{hint} {FIX}"
        raise DataError(
            f"{show_text(str(images / name))}: {fault}, but {annotations.path} names it (image"
            f" {int(annotations.image_ids[index])}); {remedy}"
        )
