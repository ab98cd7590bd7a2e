"""COCO-format annotations in flat arrays, and the data set on top of them.

Everything that grows with the data is a tensor, not a Python object: forked workers share its pages (nothing touches a
reference count), spawned ones get it through shared memory.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from detector.config import DataConfig, SplitConfig
from detector.data.images import read_annotated_image
from detector.data.transforms import Transform
from detector.errors import DataError, DetectorError
from detector.structures import IGNORE_REGION


class Category(NamedTuple):
    """A class by the data set's own id and name; its label is its place in the list of categories."""

    id: int
    name: str


class Sample(NamedTuple):
    """One picture with its boxes, as a loader's workers hand it to ``collate``."""

    image: Tensor  # [C, H, W] uint8 or uint16
    boxes: Tensor  # [T, 4] float32, xyxy in pixels of ``image``
    labels: Tensor  # [T] int64
    size_original: tuple[int, int]  # height, width of the file
    id: int


@dataclass(frozen=True)
class Annotations:
    """A COCO JSON file as columns: I images, M annotations sorted by image."""

    path: Path
    categories: list[Category]  # sorted by id; the label is the place
    image_ids: Tensor  # [I] int64
    heights: Tensor  # [I] int64
    widths: Tensor  # [I] int64
    name_bytes: Tensor  # uint8, all file names in one
    name_ends: Tensor  # [I] int64
    first: Tensor  # [I + 1] int64; image i owns rows first[i]:first[i + 1] of all below
    annotation_ids: Tensor  # [M] int64
    boxes_xywh: Tensor  # [M, 4] float64, as annotated
    labels: Tensor  # [M] int64, 0..K-1
    areas: Tensor  # [M] float64
    is_crowd: Tensor  # [M] bool

    def __len__(self) -> int:
        return len(self.image_ids)

    def file_name(self, index: int) -> str:
        start = int(self.name_ends[index - 1]) if index else 0
        return self.name_bytes[start : int(self.name_ends[index])].numpy().tobytes().decode()

    def rows(self, index: int) -> slice:
        return slice(int(self.first[index]), int(self.first[index + 1]))

    def select(self, indices: Sequence[int]) -> Annotations:
        """Some of the images, in this order; the classes stay."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        counts = self.first.diff()[chosen]
        names = [self.file_name(index).encode() for index in chosen.tolist()]
        no_rows = torch.empty(0, dtype=torch.int64)
        rows = torch.cat([no_rows, *(torch.arange(*self.first[index : index + 2]) for index in chosen.tolist())])
        return Annotations(
            path=self.path,
            categories=self.categories,
            image_ids=self.image_ids[chosen],
            heights=self.heights[chosen],
            widths=self.widths[chosen],
            name_bytes=torch.frombuffer(bytearray(b"".join(names)), dtype=torch.uint8),
            name_ends=torch.tensor([len(name) for name in names]).cumsum(0),
            first=torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
            annotation_ids=self.annotation_ids[rows],
            boxes_xywh=self.boxes_xywh[rows],
            labels=self.labels[rows],
            areas=self.areas[rows],
            is_crowd=self.is_crowd[rows],
        )

    def image_index(self) -> Tensor:
        """The image of each annotation, [M]."""
        return torch.repeat_interleave(torch.arange(len(self)), self.first.diff())


def read_annotations(path: str | Path, categories: list[Category] | None = None) -> Annotations:
    """Annotations of a COCO JSON file; with ``categories`` given (of a checkpoint), the file's must be the same ones.

    Raises :class:`~detector.errors.DataError` that names file, image or annotation id, value and remedy.
    """
    path = Path(path)
    tree = _read_json(path)
    own = _categories(path, tree)
    if categories is not None and own != categories:
        raise DataError(
            f"{path}: has {len(own)} classes ({_names(own)}), the model {len(categories)} ({_names(categories)});"
            " evaluate on annotations with the classes that the model was trained on"
        )
    images = _images(path, tree)
    return _annotations(path, tree, own, images)


def _names(categories: list[Category]) -> str:
    names = [f"{category.id} {category.name}" for category in categories]
    return ", ".join(names if len(names) <= 6 else [*names[:5], "…"])


def _read_json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not valid JSON: {error.msg} (column {error.colno})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a COCO JSON file: {error}") from None
    if not isinstance(tree, dict):
        raise DataError(
            f"{path}: holds a {type(tree).__name__}; COCO annotations are an object with images, annotations"
        )
    for key in ("images", "annotations", "categories"):
        if not isinstance(tree.get(key), list) or not all(isinstance(row, dict) for row in tree[key]):
            raise DataError(
                f"{path}: has no list of objects {key!r}; COCO annotations need images, annotations, categories"
            )
    return tree


def _categories(path: Path, tree: dict[str, Any]) -> list[Category]:
    categories = []
    for row in tree["categories"]:
        if not _is_int(row.get("id")) or not isinstance(row.get("name"), str):
            raise DataError(f"{path}: category {row}: needs an integer id and a name")
        categories.append(Category(row["id"], row["name"]))
    categories.sort()
    if not categories:
        raise DataError(f"{path}: has no categories")
    for first, second in pairwise(categories):
        if first.id == second.id:
            raise DataError(f"{path}: category id {first.id} stands twice: {first.name}, {second.name}")
    return categories


def _images(path: Path, tree: dict[str, Any]) -> dict[int, tuple[int, int, str]]:
    """Height, width and file name by image id."""
    images: dict[int, tuple[int, int, str]] = {}
    for row in tree["images"]:
        image_id, height, width, name = (row.get(key) for key in ("id", "height", "width", "file_name"))
        # COCO results are tables of float64, which hold integers up to 2^53.
        if not _is_int(image_id) or abs(image_id) > 2**53:
            raise DataError(f"{path}: image {image_id!r}: the id must be an integer of at most 2^53")
        if image_id in images:
            raise DataError(f"{path}: image id {image_id} stands twice: {images[image_id][2]}, {name}")
        if not isinstance(name, str) or not name or not _is_text(name):
            raise DataError(f"{path}: image {image_id}: file_name is {name!r}")
        if not (_is_int(height) and _is_int(width) and 0 < height < 2**31 and 0 < width < 2**31):
            raise DataError(
                f"{path}: image {image_id} ({name}): height {height!r}, width {width!r} must be positive integers"
            )
        images[image_id] = (height, width, name)
    if not images:
        raise DataError(f"{path}: has no images")
    return images


def _annotations(
    path: Path, tree: dict[str, Any], categories: list[Category], images: dict[int, tuple[int, int, str]]
) -> Annotations:
    index_of = {image_id: index for index, image_id in enumerate(images)}
    label_of = {category.id: label for label, category in enumerate(categories)}
    rows = []
    for row in tree["annotations"]:
        image = row.get("image_id")
        where = f"{path}: annotation {row.get('id')}"
        if not _is_int(row.get("id")):
            raise DataError(f"{where}: the id must be an integer")
        if not _is_int(image) or image not in index_of:
            raise DataError(
                f"{where}: image_id {image!r} is not among the images; remove the annotation or add the image"
            )
        if not _is_int(row.get("category_id")) or row["category_id"] not in label_of:
            raise DataError(
                f"{where}: category_id {row.get('category_id')!r} is not among the categories ({_names(categories)})"
            )
        box = row.get("bbox")
        if box is None:
            box = _box_of_segmentation(row.get("segmentation"), where)
        if not _is_box(box):
            raise DataError(f"{where}: bbox {box!r} must be four finite numbers: left, top, width, height")
        area = row.get("area", box[2] * box[3])
        if not _is_number(area):
            raise DataError(f"{where}: area {area!r} must be a finite number")
        is_crowd = row.get("iscrowd", 0)
        if is_crowd not in (0, 1):
            raise DataError(f"{where}: iscrowd {is_crowd!r} must be 0 or 1")
        rows.append((index_of[image], row["id"], *box, label_of[row["category_id"]], area, is_crowd))

    columns = np.array(rows, dtype=np.float64).reshape(-1, 9)
    columns = columns[np.argsort(columns[:, 0], kind="stable")]
    ids = np.array([row[1] for row in sorted(rows, key=lambda row: row[0])], dtype=np.int64)
    names = [name.encode() for _, _, name in images.values()]
    return Annotations(
        path=path,
        categories=categories,
        image_ids=torch.tensor(list(images)),
        heights=torch.tensor([height for height, _, _ in images.values()]),
        widths=torch.tensor([width for _, width, _ in images.values()]),
        name_bytes=torch.frombuffer(bytearray(b"".join(names)), dtype=torch.uint8),
        name_ends=torch.tensor([len(name) for name in names]).cumsum(0),
        first=torch.from_numpy(np.searchsorted(columns[:, 0], np.arange(len(images) + 1))),
        annotation_ids=torch.from_numpy(ids),
        boxes_xywh=torch.from_numpy(columns[:, 2:6].copy()),
        labels=torch.from_numpy(columns[:, 6].astype(np.int64)),
        areas=torch.from_numpy(columns[:, 7].copy()),
        is_crowd=torch.from_numpy(columns[:, 8] > 0),
    )


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _is_text(value: str) -> bool:
    """JSON can escape half of a surrogate pair, which is no character of any file name."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(_is_number(number) for number in value)


