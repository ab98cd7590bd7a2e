"""The user's own data sets, given from Python: ``detector.train(..., data=(train, val))``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from detector.config.schema import DataConfig
from detector.data.detection import CocoDataset, check_objects
from detector.data.formats.annotations import Annotations
from detector.data.formats.columns import Ids, Texts
from detector.data.inputs import ImageInput, as_array
from detector.data.transforms.boxes import Transform
from detector.errors import DataError
from detector.structures import Category


class BoxData(Protocol):
    """Images with boxes, by index. An index must always give the same item, or a resumed run would differ."""

    categories: Sequence[Category]  # ids of your choice, and names; a label is an index into these

    def __len__(self) -> int: ...

    # The image as ``predict`` takes it, such as an array [H, W, 3]; boxes [T, 4], xyxy in its pixels; labels [T].
    def __getitem__(self, index: int) -> tuple[ImageInput, Any, Any]: ...


# To train on, and to evaluate on; for segmentation each is a :class:`detector.data.own_masks.MaskData`.
OwnData = tuple[Any, Any | None]


class OwnDataset(CocoDataset):
    """A :class:`BoxData` for the training loop: boxes are read once, into columns, and each image when it is needed.

    Images have no files: their names are their indices in ``own``.
    """

    def __init__(self, own: BoxData, annotations: Annotations, *settings: Any) -> None:
        super().__init__(annotations, None, *settings)
        self.own = own

    def select(self, indices: Sequence[int]) -> OwnDataset:
        given = self.transform, self.invalid_boxes, self.channels, self.exif, self.max_value
        return OwnDataset(self.own, self.annotations.select(indices), *given)

    def file(self, index: int) -> Path:
        """What messages name instead of a file."""
        return Path(f"{self.source}: image {self.annotations.file_name(index)}")

    def warnings(self) -> list[str]:
        return []

    def open(self, index: int, for_window: bool = False) -> np.ndarray:
        return self._read(index, int(self.annotations.heights[index]), int(self.annotations.widths[index]))

    def _read(self, index: int, height: int, width: int) -> np.ndarray:
        image = self.own[int(self.annotations.file_name(index))][0]
        array = as_array(image, self.channels, self.exif, self.max_value)
        if array.shape[:2] != (height, width):
            size, before = "×".join(map(str, array.shape[1::-1])), f"{width}×{height}"
            raise DataError(f"{self.file(index)}: is {size}, was {before}; an index must always give the same image")
        return array


def read_own(
    own: BoxData,
    name: str,
    transform: Transform,
    data: DataConfig,
    channels: int,
    categories: list[Category] | None = None,
) -> OwnDataset:
    """The data set ``own`` as train or val (``name``), with each item read once.

    Raises :class:`detector.errors.DataError` for an item that is not as :class:`BoxData` says, and for classes that
    differ from ``categories`` (those of train).
    """
    source = Path(f"data given for {name}")
    known = read_categories(own, source, categories)
    sizes, boxes, labels = [], [np.zeros((0, 4))], [np.zeros(0, dtype=np.int64)]
    for index in range(len(own)):
        item = own[index]
        if not isinstance(item, tuple | list) or len(item) != 3:
            raise DataError(f"{source}: image {index}: is {type(item).__name__}; give (image, boxes, labels)")
        image, *objects = item
        try:
            sizes.append(as_array(image, channels, data.exif, data.max_value).shape[:2])
            checked = _check_objects(*objects, len(known))
        except (TypeError, ValueError, DataError) as error:
            raise DataError(f"{source}: image {index}: {error}") from None
        boxes.append(checked[0])
        labels.append(checked[1])
    xywh, label = np.concatenate(boxes), np.concatenate(labels)
    xywh[:, 2:] -= xywh[:, :2]
    annotations = Annotations(
        path=source,
        categories=known,
        image_ids=Ids.counting(len(sizes)).map(torch.from_numpy),
        heights=torch.tensor([height for height, _ in sizes], dtype=torch.int64),
        widths=torch.tensor([width for _, width in sizes], dtype=torch.int64),
        names=Texts.of(map(str, range(len(sizes)))).map(torch.from_numpy),
        first=torch.tensor([len(part) for part in labels]).cumsum(0),
        annotation_ids=Ids.counting(len(label)).map(torch.from_numpy),
        boxes_xywh=torch.from_numpy(xywh),
        labels=torch.from_numpy(label),
        areas=torch.from_numpy(xywh[:, 2:].prod(axis=1)),
        is_crowd=torch.zeros(len(label), dtype=torch.bool),
    )
    dataset = OwnDataset(own, annotations, transform, data.invalid_boxes, channels, data.exif, data.max_value)
    if name == "train":
        check_objects(dataset)
    return dataset


def read_categories(own: Any, source: Path, categories: list[Category] | None) -> list[Category]:
    """The classes of a data set, each with an id and a name of its own; those of train, ``categories``, where known."""
    if not all(hasattr(own, name) for name in ("categories", "__len__", "__getitem__")):
        raise DataError(f"{source}: is {type(own).__name__}; give an object with categories, a length and items")
    given = list(own.categories)
    if not given or not all(isinstance(category, tuple | list) and len(category) == 2 for category in given):
        raise DataError(f"{source}: its categories are {given}; give one or more pairs (id, name)")
    known = [Category(*category) for category in given]
    if any(len({category[part] for category in known}) < len(known) for part in (0, 1)):
        raise DataError(f"{source}: its categories are {given}; give each an id and a name of its own")
    if categories is not None and known != categories:
        raise DataError(f"{source}: its categories are {known}, those of train {categories}; give the same")
    return known


def _check_objects(given_boxes: Any, given_labels: Any, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [T, 4] float64 and labels [T] int64 of one image; raises ValueError with the remedy."""
    boxes, labels = np.array(given_boxes, dtype=np.float64), np.asarray(given_labels)
    if not boxes.size and not labels.size:
        return np.zeros((0, 4)), np.zeros(0, dtype=np.int64)
    if labels.ndim != 1 or boxes.shape != (len(labels), 4):
        shapes = f"boxes {list(boxes.shape)} and labels {list(labels.shape)}"
        raise ValueError(f"has {shapes}; give boxes [T, 4], xyxy, and labels [T]")
    if not np.isfinite(boxes).all():
        first = boxes[~np.isfinite(boxes).all(axis=1)][0].tolist()
        raise ValueError(f"has the box {first}; give finite numbers")
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"has labels {labels.tolist()}; give indices of the categories, 0 to {classes - 1}")
    return boxes, labels.astype(np.int64)
