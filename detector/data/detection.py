"""The data set of annotated boxes, in any format, and their images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from detector.config.schema import DataConfig, SplitConfig
from detector.data.box_rules import check_boxes
from detector.data.cache import local_split
from detector.data.formats.annotations import Annotations
from detector.data.formats.building import Source
from detector.data.formats.coco_values import odd_areas
from detector.data.formats.columns import show_id
from detector.data.formats.joining import join_rows, weigh
from detector.data.formats.reading import has_part, read_rows
from detector.data.formats.recognition import formats_of
from detector.data.images import read_annotated_image, read_size
from detector.data.large import LargeFile, open_annotated
from detector.data.names import ALLOW_OUTSIDE, Names, check_names, files_below, is_url, leads_out
from detector.data.split import hold_back, images_folder, not_set, split_to_read
from detector.data.spot_check import spot_check
from detector.data.transforms.boxes import Transform, Transformed
from detector.data.transforms.resize import input_sizes, padded
from detector.errors import DataError, DetectorError, counted
from detector.structures import IGNORE_REGION, PADDING, SIZE_DIVISOR, Category, Targets
from detector.system.json_stream import show_text

BLOCK = 1 << 16  # boxes checked at a time


class Sample(NamedTuple):
    """One image with its boxes, as a loader's workers hand it to ``collate``."""

    image: Tensor  # [C, H, W] uint8 or uint16
    boxes: Tensor  # [T, 4] float32, xyxy in pixels of ``image``
    labels: Tensor  # [T] int64
    size_original: tuple[int, int]  # height, width of the file
    id: int  # its index in the data set

    DIVISOR = SIZE_DIVISOR  # of the sides of a batch; unannotated, so it is not a field

    @staticmethod
    def stack_targets(samples: Sequence[Sample]) -> Targets:
        """Objects and, separately, ignore regions, each padded to the same number per image."""
        boxes, labels, regions = [], [], []
        for sample in samples:
            is_region = sample.labels == IGNORE_REGION
            boxes.append(sample.boxes[~is_region].float())
            labels.append(sample.labels[~is_region])
            regions.append(sample.boxes[is_region].float())
        return Targets(_pad(boxes, 0), _pad(labels, PADDING), _pad(regions, 0) if any(map(len, regions)) else None)


def _pad(tensors: list[Tensor], value: int) -> Tensor:
    """Tensors [T_i, ...] in one [B, T, ...]; T is at least 1."""
    one = tensors[0].new_full((1, *tensors[0].shape[1:]), value)
    return pad_sequence([*tensors, one], batch_first=True, padding_value=value)[:-1]


@dataclass(frozen=True)
class CheckedBoxes:
    """What ``data.invalid_boxes`` did to a data set."""

    boxes: Tensor  # [M, 4] float32 xyxy in the original frame
    is_kept: Tensor  # [M] bool
    is_clipped: Tensor  # [M] bool: kept, and cut by more than rounding
    first_invalid: str | None  # the first one, in words

    @property
    def clipped(self) -> int:
        return int(self.is_clipped.sum())

    @property
    def dropped(self) -> int:
        return int((~self.is_kept).sum())


def with_sizes(
    annotations: Annotations, images: Path | None, exif: str = "auto", allow_outside: bool = False
) -> Annotations:
    """The annotations, with missing sizes read from the headers of the image files.

    Raises :class:`detector.errors.DataError` for a file without a size, for one that EXIF turns by a quarter while
    ``exif`` (``data.exif``) is auto, for one outside ``images`` unless ``allow_outside``, and where ``images`` is None.
    """
    unknown = (annotations.heights == 0).nonzero()[:, 0].tolist()
    if not unknown:
        return annotations
    if images is None:
        name = show_text(annotations.file_name(unknown[0]))
        raise DataError(
            f"{annotations.path}: image {show_id(annotations.image_ids[unknown[0]])} ({name}) has no width and height;"
            " write them, or give the folder of the images too"
        )
    heights, widths = annotations.heights.clone(), annotations.widths.clone()
    for index in unknown:
        name = annotations.file_name(index)
        if leads_out(name) and not allow_outside:
            raise DataError(f"{annotations.path}: {show_text(name)} leads out of {images}; {ALLOW_OUTSIDE}")
        try:
            heights[index], widths[index] = read_size(images / name, exif)
        except DataError as error:
            is_there = os.path.exists(images / name)  # noqa: PTH110 (Path.exists raises for a name that is too long)
            hint = "" if is_there else Names(files_below(images)).hint(name, with_fix=True)
            raise DataError("; ".join(filter(None, (str(error), hint)))) from None
    return replace(annotations, heights=heights, widths=widths)