def _box_of_segmentation(segmentation: Any, where: str) -> list[float]:
    """The box around polygons or a run-length mask, for annotations (crowds, mostly) that have no bbox."""
    from pycocotools import mask

    try:
        if isinstance(segmentation, list):
            polygons = np.concatenate([np.asarray(polygon, dtype=float).reshape(-1, 2) for polygon in segmentation])
            (left, top), (right, bottom) = polygons.min(axis=0), polygons.max(axis=0)
            return [float(left), float(top), float(right - left), float(bottom - top)]
        if isinstance(segmentation["counts"], list):
            segmentation = mask.frPyObjects(segmentation, *segmentation["size"])
        return [float(number) for number in mask.toBbox(segmentation)]
    except (TypeError, KeyError, ValueError, OverflowError):
        raise DataError(f"{where}: has no bbox, and no segmentation to take it from") from None


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
    boxes = annotations.boxes_xywh.clone()
    boxes[:, 2:] += boxes[:, :2]
    image = annotations.image_index()
    limits = torch.stack([annotations.widths, annotations.heights], dim=1)[image].repeat(1, 2).double()  # [M, 4]
    inside = torch.minimum(boxes.clamp(min=0), limits)
    is_empty = (inside.float()[:, 2:] <= inside.float()[:, :2]).any(dim=1)
    is_outside = ((boxes - inside).abs() > 1).any(dim=1)
    is_invalid = is_empty | is_outside
    first_invalid = None
    if is_invalid.any():
        row = int(is_invalid.nonzero()[0])
        index = int(image[row])
        fault = "has no area" if is_empty[row] else "reaches outside its image"
        size = f"{int(annotations.widths[index])}×{int(annotations.heights[index])}"
        first_invalid = (
            f"image {int(annotations.image_ids[index])} ({annotations.file_name(index)}, {size}), annotation"
            f" {int(annotations.annotation_ids[row])}: box {annotations.boxes_xywh[row].tolist()} (xywh) {fault}"
        )
        if policy == "error":
            raise DataError(
                f"{annotations.path}: {first_invalid}; {int(is_invalid.sum())} boxes in the file are like this:"
                " correct them, or set data.invalid_boxes to clip or drop"
            )
    is_dropped = is_empty if policy == "clip" else is_invalid
    return CheckedBoxes(
        boxes=inside.float(),
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

    def __getitem__(self, key: tuple[int, int]) -> Sample | DetectorError:
        epoch, index = key
        try:
            return self._sample(epoch, index)
        except DetectorError as error:
            return error

    def _sample(self, epoch: int, index: int) -> Sample:
        annotations = self.annotations
        height, width = int(annotations.heights[index]), int(annotations.widths[index])
        image = read_annotated_image(self.images / annotations.file_name(index), height, width, self.channels)
        rows = annotations.rows(index)
        is_kept = self.checked.is_kept[rows]
        boxes = self.checked.boxes[rows][is_kept].numpy()
        labels = torch.where(annotations.is_crowd[rows], IGNORE_REGION, annotations.labels[rows])[is_kept].numpy()
        image, boxes, labels = self.transform(image, boxes, labels, epoch, index)
        return Sample(
            image=torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
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
    annotations = read_annotations(split.annotations or "", categories)
    for index in range(len(annotations)):
        file = images / annotations.file_name(index)
        if not file.exists():
            raise DataError(
                f"{file}: does not exist, but {annotations.path} names it (image {int(annotations.image_ids[index])});"
                f" check data.{name}.images, or remove the image from the annotations"
            )
    return CocoDataset(annotations, images, transform, config.invalid_boxes, channels)
