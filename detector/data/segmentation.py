"""Images with the classes of their pixels: index masks in files, or COCO's polygons and run-length masks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from detector.config.schema import MOST_CLASSES, Config, DataConfig, SplitConfig
from detector.data.formats.class_folders import unknown_class
from detector.data.formats.mask_coco import read_coco_masks
from detector.data.formats.mask_files import (
    VOC_LISTS,
    VOC_MASKS,
    Legend,
    MaskFiles,
    pair_folders,
    read_pairs,
    read_pixels,
    read_voc_list,
)
from detector.data.images import read_annotated_image, read_size
from detector.data.large import LargeFile, open_annotated
from detector.data.listing import check_folder
from detector.data.loading.sampler import mixed_epochs
from detector.data.names import Names, check_names, files_below
from detector.data.split import hold_back, images_folder, not_set, split_to_read
from detector.data.spot_check import spot_check, spread
from detector.data.transforms.masks import MaskTransform, TrainMaskTransform, Transformed
from detector.data.transforms.resize import input_sizes, padded
from detector.errors import ConfigError, DataError, DetectorError, counted, near_path
from detector.structures import IGNORED_PIXEL, SIZE_DIVISOR, Category, MaskTargets

T = TypeVar("T", bound="MaskDataset")

LOOKED_AT = 16  # masks that are read before training, for warnings
REMEDY = "restore the one that was resized: a mask has the size of its image"


class MaskSample(NamedTuple):
    """One image with its mask, as a loader's workers hand it to ``collate``."""

    image: Tensor  # [C, H, W] uint8 or uint16
    mask: Tensor  # [H, W] uint8
    original: Tensor | None  # [H', W'] uint8 as stored, in evaluation
    weights: Tensor  # [K] float32, see MaskTargets
    size_original: tuple[int, int]  # height, width of the file
    id: int

    DIVISOR = SIZE_DIVISOR

    @staticmethod
    def stack_targets(samples: Sequence[MaskSample]) -> MaskTargets:
        masks = _pad([sample.mask for sample in samples], SIZE_DIVISOR)
        originals = [sample.original for sample in samples if sample.original is not None]
        weights = torch.stack([sample.weights for sample in samples])
        return MaskTargets(masks, weights, _pad(originals, 1) if originals else None)


def _pad(masks: Sequence[Tensor], divisor: int) -> Tensor:
    """Masks [H_i, W_i] in one [B, H, W], ignored right and below."""
    height, width = padded(torch.tensor([mask.shape for mask in masks]).amax(dim=0), divisor).tolist()
    stacked = torch.full((len(masks), height, width), IGNORED_PIXEL, dtype=torch.uint8)
    for row, mask in enumerate(masks):
        stacked[row, : mask.shape[0], : mask.shape[1]] = mask
    return stacked


class Masks(Protocol):
    """Where masks come from: files, COCO's objects, or the user's own data."""

    def read(self, index: int, height: int, width: int) -> np.ndarray: ...  # [H, W] uint8

    def select(self, indices: np.ndarray) -> Masks: ...


@dataclass(frozen=True)
class Masked:
    """Images and masks as columns: I images. Forked workers share the arrays."""

    source: Path  # the masks' folder, or the file that lists or holds them
    root: Path  # of the images
    categories: list[Category]
    files: np.ndarray  # [I] names relative to root, in the bytes of the file system
    sizes: np.ndarray  # [I, 2] int64 height, width of the masks
    masks: Masks
    note: str = ""  # on how the files were found, for the summary

    def __len__(self) -> int:
        return len(self.files)

    def file(self, index: int) -> Path:
        return self.root / os.fsdecode(self.files[index])

    def mask(self, index: int) -> np.ndarray:
        """[H, W] uint8. Raises :class:`detector.errors.DataError`."""
        height, width = self.sizes[index].tolist()
        return self.masks.read(index, height, width)

    def select(self, indices: np.ndarray) -> Masked:
        """Some of the images, in this order."""
        files, sizes, masks = self.files[indices], self.sizes[indices], self.masks.select(indices)
        return replace(self, files=files, sizes=sizes, masks=masks)