def apply_box_policy(annotations: Annotations, policy: str) -> CheckedBoxes:
    """Boxes as xyxy; those that have no area or extend outside their image are refused, clipped or dropped.

    ``error`` raises for the first of them, ``clip`` cuts them to the image and drops those without area, and ``drop``
    drops them all. Up to a pixel outside is cut silently: annotation tools round. Where an image's size is unknown, no
    box lies outside on the right or below.
    """
    image = annotations.image_index()
    sides = torch.stack([annotations.widths, annotations.heights], dim=1)  # [I, 2]
    boxes = torch.empty(len(image), 4)
    is_empty, is_outside = torch.empty(2, len(image), dtype=torch.bool)
    # In blocks, or the intermediate values would be the peak memory of the whole program.
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
            f"image {show_id(annotations.image_ids[index])} ({show_text(annotations.file_name(index))}, {size}),"
            f" {annotations.describe(row)}: box {annotations.boxes_xywh[row].tolist()} (xywh) {fault}"
        )
        if policy == "error":
            raise DataError(
                f"{annotations.path}: {first_invalid}; {counted(int(is_invalid.sum()), 'invalid box')} in all:"
                " correct them, or set data.invalid_boxes to clip or drop"
            )
    is_dropped = is_empty if policy == "clip" else is_invalid
    return CheckedBoxes(
        boxes=boxes,
        is_kept=~is_dropped,
        is_clipped=is_invalid & ~is_dropped,
        first_invalid=first_invalid,
    )


def scored_truth(annotations: Annotations, checked: CheckedBoxes) -> Annotations:
    """What predictions are scored against: the boxes that the policy keeps, clipped.

    A clipped box has the area that is left of it, if that is less than annotated.
    """
    if not checked.clipped and not checked.dropped:
        return annotations
    given, areas = annotations.boxes_xywh, annotations.areas
    boxes = torch.cat([checked.boxes[:, :2], checked.boxes[:, 2:] - checked.boxes[:, :2]], dim=1).double()
    is_cut = checked.is_clipped  # boxes outside by rounding stay as annotated
    area = boxes[:, 2:].prod(dim=1)
    is_of_box = areas == given[:, 2:].prod(dim=1)
    clipped = replace(
        annotations,
        boxes_xywh=torch.where(is_cut[:, None], boxes, given),
        areas=torch.where(is_cut, torch.where(is_of_box, area, torch.minimum(area, areas)), areas),
    )
    return replace(clipped.keep(checked.is_kept), dropped=checked.dropped)


def describe_odd_areas(annotations: Annotations) -> str:
    """A warning where areas do not fit their boxes, so objects count under the wrong size; else empty."""
    boxes, is_object = annotations.boxes_xywh.numpy(), ~annotations.is_crowd.numpy()
    odd = np.flatnonzero(odd_areas(boxes, annotations.areas.numpy()) & is_object)
    if not len(odd):
        return ""
    first = int(odd[0])
    return (
        f"warning: {annotations.path}: area of {len(odd):,} annotations is 0 or larger than their box, so APs, APm, APl"
        f" and their recall count the wrong objects (first: {annotations.describe(first)}, area"
        f" {float(annotations.areas[first]):g}, box {boxes[first].tolist()}); detector doctor --fix recomputes it"
    )


class CocoDataset(Dataset[Sample | DetectorError]):
    """Images of a COCO-format data set, transformed.

    Indexed by (epoch, index): a sample depends on these and the seed alone. A broken image is returned as the error
    itself, for the main process to raise (a worker's exception would reach it wrapped in the worker's traceback).
    """

    def __init__(
        self,
        annotations: Annotations,
        images: Path | None,
        transform: Transform,
        invalid_boxes: str,
        channels: int = 3,
        exif: str = "auto",
        max_value: int | None = None,
    ) -> None:
        self.annotations = annotations
        self.images = images
        self.transform = transform
        self.channels = channels
        self.exif, self.max_value = exif, max_value
        self.invalid_boxes = invalid_boxes
        self.checked = apply_box_policy(annotations, invalid_boxes)

    def __len__(self) -> int:
        return len(self.annotations)

    @property
    def categories(self) -> list[Category]:
        return self.annotations.categories

    @cached_property
    def truth(self) -> Annotations:
        """What predictions are scored against."""
        return scored_truth(self.annotations, self.checked)

    @property
    def source(self) -> Path:
        return self.annotations.path

    @property
    def is_wide(self) -> np.ndarray:
        """Whether each image is at least as wide as high, [I] bool."""
        return (self.annotations.widths >= self.annotations.heights).numpy()

    @property
    def shapes(self) -> np.ndarray:
        """Height and width of each image as evaluation predicts it, padded on its own, [I, 2]."""
        sizes = torch.stack([self.annotations.heights, self.annotations.widths], dim=1).numpy()
        return padded(input_sizes(sizes, self.transform.config))

    def file(self, index: int) -> Path:
        return self.images / self.annotations.file_name(index)

    def open(self, index: int, for_window: bool = False) -> np.ndarray | LargeFile:
        """The image as it is stored, for windows of it: for all, or ``for_window`` for one."""
        size = int(self.annotations.heights[index]), int(self.annotations.widths[index])
        given = self.channels, self.exif, self.max_value
        return open_annotated(self.file(index), *size, *given, for_window=for_window)

    @property
    def is_object(self) -> Tensor:
        """Which annotations are objects to detect, [M] bool: neither crowds nor dropped."""
        return self.checked.is_kept & ~self.annotations.is_crowd

    @property
    def has_targets(self) -> np.ndarray:
        """Which images have objects to detect, [I] bool."""
        images = self.annotations.image_index()[self.is_object]
        return (torch.bincount(images, minlength=len(self)) > 0).numpy()

    @property
    def image_labels(self) -> tuple[np.ndarray, np.ndarray]:
        """The image and the class of each object, [M] both."""
        return self.annotations.image_index()[self.is_object].numpy(), self.annotations.labels[self.is_object].numpy()

    def shown(self, epoch: int) -> np.ndarray:
        """The image that each index shows in an epoch, [I]."""
        return self.annotations.shown(epoch, np.arange(len(self)))

    def select(self, indices: Sequence[int]) -> CocoDataset:
        """Some of the images, in this order."""
        part = self.annotations.select(indices)
        given = self.images, self.transform, self.invalid_boxes, self.channels, self.exif, self.max_value
        return CocoDataset(part, *given)

    def summary(self) -> str:
        """Counts for the start of a run, with notices below."""
        annotations, checked = self.annotations, self.checked
        boxes = int(self.is_object.sum())
        crowds = int((checked.is_kept & annotations.is_crowd).sum())
        empty = int((annotations.first.diff() == 0).sum())
        text = (
            f"{counted(len(self), 'image')} ({empty:,} without boxes), {counted(boxes, 'box')} of"
            f" {counted(len(annotations.categories), 'class')}"
        )
        if crowds:
            text += f", {counted(crowds, 'ignore region')}"
        if checked.first_invalid:
            text += f"; {counted(checked.clipped, 'invalid box')} clipped, {checked.dropped:,} dropped"
            text += f" (first: {checked.first_invalid})"
        lines = (text, annotations.notice, describe_odd_areas(self.truth))
        return "\n".join(line for line in lines if line)

    def warnings(self) -> list[str]:
        """Doubts that a sample of the files raises."""
        annotated = np.flatnonzero(self.has_targets)
        return spot_check(self.file, annotated, self.channels, self.max_value, looks_for_turns=self.exif == "auto")

    def __getitem__(self, key: tuple[int, int]) -> Sample | DetectorError:
        epoch, index = key
        try:
            return self._sample(epoch, index)
        except DetectorError as error:
            return error

    def _sample(self, epoch: int, index: int) -> Sample:
        image, boxes, labels = self.transform.mixed(partial(self._transformed, epoch), epoch, index, len(self))
        index = int(self.annotations.shown(epoch, index))
        return Sample(
            image=torch.from_numpy(image).permute(2, 0, 1),
            boxes=torch.from_numpy(boxes),
            labels=torch.from_numpy(labels),
            size_original=(int(self.annotations.heights[index]), int(self.annotations.widths[index])),
            id=index,
        )

    def _transformed(self, epoch: int, index: int) -> Transformed:
        annotations = self.annotations
        shown = int(annotations.shown(epoch, index))
        image = self._read(shown, int(annotations.heights[shown]), int(annotations.widths[shown]))
        rows = annotations.rows(shown)
        is_kept = self.checked.is_kept[rows]
        boxes = self.checked.boxes[rows][is_kept].numpy()
        labels = torch.where(annotations.is_crowd[rows], IGNORE_REGION, annotations.labels[rows])[is_kept].numpy()
        return self.transform(image, boxes, labels, epoch, index)

    def _read(self, index: int, height: int, width: int) -> np.ndarray:
        return read_annotated_image(self.file(index), height, width, self.channels, self.exif, self.max_value)


def open_dataset(
    data: DataConfig,
    name: str,
    transform: Transform,
    categories: list[Category] | None = None,
    channels: int = 3,
    seed: int = 0,
    keep_in: Path | None = None,
) -> CocoDataset:
    """The data set of ``data.train`` or ``data.val`` (``name``), checked as far as possible without decoding.

    ``keep_in``: see :func:`detector.data.formats.reading.read_rows`.
    """
    read_name, split = split_to_read(data, name)
    for own in split.each:
        if own.images is not None:
            images_folder(data, read_name, own)
    annotations = read_split(data, name, categories, seed, keep_in)
    images = annotations.images
    if images is None:
        raise not_set(data, read_name, "images")
    check_files(annotations, images, read_name, data.allow_outside)
    annotations = with_sizes(annotations, images, data.exif, data.allow_outside)
    dataset = CocoDataset(annotations, images, transform, data.invalid_boxes, channels, data.exif, data.max_value)
    if name == "train":
        check_objects(dataset)
    return dataset