class MaskDataset(Dataset[MaskSample | DetectorError]):
    """Images with masks, transformed.

    Indexed by (epoch, index): a sample depends on these and the seed alone. A broken image or mask is returned as the
    error itself (see ``CocoDataset``).
    """

    shown = None

    def __init__(
        self,
        masked: Masked,
        transform: MaskTransform,
        weights: np.ndarray,
        channels: int,
        exif: str = "auto",
        max_value: int | None = None,
        mixed_epochs: float = np.inf,
    ) -> None:
        self.masked = masked
        self.transform = transform
        self.weights = torch.from_numpy(weights.astype(np.float32))
        self.channels = channels
        self.exif, self.max_value = exif, max_value
        self.mixed_epochs = mixed_epochs  # below which images are mixed

    def __len__(self) -> int:
        return len(self.masked)

    @property
    def categories(self) -> list[Category]:
        return self.masked.categories

    @property
    def truth(self) -> Masked:
        """What predictions are scored against."""
        return self.masked

    @property
    def source(self) -> Path:
        return self.masked.source

    @property
    def images(self) -> Path:
        return self.masked.root

    @property
    def is_wide(self) -> np.ndarray:
        """Whether each image is at least as wide as high, [I] bool."""
        return self.masked.sizes[:, 1] >= self.masked.sizes[:, 0]

    @property
    def shapes(self) -> np.ndarray:
        """Height and width of each image as evaluation predicts it, padded on its own, [I, 2]."""
        return padded(input_sizes(self.masked.sizes, self.transform.config))

    def file(self, index: int) -> Path:
        return self.masked.file(index)

    def open(self, index: int, for_window: bool = False) -> np.ndarray | LargeFile:
        """The image as it is stored, for windows of it: for all, or ``for_window`` for one."""
        given = self.channels, self.exif, self.max_value, ("mask is", REMEDY)
        return open_annotated(self.file(index), *self.masked.sizes[index].tolist(), *given, for_window=for_window)

    @property
    def has_targets(self) -> np.ndarray:
        """All images have a mask, [I] bool."""
        return np.ones(len(self), dtype=bool)

    @cached_property
    def pixels(self) -> np.ndarray:
        """The number of pixels of each class in each mask, [I, K] int64; reads all of them."""
        return count_pixels(self.masked, range(len(self)))

    @property
    def image_labels(self) -> tuple[np.ndarray, np.ndarray]:
        """The image and the class of each class in a mask, [M] both."""
        image, label = np.nonzero(self.pixels)
        return image, label

    def select(self, indices: Sequence[int]) -> MaskDataset:
        """Some of the images, in this order."""
        some = self.masked.select(np.asarray(indices))
        given = self.channels, self.exif, self.max_value, self.mixed_epochs
        return type(self)(some, self.transform, self.weights.numpy(), *given)

    def summary(self) -> str:
        """One line of counts for the start of a run."""
        names = ", ".join(category.name for category in self.categories[:12])
        names += ", …" if len(self.categories) > 12 else ""
        text = f"{counted(len(self), 'image')} with masks of {counted(len(self.categories), 'class')} ({names})"
        return f"{text}; {self.masked.note}" if self.masked.note else text

    def warnings(self) -> list[str]:
        """Doubts that a sample of the files raises."""
        doubts = spot_check(self.file, np.arange(len(self)), self.channels, self.max_value, looks_for_turns=False)
        return [*doubts, *_warn_of_indices(self.masked)]

    def __getitem__(self, key: tuple[int, int]) -> MaskSample | DetectorError:
        epoch, index = key
        try:
            return self._sample(epoch, index)
        except DetectorError as error:
            return error

    def _sample(self, epoch: int, index: int) -> MaskSample:
        read = partial(self._transformed, epoch)
        own = self.transform.mixed(read, epoch, index, len(self)) if epoch < self.mixed_epochs else read(index)
        pixels, stored = torch.from_numpy(own.image).permute(2, 0, 1), None
        if own.original is not None:
            stored = torch.from_numpy(own.original)
        height, width = self.masked.sizes[index].tolist()
        return MaskSample(pixels, torch.from_numpy(own.mask), stored, self.weights, (height, width), index)

    def _transformed(self, epoch: int, index: int) -> Transformed:
        return self.transform(*self._read(index), epoch, index)

    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        given = self.channels, self.exif, self.max_value, ("mask is", REMEDY)
        image = read_annotated_image(self.file(index), *self.masked.sizes[index].tolist(), *given)
        return image, self.masked.mask(index)