def check_objects(dataset: CocoDataset) -> None:
    """Raises where there is no object to train on."""
    if not dataset.is_object.any():
        raise DataError(
            f"{dataset.source}: has no object to train on ({dataset.summary()}); annotate some, or give other data"
        )


def read_split(
    data: DataConfig, name: str, categories: list[Category] | None, seed: int, keep_in: Path | None = None
) -> Annotations:
    """The annotations of ``data.train`` or ``data.val``: of whole sets, or of the part held back or not.

    Of several sets to train on, images are repeated by the sets' weights.
    """
    sources, weights = sources_of(data, name)
    parts = [read_rows(source, is_strict=True, keep_in=keep_in) for source in sources]
    sizes = [len(rows.image_ids) for rows in parts]
    annotations = join_rows(parts, data.class_members, categories)
    if data.val_share is not None:
        is_val = held_back(annotations, data.val_share, seed)
        chosen = is_val if name == "val" else ~is_val
    else:
        chosen = np.ones(len(annotations), dtype=bool)
    if name == "train" and len({*weights}) > 1:
        return weigh(annotations, weights, sizes, chosen, seed)
    return annotations if chosen.all() else annotations.select(np.flatnonzero(chosen).tolist())


def sources_of(data: DataConfig, name: str) -> tuple[list[Source], list[float]]:
    """What to read for ``data.train`` or ``data.val``, and the weight of each set.

    Where ``data.val`` is not set, it is what the annotations of ``data.train`` name as val.
    """
    read_name, split = split_to_read(data, name)
    given = [own for own in split.each if own.annotations or own.images]
    if any(not own.annotations and not formats_of(images_folder(data, read_name, own)) for own in given):
        raise not_set(data, read_name, "annotations")  # nor are they in the folder of the images
    sources = [_source(data, own, read_name) for own in given]
    if name == "val" and not sources and data.val_share is None:
        sources = _val_in_train(data)
        sources = [source for source in sources if has_part(source, "val")]
    if not sources:
        raise not_set(data, read_name, "annotations")
    return sources, [own.weight for own in split.each]


def has_val(data: DataConfig) -> bool:
    """Whether there are annotations of ``data.val``, or a part of train that is held back."""
    if data.val_share is not None or data.val is None:
        return data.val_share is not None
    sources = _val_in_train(data)
    return data.val != SplitConfig() or any(has_part(source, "val") for source in sources)


def _val_in_train(data: DataConfig) -> list[Source]:
    train = local_split(data, data.train)
    return [_source(data, own, "val") for own in train.each if own.annotations or own.images]


def _source(data: DataConfig, split: SplitConfig, part: str) -> Source:
    """One set: without annotations, the folder of its images holds them."""
    images = Path(split.images) if split.images else None
    return Source(
        path=Path(split.annotations) if split.annotations else images,  # type: ignore[arg-type]
        images=images if split.annotations else None,
        format=split.format or data.format,
        part=split.part or part,
        one_based=None if data.one_based == "auto" else data.one_based,
        exif=data.exif,
        allow_outside=data.allow_outside,
    )


def held_back(annotations: Annotations, fraction: float, seed: int) -> np.ndarray:
    """Which images :func:`detector.data.split.hold_back` takes, [I] bool; crowds count for their class."""
    names = [annotations.file_name(index).encode() for index in range(len(annotations))]
    image, labels = annotations.image_index().numpy(), annotations.labels.numpy()
    return hold_back(annotations.path, names, image, labels, fraction, seed)


def check_files(annotations: Annotations, images: Path, split: str, allow_outside: bool) -> None:
    """Raises for an image that does not exist or whose name, unless ``allow_outside``, leads out of ``images``."""
    names = map(annotations.file_name, range(len(annotations)))
    for index, is_outside, reason in check_names(names, images, allow_outside):
        name = annotations.file_name(index)
        fault = f"{reason} of data.{split}.images" if is_outside else reason
        remedy = f"check data.{split}.images, or remove the image from the annotations"
        if is_outside:
            remedy = f"put the image into the folder, or {ALLOW_OUTSIDE} if you trust the annotations"
        if is_url(name):
            remedy = f"images are not downloaded: put them into data.{split}.images"
        remedy = Names(files_below(images)).hint(name, with_fix=True) or remedy
        raise DataError(
            f"{show_text(str(images / name))}: {fault}, but {annotations.path} names it (image"
            f" {show_id(annotations.image_ids[index])}); {remedy}"
        )