def count_pixels(masked: Masked, indices: Sequence[int]) -> np.ndarray:
    """The number of pixels of each class in some of the masks, [N, K] int64."""
    classes = len(masked.categories)
    counts = [np.bincount(masked.mask(index).ravel(), minlength=IGNORED_PIXEL + 1)[:classes] for index in indices]
    return np.array(counts, dtype=np.int64).reshape(-1, classes)


def _warn_of_indices(masked: Masked) -> list[str]:
    """A warning where masks seem to be binary, with the value of white ignored."""
    if not isinstance(masked.masks, MaskFiles):
        return []
    found: set[int] = set()
    for index in spread(len(masked), LOOKED_AT):
        try:
            pixels = read_pixels(masked.masks.file(index))
        except DataError:
            return []  # training reports it, if it meets it
        found |= set(np.unique(pixels).tolist()) if pixels.ndim == 2 else {-1}
    if found == {0, 255} and masked.masks.legend.of_index[255] == IGNORED_PIXEL:
        return [
            f"warning: {masked.source}: masks have the indices 0 and 255 only, and 255 is ignored (data.masks); if it"
            " is a class, set data.masks.label_map={0: 0, 255: 1}"
        ]
    return []


def open_masks(
    config: Config, name: str, categories: list[Category] | None = None, keep_in: Path | None = None
) -> MaskDataset:
    """The data set of ``data.train`` (augmented) or ``data.val``, with the classes of ``categories`` where given.

    Nothing is kept in ``keep_in``.
    """
    data = config.data
    read_name, split = split_to_read(data, name)
    masked = read_masked(data, read_name, split, categories)
    if data.val_share is not None:
        masked = masked.select(np.flatnonzero(held_back(masked, data.val_share, config.seed) == (name == "val")))
    return make_dataset(config, name, masked, MaskDataset)


def make_dataset(config: Config, name: str, masked: Masked, kind: type[T]) -> T:
    """Images with masks as train, augmented and weighted, or as val (``name``)."""
    data, channels = config.data, config.model.in_channels
    transform, weights = MaskTransform(data.resize), np.ones(len(masked.categories))
    if name == "train":
        transform = TrainMaskTransform(data.resize, data.augment, config.seed, channels)
        weights = _class_weights(data, masked)
    mixed = mixed_epochs(config.train, data.augment.close_out, len(masked))
    return kind(masked, transform, weights, channels, data.exif, data.max_value, mixed)


def held_back(masked: Masked, fraction: float, seed: int) -> np.ndarray:
    """Which images are held back for evaluation, [I] bool; by their names, as classes need all masks to be read."""
    none = np.zeros(0, dtype=np.int64)
    return hold_back(masked.source, masked.files.tolist(), none, none, fraction, seed)


def read_masked(
    data: DataConfig,
    name: str,
    split: SplitConfig,
    categories: list[Category] | None = None,
    without: list[str] | None = None,
) -> Masked:
    """The images and masks of a split, with as much checked as shows without decoding.

    Raises :class:`detector.errors.DetectorError` for the first fault. With a list ``without``, images without a mask
    are added to it, and masks that cannot be read have the size 0.
    """
    if split.sets:
        raise ConfigError(
            f"data.{name}: a list of sets is for task detection; give one folder of masks, CSV or JSON file"
        )
    form = split.format or data.format
    if form not in ("auto", "folder", "csv", "coco"):
        raise ConfigError(f"data.format: {form} has boxes, which are for task detection; use auto, folder, csv or coco")
    if split.annotations is None:
        raise not_set(data, name, "annotations")
    if any(isinstance(one, dict) for one in data.classes or ()):
        raise ConfigError("data.classes: merges classes, which is for task detection; use data.masks.label_map")
    path = Path(split.annotations)
    classes = [category.name for category in categories] if categories is not None else list(data.class_members) or None
    is_folder = os.path.isdir(path)  # noqa: PTH112 (Path's functions raise for a name that is too long)
    if not is_folder and not os.path.isfile(path):  # noqa: PTH113
        raise DataError(f"data.{name}.annotations: {path} is neither a folder of masks nor a file{near_path(path)}")
    if is_folder and (path / VOC_MASKS).is_dir():
        raise DataError(
            f"data.{name}.annotations: {path} is Pascal VOC's folder; name a list in it, such as"
            f" {path / VOC_LISTS / 'train.txt'}, or its folder {VOC_MASKS}"
        )
    if is_folder or lists_images(path):
        masked = _read_files(data, name, split, path, classes, without)
        return replace(masked, categories=categories) if categories is not None else masked
    root = images_folder(data, name, split)
    read = read_coco_masks(path, classes, data.masks.background)
    _check_count(path, read.categories)
    _check_images(path, read.files, root, data.allow_outside)
    for index in np.flatnonzero((read.sizes < 1).any(axis=1)).tolist():
        read.sizes[index] = read_size(root / read.files[index], data.exif)
    files = np.array([os.fsencode(file) for file in read.files])
    return Masked(path, root, read.categories, files, read.sizes, read.drawing, read.note)


def lists_images(path: Path) -> bool:
    """Whether a file of annotations says where its images are: a CSV file of pairs, or a list of Pascal VOC's."""
    return path.suffix.lower() in (".csv", ".txt")


def _read_files(
    data: DataConfig,
    name: str,
    split: SplitConfig,
    path: Path,
    classes: Sequence[str] | None,
    without: list[str] | None,
) -> Masked:
    """A folder of masks, a CSV file of pairs, or a list of Pascal VOC's."""
    if not classes:
        raise DataError(
            f"data.classes is not set: the masks of {path} have indices and no names; give them in the order of the"
            " indices, as data.classes=[road, car]"
        )
    _check_count(path, classes)
    legend, note = Legend.of(data.masks, classes), ""
    if path.is_dir():
        root, masks_root = images_folder(data, name, split), path
        files, masks, note = pair_folders(root, path, data.masks.endings, without)
    elif path.suffix.lower() == ".txt":
        root, files, masks = read_voc_list(path)
        masks_root = root
    else:
        root = Path(split.images) if split.images else path.parent
        check_folder(root, f"data.{name}.images")
        masks_root = root
        files, masks = read_pairs(path, root, data.allow_outside)
    columns = [np.array([os.fsencode(one) for one in names]) for names in (files, masks)]
    own = MaskFiles(masks_root, columns[1], legend)
    categories = [Category(legend.index_of(label), one) for label, one in enumerate(classes)]
    return Masked(path, root, categories, columns[0], own.sizes(without is None), own, note)


def _check_count(path: Path, classes: Sequence[object]) -> None:
    if not 1 <= len(classes) <= MOST_CLASSES:
        raise DataError(f"{path}: has {len(classes)} classes; segmentation takes 1 to {MOST_CLASSES} (data.classes)")


def _check_images(path: Path, files: Sequence[str], root: Path, allow_outside: bool) -> None:
    if not files:
        raise DataError(f"{path}: lists no images")
    for index, is_outside, reason in check_names(files, root, allow_outside):
        remedy = "set data.allow_outside=true if you trust the file" if is_outside else f"names start at {root}"
        remedy = Names(files_below(root)).hint(files[index]) or remedy
        raise DataError(f"{path}: image {files[index]} {reason}; {remedy}")


def _class_weights(data: DataConfig, masked: Masked) -> np.ndarray:
    """The weight of each class in the loss, [K]."""
    given, names = data.class_weights, [category.name for category in masked.categories]
    if given == "balanced":
        pixels = count_pixels(masked, range(len(masked))).sum(axis=0)
        if not pixels.all():
            raise DataError(
                f"{masked.source}: has no pixel of class {names[int(pixels.argmin())]!r}, which data.class_weights"
                " cannot balance; add some, remove the class, or give weights"
            )
        return pixels.sum() / (len(names) * pixels)
    for name in given or {}:
        if name not in names:
            raise DataError(f"data.class_weights: {unknown_class(name, names)}")
    return np.array([(given or {}).get(name, 1.0) for name in names])
